"""Encodes the real descriptions of a batch only: padding costs the text tower as much as text.

Images have between none and M descriptions, so a batch's B * M slots are partly empty. The real
ones are moved to the front and as many rows as the capacity allows are encoded, a static number. As
long as it suffices the result is exact; what exceeds it is left out of the loss and counted.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer


def capacity(fraction: float, num_slots: int, *, num_parts: int = 1) -> int:
    """Rows encoded out of `num_slots`, rounded up to divide evenly.

    Among the devices of the mesh and, where a batch is encoded in parts, among `num_parts`.
    """
    multiple = num_parts * max(jax.sharding.get_abstract_mesh().size, 1)
    return min(multiple * math.ceil(fraction * num_slots / multiple), num_slots)


def pack(
    tokens: Integer[Array, "N L"], *, rows: int
) -> tuple[Integer[Array, "rows L"], Int[Array, "N"], Bool[Array, "N"]]:
    """The first `rows` real texts (not all zeros), in order; each text's place; which are in."""
    real = (tokens != 0).any(axis=1)
    order = jnp.argsort(~real, stable=True)
    place = jnp.argsort(order)  # inverse of the permutation
    return tokens[order[:rows]], place, real & (place < rows)


def unpack(
    packed: Float[Array, "rows E"], place: Int[Array, "N"], kept: Bool[Array, "N"]
) -> Float[Array, "N E"]:
    """Every text's row from where it was packed; zeros for those left out."""
    found = packed[jnp.minimum(place, packed.shape[0] - 1)]
    return jnp.where(kept[:, None], found, 0.0)
