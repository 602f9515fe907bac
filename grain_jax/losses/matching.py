"""One-to-one assignment of region queries to regions, on the device, for a whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from grain_jax.boxes import cxcywh_to_xyxy, generalized_iou

MAX_SUBSET_REGIONS = 8  # 2^8 subsets an image; beyond, the Hungarian algorithm


def matching_cost(
    predicted: Float[Array, "B Q 4"],
    target: Float[Array, "B M 4"],
    *,
    l1_cost: float,
    giou_cost: float,
) -> Float[Array, "B Q M"]:
    """l1_cost * L1 - giou_cost * gIoU between every query's and every region's cxcywh box."""
    query, region = predicted[:, :, None, :], target[:, None, :, :]
    l1 = jnp.abs(query - region).sum(axis=-1)
    return l1_cost * l1 - giou_cost * generalized_iou(cxcywh_to_xyxy(query), cxcywh_to_xyxy(region))


def match(cost: Float[Array, "B Q M"], mask: Bool[Array, "B M"]) -> Int[Array, "B M"]:
    """The query of each region under the assignment of least total cost. Exact; no gradient.

    Padded regions get leftover queries; callers mask them. Raises ValueError for fewer queries than
    regions.
    """
    num_queries, num_regions = cost.shape[1:]
    if num_queries < num_regions:
        raise ValueError(
            f"{num_queries} region queries cannot be matched one to one with up to {num_regions} "
            "regions; raise model.decoder.num_queries or lower data.max_regions."
        )
    # The same cost for all queries cannot change how the real regions are matched. Without finite
    # numbers a search might not end, and a diverged model has to reach the check for it.
    cost = jnp.where(mask[:, None, :], jax.lax.stop_gradient(cost), 0.0)
    cost = jnp.nan_to_num(cost, nan=0.0, posinf=1e6, neginf=-1e6)
    if num_regions <= MAX_SUBSET_REGIONS:
        return _by_subsets(cost)
    query, region = jax.vmap(optax.assignment.hungarian_algorithm)(cost)
    return jnp.take_along_axis(query, jnp.argsort(region, axis=-1), axis=-1)


def _by_subsets(cost: Float[Array, "B Q M"]) -> Int[Array, "B M"]:
    """Dynamic programme over the subsets of regions served so far, one query after the other.

    For few regions it beats the Hungarian algorithm, whose loops end by a look at the data: each
    turn would be a collective of all devices, and on a GPU a wait of the host.
    """
    batch, num_queries, num_regions = cost.shape
    subsets, bits = np.arange(2**num_regions), 1 << np.arange(num_regions)
    inside = (subsets & bits[:, None]) > 0  # [M, S]
    without = np.where(inside, subsets ^ bits[:, None], 0)  # [M, S]
    best = jnp.broadcast_to(jnp.where(subsets[None] == 0, 0.0, jnp.inf), (batch, len(subsets)))
    choices = []
    for q in range(num_queries):
        serve = jnp.where(inside[None], best[:, without] + cost[:, q, :, None], jnp.inf)
        options = jnp.concatenate([serve, best[:, None]], axis=1)  # a region, or none: [B, M+1, S]
        choices.append(options.argmin(axis=1))
        best = options.min(axis=1)

    left = jnp.full((batch, 1), subsets[-1])
    query = jnp.zeros((batch, num_regions), jnp.int32)
    for q in reversed(range(num_queries)):
        chosen = jnp.take_along_axis(choices[q], left, axis=1) == np.arange(num_regions)[None]
        query = jnp.where(chosen, q, query)
        left = left - jnp.where(chosen, bits[None], 0).sum(axis=1, keepdims=True)
    return query
