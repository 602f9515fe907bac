"""Weights in the type that the model computes in, with gradients in it or in float32.

The gradient of a product has the type of its operands. Where a kernel is cast to bfloat16 before
the product, each device rounds its part of the kernel's gradient to bfloat16, and the devices add
up these parts in bfloat16. A weight that stays in float32 up to the product, which is then computed
in bfloat16 all the same, has a gradient that is float32 from the product on (whose sums are float32
in any case) and is summed over the devices in float32: twice the bytes between them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def as_weight(value: Float[Array, "..."], dtype: Any, gradient_dtype: Any) -> Float[Array, "..."]:
    """A parameter as `product` takes it: in `dtype`, or left in the type of its gradient.

    `gradient_dtype`: None for that of `dtype`.
    """
    return value.astype(dtype if gradient_dtype is None else gradient_dtype)


def as_addend(
    value: Float[Array, "..."], shape: tuple[int, ...], dtype: Any, gradient_dtype: Any
) -> Float[Array, "..."]:
    """`value` in `dtype`, to be added to an array of `shape`, whose last axes it has.

    Its gradient is a sum over the others, in `gradient_dtype` (None: in `dtype`). `value` may have
    an axis of 1 for one of them.
    """
    if gradient_dtype is None:
        return jnp.expand_dims(value.astype(dtype), tuple(range(len(shape) - value.ndim)))
    return repeated(value, shape, dtype, gradient_dtype)


def repeated(
    value: Float[Array, "..."], shape: tuple[int, ...], dtype: Any, gradient_dtype: Any
) -> Float[Array, "..."]:
    """As `as_addend`, for each of the other axes of `shape`."""
    if gradient_dtype is None:
        return jnp.broadcast_to(value.astype(dtype), shape)
    return jnp.broadcast_to(value.astype(gradient_dtype), shape).astype(dtype)


def product(x: Float[Array, "*rows I"], kernel: Float[Array, "..."]) -> Float[Array, "*rows O"]:
    """`x` times `kernel`, computed in the type of `x`.

    The first axes of the kernel, as many as have I numbers, are contracted, and the others are the
    features, O numbers together. Its gradient has the type that it is given in.
    """
    if kernel.dtype == x.dtype:
        return x @ _matrix(kernel, x.shape[-1])
    return _mixed(x, kernel)


def _matrix(kernel: Array, num_inputs: int) -> Array:
    return kernel if kernel.ndim == 2 else kernel.reshape(num_inputs, -1)


def _cast_product(x: Array, kernel: Array) -> Array:
    return x @ _matrix(kernel, x.shape[-1]).astype(x.dtype)


# The kernel goes in as it is: of scanned layers nothing but the stack itself is then kept for the
# backward pass.
_mixed = jax.custom_vjp(_cast_product)


def _mixed_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    # Not `_mixed`, in which a policy of `jax.checkpoint` sees no product that it could keep.
    return _cast_product(x, kernel), (x, kernel)


def _mixed_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    matrix = _matrix(kernel, x.shape[-1]).astype(x.dtype)
    dx = jax.lax.dot_general(dy, matrix, (((dy.ndim - 1,), (1,)), ((), ())))
    rows = tuple(range(x.ndim - 1))
    dkernel = jax.lax.dot_general(
        x, dy, ((rows, rows), ((), ())), preferred_element_type=kernel.dtype
    )
    return dx, dkernel.reshape(kernel.shape)


_mixed.defvjp(_mixed_forward, _mixed_backward)
