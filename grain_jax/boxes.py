"""Boxes: two formats, overlap, in NumPy and in JAX.

`xyxy` is (left, top, right, bottom), `cxcywh` (centre x, centre y, width, height), both in [0, 1]
of the image. Boxes in memory are xyxy; the batch, the box head and the losses have cxcywh, which
DETR predicts.
"""

from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Box = tuple[float, float, float, float]
Boxes = TypeVar("Boxes", Array, np.ndarray)  # [..., 4]

IOU_HIT = 0.5  # from which a predicted box counts as found
UNION_EPS = 1e-4  # added to the union in the losses' IoU, as the official code does


def cxcywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Centre and size to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return _namespace(boxes).concatenate([centre - half, centre + half], axis=-1)


def xyxy_to_cxcywh(boxes: Boxes) -> Boxes:
    """Corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return _namespace(boxes).concatenate([(low + high) / 2, high - low], axis=-1)


def box_to_cxcywh(box_xyxy: Box) -> Box:
    """The same of one box, in Python's numbers."""
    x0, y0, x1, y1 = box_xyxy
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


def box_iou(a_xyxy: Box, b_xyxy: Box) -> float:
    """Intersection over union of two boxes of positive area."""
    width = min(a_xyxy[2], b_xyxy[2]) - max(a_xyxy[0], b_xyxy[0])
    height = min(a_xyxy[3], b_xyxy[3]) - max(a_xyxy[1], b_xyxy[1])
    if height <= 0 or width <= 0:
        return 0.0
    shared = height * width
    area_a, area_b = ((y1 - y0) * (x1 - x0) for x0, y0, x1, y1 in (a_xyxy, b_xyxy))
    return shared / (area_a + area_b - shared)


def pairwise_iou(
    first_xyxy: Float[np.ndarray, "A 4"], second_xyxy: Float[np.ndarray, "B 4"]
) -> Float[np.ndarray, "A B"]:
    """Intersection over union of every pair; 0 where both boxes are empty."""
    low = np.maximum(first_xyxy[:, None, :2], second_xyxy[None, :, :2])
    high = np.minimum(first_xyxy[:, None, 2:], second_xyxy[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=-1)
    first_area = np.clip(first_xyxy[:, 2:] - first_xyxy[:, :2], 0, None).prod(axis=-1)
    second_area = np.clip(second_xyxy[:, 2:] - second_xyxy[:, :2], 0, None).prod(axis=-1)
    return overlap / np.maximum(first_area[:, None] + second_area[None] - overlap, 1e-12)


def smoothed_iou(
    a_xyxy: Float[Array, "*#batch 4"], b_xyxy: Float[Array, "*#batch 4"]
) -> Float[Array, "*batch"]:
    """Intersection over (union + UNION_EPS), one to one; batch axes broadcast."""
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    return intersection / (union + UNION_EPS)


def generalized_iou(
    a_xyxy: Float[Array, "*#batch 4"], b_xyxy: Float[Array, "*#batch 4"]
) -> Float[Array, "*batch"]:
    """GIoU (Rezatofighi et al., 2019), one to one, in about [-1, 1], with the IoU smoothed."""
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    low = jnp.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = jnp.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (high - low).prod(axis=-1)
    hull = jnp.maximum(hull, 1e-12)  # two empty boxes in one place
    return intersection / (union + UNION_EPS) - (hull - union) / hull


def _intersection_and_union(a: Array, b: Array) -> tuple[Array, Array]:
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    intersection = jnp.maximum(high - low, 0.0).prod(axis=-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (a, b))
    return intersection, area_a + area_b - intersection


def _namespace(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else jnp


def best_pairs(
    iou: Float[np.ndarray, "a b"],
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Rows and columns of the one-to-one assignment with the largest sum; n = min(a, b)."""
    from scipy.optimize import linear_sum_assignment  # here: its import takes a command a second

    rows, columns = linear_sum_assignment(iou, maximize=True)
    return rows, columns
