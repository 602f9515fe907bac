"""How an image is placed on the canvas that a detector sees, and how boxes are moved back.

Every detector resizes the image and puts it into the top left corner of a canvas; what is left of
the canvas is black. Predicted boxes are fractions of the canvas, so they are divided by the
fractions of it that the image covers (its extent). To take them for fractions of the image is the
fault behind most reports of shifted boxes: OWLv2 pads to a square, and a box of a wide image comes
out too high.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from grain_jax.data.transforms import RESAMPLING, Pixels

OFFICIAL_SIDE = 224  # to which GRAIN's annotation code squashes an image before OWLv2 sees it


@dataclass(frozen=True)
class PreparedImage:
    """An image as a detector sees it."""

    pixels: UInt8[np.ndarray, "H W 3"]  # the canvas
    extent: tuple[float, float] = (1.0, 1.0)  # fractions of its width and height that are image


def canvas_to_image(
    boxes_xyxy: Float[np.ndarray, "*n 4"], extent: tuple[float, float]
) -> Float[np.ndarray, "*n 4"]:
    """Boxes in fractions of the canvas as boxes in fractions of the image, not clipped.

    A box of the black part of the canvas comes out beyond 1.
    """
    return boxes_xyxy / np.asarray([*extent, *extent], boxes_xyxy.dtype)


@dataclass(frozen=True)
class Squash:
    """The whole canvas, whatever the aspect: OWL-ViT.

    `via`: side of a square to which the image is squashed first. GRAIN's annotation code does so
    with OWLv2 (box_supervision.py: 224 pixels, then 960 without padding).
    """

    height: int
    width: int
    interpolation: str = "bicubic"
    via: int | None = None

    def __call__(self, image: Pixels) -> PreparedImage:
        opened = Image.fromarray(image)
        if self.via is not None:
            opened = opened.resize((self.via, self.via), Image.Resampling.BICUBIC)
        return PreparedImage(_resized(opened, self.width, self.height, self.interpolation))


@dataclass(frozen=True)
class PadToSquare:
    """The aspect is kept; black at the right or at the bottom makes up the square: OWLv2."""

    side: int
    interpolation: str = "bilinear"

    def __call__(self, image: Pixels) -> PreparedImage:
        height, width = image.shape[:2]
        scale = self.side / max(height, width)
        # The extent is what was drawn, so that rounding to whole pixels moves no box.
        drawn_height, drawn_width = (max(1, round(n * scale)) for n in (height, width))
        canvas = np.zeros((self.side, self.side, 3), np.uint8)
        canvas[:drawn_height, :drawn_width] = _resized(
            Image.fromarray(image), drawn_width, drawn_height, self.interpolation
        )
        return PreparedImage(canvas, (drawn_width / self.side, drawn_height / self.side))


@dataclass(frozen=True)
class ShortestEdge:
    """The aspect is kept, the shorter side is `shortest` unless the longer would exceed `longest`:

    Grounding DINO, as DETR. The canvas has the size of the image.
    """

    shortest: int
    longest: int
    interpolation: str = "bilinear"

    def __call__(self, image: Pixels) -> PreparedImage:
        height, width = self.size(image.shape[0], image.shape[1])
        return PreparedImage(_resized(Image.fromarray(image), width, height, self.interpolation))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the canvas, rounded as DETR rounds."""
        short, long = min(height, width), max(height, width)
        target: float = self.shortest
        if long / short * self.shortest > self.longest:
            target = self.longest * short / long
        new_short, new_long = max(1, round(target)), max(1, int(target * long / short))
        return (new_short, new_long) if height <= width else (new_long, new_short)


Placement = Squash | PadToSquare | ShortestEdge


def _resized(image: Image.Image, width: int, height: int, interpolation: str) -> np.ndarray:
    if image.size == (width, height):
        return np.asarray(image)
    return np.asarray(image.resize((width, height), RESAMPLING[interpolation]))
