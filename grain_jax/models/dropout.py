"""Dropout that depends on a row's place in the batch and not on which device has it, or when."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Dropout(nn.Module):
    """Zeros numbers with probability `rate` and scales the others by 1 / (1 - rate).

    The mask of a row is drawn from the module's "dropout" key and the row's number alone. So a
    batch has the same masks whole, in micro-batches, and split over any mesh, and a device draws
    those of its own rows.
    """

    rate: float  # in [0, 1]
    deterministic: bool  # True: returns its input
    num_drawn: int | None = None  # of the last axis; what is beyond them becomes zero

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *shape"], rows: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *shape"]:
        """`rows`: each row's number in the global batch (default: its place in `x`)."""
        if self.deterministic or self.rate == 0.0:
            return x
        if self.rate == 1.0:  # 1 / 0 would make the gradient NaN
            return jnp.zeros_like(x)
        rows = jnp.arange(x.shape[0], dtype=jnp.int32) if rows is None else rows
        key, keep = self.make_rng("dropout"), 1.0 - self.rate
        num_drawn = x.shape[-1] if self.num_drawn is None else self.num_drawn
        others = ((0, 0),) * (x.ndim - 2) + ((0, x.shape[-1] - num_drawn),)

        def mask(row: Array) -> Array:
            shape = (*x.shape[1:-1], num_drawn)
            drawn = jax.random.bernoulli(jax.random.fold_in(key, row), keep, shape)
            return jnp.pad(drawn, others) if num_drawn < x.shape[-1] else drawn

        return jnp.where(jax.vmap(mask)(rows), x / keep, jnp.zeros_like(x))
