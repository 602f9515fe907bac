"""Regions of images: the best of them for each text, and boxes in pixels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from grain_jax.data.transforms import Window
from grain_jax.inference.results import Box, GroundedText, ImageEmbeddings
from grain_jax.zero_shot.method import ClassBanks
from grain_jax.zero_shot.scorers import ClassTexts
from grain_jax.zero_shot.text_kinds import DESCRIPTIONS, REGIONS


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


def grounded_texts(
    embedded: ImageEmbeddings,
    n: int,
    texts: ClassTexts,
    banks: ClassBanks,
    k: int,
    *,
    alpha: float,
) -> tuple[GroundedText, ...]:
    """The texts of class k in image n, highest-scoring first."""
    if alpha == 1 or embedded.regions is None:
        whole = banks[DESCRIPTIONS].of_class(k) @ embedded.image[n]
        view = pixel_box(embedded.crop_xyxy[n])
        seen = [
            GroundedText(text, float(cosine), None, view)
            for text, cosine in zip(texts.descriptions[k], whole, strict=True)
        ]
    else:
        cosines = embedded.regions[n] @ banks[REGIONS].of_class(k).T
        boxes = None if embedded.boxes_xyxy is None else embedded.boxes_xyxy[n]
        seen = best_regions(texts.regions[k], cosines, boxes)
    return tuple(sorted(seen, key=lambda one: -one.cosine))
