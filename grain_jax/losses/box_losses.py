"""The two box losses, and boxes cut to the image."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grain_jax.boxes import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh
from grain_jax.losses.masked_mean import Metrics, masked_mean


def clip_boxes(
    boxes: Float[Array, "*batch 4"],
) -> tuple[Float[Array, "*batch 4"], Bool[Array, "*batch"]]:
    """cxcywh boxes cut to the image, and which of them have an area left. Official: the same."""
    xyxy = jnp.clip(cxcywh_to_xyxy(boxes), 0.0, 1.0)
    return xyxy_to_cxcywh(xyxy), (xyxy[..., 2:] > xyxy[..., :2]).all(axis=-1)


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
