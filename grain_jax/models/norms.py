"""LayerNorm for TPUs, whose means are matrix products.

A TPU adds up slowly over the last axis of an array: the two means of a LayerNorm and the two of its
gradient, each a pass of its own, took a sixth of the estimated cycles of ViT-B/16's tower. As
products with a matrix of ones they go to the matrix units, which have time for them
(docs/experiments.md).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grain_jax.models import attention
from grain_jax.models.pallas_attention import LANES


def takes_products(width: int, dtype: Any) -> bool:
    """Whether a LayerNorm over `width` numbers is `norm_by_products`: on TPUs, in bfloat16, of
    whole vectors.
    """
    return attention.is_for_tpu() and dtype == jnp.bfloat16 and width % LANES == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def norm_by_products(
    x: Float[Array, "*rows D"], scale: Float[Array, "D"], bias: Float[Array, "D"], eps: float
) -> Float[Array, "*rows D"]:
    """LayerNorm of the last axis, in the type of `x`, computed in float32.

    The squares whose mean is the variance, and in the gradient what is averaged, are rounded to the
    type of `x` before. The mean itself is exact to float32.
    """
    return _forward(x, scale, bias, eps)[0]


@jax.custom_vjp  # so that a policy of `jax.checkpoint` sees no product that it would keep
def _mean(x: Float[Array, "*rows D"]) -> Float[Array, "*rows 1"]:
    """In float32. Of as many columns as fill a vector, as of one column XLA makes a sum again."""
    width = x.shape[-1]
    ones = jnp.ones((width, LANES), x.dtype)
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, ones, axes, preferred_element_type=jnp.float32)[..., :1] / width


def _mean_forward(x: Array) -> tuple[Array, Array]:
    return _mean(x), x


def _mean_backward(x: Array, dy: Array) -> tuple[Array]:
    return (jnp.broadcast_to(dy / x.shape[-1], x.shape).astype(x.dtype),)


_mean.defvjp(_mean_forward, _mean_backward)


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
    dy = dy.astype(jnp.float32)
    scaled = dy * _along(scale, x)
    across = _mean(scaled.astype(x.dtype))
    along = _mean((scaled * normalized).astype(x.dtype))
    dx = rstd * (scaled - across - normalized * along)
    rows = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), (dy * normalized).sum(axis=rows), dy.sum(axis=rows)


norm_by_products.defvjp(_forward, _backward)
