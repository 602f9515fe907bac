"""LayerNorm for TPUs, whose means are matrix products.

A TPU adds up slowly over the last axis of an array. A LayerNorm has two means and its gradient two
more, each a pass of its own; as products with a matrix they go to the matrix units, which have time
for them: of ViT-B/16's tower a tenth of the estimated cycles (docs/experiments.md).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grain_jax.models import attention
from grain_jax.models.pallas_attention import LANES


def takes_products(x: Array, dtype: Any) -> bool:
    """Whether a LayerNorm of `x` that computes in `dtype` is `norm_by_products`: on TPUs, where
    both are bfloat16 and `x` has whole vectors.
    """
    half = x.dtype == dtype == jnp.bfloat16
    return half and x.shape[-1] % LANES == 0 and attention.is_for_tpu()


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def norm_by_products(
    x: Float[Array, "*rows D"], scale: Float[Array, "D"], bias: Float[Array, "D"], eps: float
) -> Float[Array, "*rows D"]:
    """LayerNorm of the last axis, in the type of `x`, computed in float32.

    Mean of `x` and mean of the gradient are exact to float32. The squares whose mean is the
    variance, and the product of gradient and result, are rounded to the type of `x` before they are
    averaged. It has no forward-mode derivative, and within a `shard_map` scale and bias have to
    vary over the same axes as `x`.
    """
    return _forward(x, scale, bias, eps)[0]


def _mean(x: Float[Array, "*rows D"]) -> Float[Array, "*rows 1"]:
    return mean_by_product(x, jnp.ones((x.shape[-1], 1), x.dtype))


def _weighted_mean(
    x: Float[Array, "*rows D"], weights: Float[Array, "D"]
) -> Float[Array, "*rows 1"]:
    """Of `x` times `weights`, which are float32: of three columns in bfloat16, 8 bits each."""
    columns = []
    for _ in range(1 if x.dtype == jnp.float32 else 3):
        columns.append(weights.astype(x.dtype))
        weights = weights - columns[-1].astype(jnp.float32)
    return mean_by_product(x, jnp.stack(columns, axis=1))


@jax.custom_vjp  # so that a policy of `jax.checkpoint` sees no product that it would keep
def mean_by_product(
    x: Float[Array, "*rows D"], columns: Float[Array, "D n"]
) -> Float[Array, "*rows 1"]:
    """Mean over the last axis of `x` times the sum of n columns, in float32, by one product.

    The product has as many columns as fill a vector: of one alone XLA makes a sum again.
    """
    num_columns = columns.shape[1]
    padded = jnp.pad(columns, ((0, 0), (0, LANES - num_columns)))
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    products = jax.lax.dot_general(x, padded, axes, preferred_element_type=jnp.float32)
    return products[..., :num_columns].sum(axis=-1, keepdims=True) / x.shape[-1]


def _mean_forward(x: Array, columns: Array) -> tuple[Array, tuple[Array, Array]]:
    return mean_by_product(x, columns), (x, columns)


def _mean_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, columns = kept
    dy = dy / x.shape[-1]
    weights = columns.astype(jnp.float32).sum(axis=1)
    dcolumn = (dy * x.astype(jnp.float32)).sum(axis=tuple(range(x.ndim - 1)))
    dcolumns = jnp.broadcast_to(dcolumn[:, None], columns.shape)
    return (dy * _along(weights, x)).astype(x.dtype), dcolumns.astype(columns.dtype)


mean_by_product.defvjp(_mean_forward, _mean_backward)


def _along(row: Array, x: Array) -> Array:
    return row.reshape((1,) * (x.ndim - 1) + row.shape)


def _forward(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, Any]:
    mean = _mean(x)
    centred = x.astype(jnp.float32) - mean
    rstd = jax.lax.rsqrt(_mean(jnp.square(centred).astype(x.dtype)) + eps)
    y = centred * rstd * _along(scale, x) + _along(bias, x)
    return y.astype(x.dtype), (x, scale, mean, rstd)


def _backward(eps: float, kept: Any, dy: Array) -> tuple[Array, Array, Array]:
    x, scale, mean, rstd = kept
    normalized = (x.astype(jnp.float32) - mean) * rstd
    across = _weighted_mean(dy, scale)
    dy = dy.astype(jnp.float32)
    # Without its mean, as what is rounded in the next line would else be large beside what is left.
    scaled = dy * _along(scale, x) - across
    along = _mean((scaled * normalized).astype(x.dtype))
    dx = rstd * (scaled - normalized * along)
    rows = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), (dy * normalized).sum(axis=rows), dy.sum(axis=rows)


norm_by_products.defvjp(_forward, _backward)
