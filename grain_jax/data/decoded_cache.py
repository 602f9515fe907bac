"""`prepare --decoded_cache`: images stored as pixels, so that training decodes no JPEG."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from grain_jax.config import DataConfig
from grain_jax.data.mixture import Mixture
from grain_jax.data.records import Source
from grain_jax.data.transforms import fit_image
from grain_jax.data.uncompressed_png import MAX_WIDTH, encode_uncompressed, uncompressed_size

INTERPOLATION = "bicubic"  # the default of `data.interpolation`
MAX_ASPECT = 4  # long side of a stored image, in `side`s; longer images are shrunk further
MAX_SIDE = MAX_WIDTH // MAX_ASPECT


@dataclass(frozen=True)
class DecodedCache:
    """The size that images are stored in.

    `square`: every image is squashed to side x side, as `data.resize = "squash"` does. Else the
    aspect is kept, the short side becomes `side`, and smaller images stay as they are.
    """

    side: int  # pixels
    square: bool = False

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.side}x{self.side}" if self.square else str(self.side)

    @classmethod
    def parse(cls, text: str) -> "DecodedCache":
        """Inverse of `str`. Raises ValueError."""
        found = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text.strip())
        if found is None or (found[2] or found[1]) != found[1] or int(found[1]) > MAX_SIDE:
            raise ValueError(
                f"{text!r} should be a number of pixels up to {MAX_SIDE}, as 224 for images of "
                "that short side, or 224x224 for squares"
            )
        return cls(int(found[1]), square=found[2] is not None)

    @property
    def sentence(self) -> str:
        """The size in words."""
        if self.square:
            return f"squashed to {self.side} x {self.side} pixels"
        return f"with a short side of at most {self.side} pixels"

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image is stored in."""
        if self.square:
            return self.side, self.side
        short, long = sorted((height, width))
        scale = min(self.side / short, MAX_ASPECT * self.side / long)
        if scale >= 1:
            return height, width
        return max(1, round(height * scale)), max(1, round(width * scale))

    def num_bytes(self, height: int, width: int) -> int:
        """Bytes of an image of this size, stored."""
        return uncompressed_size(*self.shape(height, width))

    def encode(self, pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
        """The bytes to store, an uncompressed PNG."""
        if self.square:
            return encode_uncompressed(fit_image(pixels, self.side, interpolation=INTERPOLATION))
        height, width = self.shape(*pixels.shape[:2])
        if (height, width) != pixels.shape[:2]:
            image = Image.fromarray(pixels)
            pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        return encode_uncompressed(pixels)


@runtime_checkable
class KnowsDecodedCaches(Protocol):
    """A source that knows how its images are stored."""

    @property
    def decoded_caches(self) -> tuple[DecodedCache, ...]: ...


def decoded_caches(source: Source) -> tuple[DecodedCache, ...]:
    """The sizes that images of the source are stored in; () where they are encoded, or unknown."""
    if isinstance(source, Mixture):
        return tuple(dict.fromkeys(c for part in source.sources for c in decoded_caches(part)))
    return source.decoded_caches if isinstance(source, KnowsDecodedCaches) else ()


def cache_notes(*sources: Source, data: DataConfig, image_size: int) -> list[str]:
    """Notes on stored sizes that do not fit the run, of the images to train and to evaluate on.

    Raises ValueError where the stored images have lost the aspect that `data.resize` keeps.
    """
    caches = dict.fromkeys(cache for source in sources for cache in decoded_caches(source))
    return [note for cache in caches for note in _notes(cache, data, image_size)]


def _notes(cache: DecodedCache, data: DataConfig, image_size: int) -> Iterator[str]:
    stored = f"images are stored {cache.sentence} (prepare --decoded_cache={cache})"
    if data.resize == "crop" and cache.square:
        raise ValueError(
            f'{stored}, and data.resize = "crop" keeps an aspect that they have lost; set '
            f'data.resize="squash", or prepare them with --decoded_cache={cache.side}.'
        )
    if image_size > cache.side:
        yield (
            f"{stored}, and model.image_size = {image_size} enlarges them; prepare them with "
            f"--decoded_cache={DecodedCache(min(image_size, MAX_SIDE), cache.square)} to see as "
            "much as it can"
        )
    elif data.resize == "crop" and cache.side * math.sqrt(data.crop_min_area) < image_size:
        smallest = int(cache.side * math.sqrt(data.crop_min_area))
        whole = min(math.ceil(image_size / math.sqrt(data.crop_min_area)), MAX_SIDE)
        yield (
            f"{stored}, so random crops have {smallest} to {cache.side} pixels a side, and those "
            f"below model.image_size = {image_size} are enlarged; --decoded_cache={whole} keeps "
            "enough for all"
        )
    if cache.square and data.interpolation != INTERPOLATION and image_size == cache.side:
        yield (
            f"{stored} by {INTERPOLATION} interpolation, so data.interpolation = "
            f"{data.interpolation!r} changes none of these"
        )
