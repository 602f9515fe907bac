"""GIoU of one pair of boxes at a time, independent of the package."""

from grain_jax.boxes import UNION_EPS


def reference_giou(a, b):
    """One pair of xyxy boxes, in Python floats: (IoU, gIoU)."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    intersection = wide * high if wide > 0 and high > 0 else 0.0
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - intersection
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = intersection / (union + UNION_EPS)
    return iou, iou - (hull - union) / max(hull, 1e-12)
