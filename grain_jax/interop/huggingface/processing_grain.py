"""Image processor of GRAIN: the very pixels that the model was evaluated on, by Pillow alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZES = ("squash", "crop")

Picture = Any  # PIL image, or array [H, W, 3] or [H, W] of uint8


class GrainImageProcessor(BaseImageProcessor):
    """Squashes to a square, or cuts the centre square out ("crop"); then (x / 255 - mean) / std.

    Raises ValueError for unknown settings, and for arrays that are not uint8 pictures.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 224,
        resize: str = "squash",
        interpolation: str = "bicubic",
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if resize not in RESIZES:
            raise ValueError(f"resize={resize!r}; choose one of {RESIZES}.")
        if interpolation not in RESAMPLING:
            raise ValueError(f"interpolation={interpolation!r}; choose one of {sorted(RESAMPLING)}.")
        self.image_size = image_size
        self.resize = resize
        self.interpolation = interpolation
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def preprocess(
        self, images: Picture | Sequence[Picture], return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """`pixel_values` float32 [B, 3, S, S]."""
        several = images if isinstance(images, list | tuple) else [images]
        pixels = np.stack([self._pixels(_rgb(image)) for image in several])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        whole = (0, 0, width, height)
        box = whole if self.resize == "squash" else (left, top, left + side, top + side)
        size = (self.image_size, self.image_size)
        if image.size != size or box != whole:
            image = image.resize(size, RESAMPLING[self.interpolation], box=box)
        pixels = np.asarray(image, np.float32) / 255
        pixels = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        return pixels.transpose(2, 0, 1)


def _rgb(image: Picture) -> Image.Image:
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:  # shown on white
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(
            f"An image array must be uint8 [H, W, 3] or [H, W], got {array.dtype} {array.shape}; "
            "give a PIL image otherwise."
        )
    return Image.fromarray(array).convert("RGB")
