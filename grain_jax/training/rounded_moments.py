"""Moments of Adam stored in bfloat16: half of the optimizer's memory.

The update is computed in float32, from moments that are rounded only when they are stored, each
stochastically. To the nearest, every change would be lost that is below half of the distance
between two bfloat16 numbers, 2^-9 to 2^-8 of the moment. A step changes the first moment by
1 - beta1 of its distance to a gradient: from smooth ones it could stand 2 to 4 % away where beta1
is 0.9, and 20 to 40 % where it is 0.99. The second moment could stand 10 to 20 % from its mean
where beta2 is 0.98, and with 0.999 it would never fall.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

DROPPED_BITS = 16  # of float32, which bfloat16 does not have


def in_bfloat16(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, its two moments kept in bfloat16.

    The random bits are a function of the number of updates, of the moment and of the place in the
    tree, so that a run is the same on every mesh and after a restart.
    """

    def init(params: Any) -> Any:
        return _changed(adam.init(params), _to(jnp.bfloat16), _to(jnp.bfloat16))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        exact = _changed(state, _to(jnp.float32), _to(jnp.float32))
        updates, exact = adam.update(grads, exact, params)
        of_mu, of_nu = jax.random.split(jax.random.fold_in(jax.random.key(0), exact.count))
        return updates, _changed(exact, _rounded(of_mu), _rounded(of_nu))

    return optax.GradientTransformation(init, update)


def round_stochastically(value: Float[Array, "*shape"], key: Array) -> Array:
    """float32 to one of the two nearest bfloat16 numbers, so that `value` is the mean of both.

    What is not finite stays so.
    """
    noise = jax.random.bits(key, value.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32) + noise
    kept = (bits >> DROPPED_BITS).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(kept, jnp.bfloat16)
    return jnp.where(jnp.isfinite(value), rounded, value.astype(jnp.bfloat16))


def _rounded(key: Array) -> Callable[[Any], Any]:
    def rounded(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(
            structure,
            [
                round_stochastically(leaf, jax.random.fold_in(key, place))
                for place, leaf in enumerate(leaves)
            ],
        )

    return rounded


def _to(dtype: Any) -> Callable[[Any], Any]:
    return lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _changed(state: Any, mu: Callable[[Any], Any], nu: Callable[[Any], Any]) -> Any:
    return optax.ScaleByAdamState(count=state.count, mu=mu(state.mu), nu=nu(state.nu))
