"""Regions of images: the best of them for each text, and boxes in pixels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from grain_jax.data.transforms import Window
from grain_jax.inference.results import Box, GroundedText


def best_regions(
    texts: Sequence[str],
    cosines: Float[np.ndarray, "Q T"],
    boxes_xyxy: Float[np.ndarray, "Q 4"] | None,
) -> list[GroundedText]:
    """Each text with the region most similar to it.

    `boxes_xyxy`: None where the model's boxes were never trained.
    """
    queries = cosines.argmax(axis=0)
    boxes = None if boxes_xyxy is None else [pixel_box(boxes_xyxy[query]) for query in queries]
    return [
        GroundedText(
            text, float(cosines[query, t]), int(query), None if boxes is None else boxes[t]
        )
        for t, (text, query) in enumerate(zip(texts, queries, strict=True))
    ]


def pixel_box(xyxy: Float[np.ndarray, "4"]) -> Box:
    """A box of an array as numbers of Python."""
    x0, y0, x1, y1 = xyxy.tolist()
    return x0, y0, x1, y1


def to_pixels(
    squares_xyxy: Float[np.ndarray, "N Q 4"],
    windows: Sequence[Window],
    sizes: Int[np.ndarray, "N 2"],
) -> Float[np.ndarray, "N Q 4"]:
    """Boxes in [0, 1] of the squares to pixels of the images of these heights and widths."""
    boxes = np.empty_like(squares_xyxy)
    for n, (window, (height, width)) in enumerate(zip(windows, sizes.tolist(), strict=True)):
        scale = np.array([width, height, width, height], np.float32)
        boxes[n] = window.to_image(squares_xyxy[n]) * scale
    return boxes
