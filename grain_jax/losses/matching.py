"""One-to-one assignment of region queries to regions, on the device, for a whole batch."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from grain_jax.losses.boxes import cxcywh_to_xyxy, generalized_iou


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
    """The query of each region under the assignment of least total cost (Hungarian algorithm).

    Padded regions get leftover queries; callers mask them. No gradient. Raises ValueError for fewer
    queries than regions.
    """
    num_queries, num_regions = cost.shape[1:]
    if num_queries < num_regions:
        raise ValueError(
            f"{num_queries} region queries cannot be matched one to one with up to {num_regions} "
            "regions; raise model.decoder.num_queries or lower data.max_regions."
        )
    # The same cost for all queries cannot change how the real regions are matched. Without finite
    # numbers the search would not end, and a diverged model has to reach the check for it.
    cost = jnp.where(mask[:, None, :], jax.lax.stop_gradient(cost), 0.0)
    cost = jnp.nan_to_num(cost, nan=0.0, posinf=1e6, neginf=-1e6)
    query, region = jax.vmap(optax.assignment.hungarian_algorithm)(cost)
    return jnp.take_along_axis(query, jnp.argsort(region, axis=-1), axis=-1)
