"""Means over what a mask leaves, in the form every loss reports them."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Metric = tuple[Array, Array]  # (sum, weight), both scalar: exact means over any split of the data
Metrics = dict[str, Metric]


def masked_mean(
    values: Float[Array, "*batch"], mask: Bool[Array, "*batch"], *, empty: str = "zero"
) -> tuple[Float[Array, ""], Metric]:
    """Mean of `values` where `mask`, with its (sum, weight).

    Where nothing is left: 0 with zero gradients ("zero"), or 0/0 ("nan", the official behaviour).
    """
    total = jnp.where(mask, values, 0.0).sum()
    count = mask.sum(dtype=jnp.float32)
    divisor = jnp.maximum(count, 1.0) if empty == "zero" else count
    return total / divisor, (total, count)
