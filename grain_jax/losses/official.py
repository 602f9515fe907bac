"""The two bugs of the official loss that change training, for `loss.variant = "official"`.

Golden tensors of the official code are compared with them; nobody else should want them. What is
official by choice and not by mistake has a setting of its own.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# A batch without boxes: a loss of 0, or the official 0/0. The argument `empty` of `masked_mean`.
EMPTY_BATCH = {"corrected": "zero", "official": "nan"}


def shifted_labels(
    region_mask: Bool[Array, "B M"], matched: Bool[Array, "B M"]
) -> Int[Array, "B M"]:
    """The description slot that the official code gives each matched region.

    It drops degenerate boxes (`region_mask` but not `matched`) from the targets, yet numbers the
    rest through all descriptions of the image: the n-th good box gets the n-th description, which
    is the wrong one after a degenerate box.
    """
    rank = jnp.cumsum(matched, axis=1) - 1
    real_first = jnp.argsort(~region_mask, axis=1, stable=True)
    return jnp.take_along_axis(real_first, jnp.maximum(rank, 0), axis=1)
