"""Boxes in relative image coordinates: formats, overlap, and the two box losses.

`cxcywh` is (centre x, centre y, width, height), `xyxy` (left, top, right, bottom), all in [0, 1].
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grain_jax.losses.means import Metrics, masked_mean

UNION_EPS = 1e-4  # added to the union in IoU, as the official code does


def cxcywh_to_xyxy(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Centre and size to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def xyxy_to_cxcywh(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def clip_boxes(
    boxes: Float[Array, "*batch 4"],
) -> tuple[Float[Array, "*batch 4"], Bool[Array, "*batch"]]:
    """cxcywh boxes cut to the image, and which of them have an area left. Official: the same."""
    xyxy = jnp.clip(cxcywh_to_xyxy(boxes), 0.0, 1.0)
    return xyxy_to_cxcywh(xyxy), (xyxy[..., 2:] > xyxy[..., :2]).all(axis=-1)


def box_iou(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "*batch"]:
    """Intersection over union of xyxy boxes, one to one; batch axes broadcast."""
    intersection, union = _overlap(a, b)
    return intersection / (union + UNION_EPS)


def generalized_iou(
    a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]
) -> Float[Array, "*batch"]:
    """gIoU (Rezatofighi et al., 2019) of xyxy boxes, one to one, in about [-1, 1]."""
    intersection, union = _overlap(a, b)
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).prod(axis=-1)
    hull = jnp.maximum(hull, 1e-12)  # two empty boxes in one place
    return intersection / (union + UNION_EPS) - (hull - union) / hull


def _overlap(a: Array, b: Array) -> tuple[Array, Array]:
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    intersection = jnp.maximum(high - low, 0.0).prod(axis=-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (a, b))
    return intersection, area_a + area_b - intersection


def box_loss(
    predicted: Float[Array, "B M 4"],
    target: Float[Array, "B M 4"],
    mask: Bool[Array, "B M"],
    *,
    empty: str = "zero",
) -> tuple[Float[Array, ""], Metrics]:
    """L1 (summed over 4 coordinates) plus 1 - gIoU, means over the real pairs of cxcywh boxes.

    `empty`: the loss of a batch without boxes is 0 ("zero") or, as official, 0/0 ("nan").
    """
    predicted_xyxy, target_xyxy = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target)
    l1, l1_metric = masked_mean(jnp.abs(predicted - target).sum(axis=-1), mask, empty=empty)
    giou, giou_metric = masked_mean(
        1 - generalized_iou(predicted_xyxy, target_xyxy), mask, empty=empty
    )
    return l1 + giou, {"box_l1": l1_metric, "box_giou": giou_metric}
