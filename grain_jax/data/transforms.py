"""Turn images into squares of uint8, and transform their boxes. On the host: numpy and Pillow.

A `Window` is the part of the image that becomes the square, in fractions of the image; boxes are
transformed by it alone. Normalisation (mean, std) happens on the device.
"""

import dataclasses
import io
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from grain_jax.boxes import Box, box_iou
from grain_jax.config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from grain_jax.config.schema import Interpolation, Resize
from grain_jax.data.captions import normalize_text
from grain_jax.data.records import Region
from grain_jax.data.uncompressed_png import view_uncompressed

MAX_PIXELS = 64_000_000  # of one image; more is refused as a decompression bomb
MIN_VISIBLE = 0.25  # fraction of a box's area; a region with less left after a crop is dropped
# The formats that are opened. Pillow reads more, but runs Ghostscript, an external program, on EPS.
# Its JPEG reader also reads MPO (a JPEG with further images behind it).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
RESAMPLING = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}
RESIZES = get_args(Resize)

Pixels = UInt8[np.ndarray, "H W 3"]
Square = UInt8[np.ndarray, "S S 3"]


class ImageError(ValueError):
    """An image that cannot be decoded: truncated, not an image, or too large."""


@dataclass(frozen=True)
class Window:
    """The part of an image that is kept, in fractions of its size, and whether it is mirrored."""

    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0
    flip: bool = False

    def box(self, box_xyxy: Box) -> Box | None:
        """A box of the image as a box of the window, clipped to it, both xyxy in [0, 1].

        None where less than `MIN_VISIBLE` of its area is in the window.
        """
        if self == FULL:
            return box_xyxy
        x0, x1 = ((x - self.left) / self.width for x in (box_xyxy[0], box_xyxy[2]))
        y0, y1 = ((y - self.top) / self.height for y in (box_xyxy[1], box_xyxy[3]))
        if self.flip:
            x0, x1 = 1.0 - x1, 1.0 - x0
        clipped = max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0)
        visible = max(clipped[3] - clipped[1], 0.0) * max(clipped[2] - clipped[0], 0.0)
        if visible <= 0 or visible < MIN_VISIBLE * (y1 - y0) * (x1 - x0):
            return None
        return clipped

    def to_image(self, boxes_xyxy: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 4"]:
        """Boxes of the window as boxes of the image, both xyxy in [0, 1]: the inverse of `box`."""
        x0, y0, x1, y1 = np.moveaxis(boxes_xyxy, -1, 0)
        if self.flip:
            x0, x1 = 1 - x1, 1 - x0
        xs = [self.left + x * self.width for x in (x0, x1)]
        ys = [self.top + y * self.height for y in (y0, y1)]
        return np.stack([xs[0], ys[0], xs[1], ys[1]], axis=-1)


FULL = Window()


def decode_image(image: bytes | Pixels) -> Pixels:
    """RGB uint8 [H, W, 3] of encoded bytes, upright (EXIF orientation applied).

    An array is returned unchanged, and an uncompressed PNG as a view of its bytes. CMYK, Lab, gray,
    16 bit and palette images are converted; transparent pixels become white; of several frames or
    pages the first is used. Colour profiles and PNG's gamma are not applied. Raises `ImageError`
    where the image cannot be decoded.
    """
    if isinstance(image, bytes):
        stored = view_uncompressed(image)
        return np.asarray(_open_rgb(image)) if stored is None else stored
    return image


# First bytes of files that are often named like an image, and what to do about them.
_NOT_IMAGES = (
    (rb"\s*<(!doctype html|html|head|body)", "an HTML page, so the download failed"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", "an SVG drawing"),
    (rb"\s*<\?xml", "an XML text, so the download failed"),
    (rb"\s*[{\[]", "a JSON text, so the download failed"),
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the files with `git lfs pull`"),
    (rb"....ftyp(avif|avis)", "an AVIF image; convert it to JPEG or PNG"),
    (rb"....ftyp", "a HEIC image or a video; convert it to JPEG or PNG"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image; convert it to JPEG or PNG"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image; convert it to JPEG or PNG"),
    (rb"%PDF", "a PDF document"),
    (rb"%!PS", "an EPS drawing"),
    (rb"8BPS", "a Photoshop file; convert it to JPEG or PNG"),
    (rb"\x1f\x8b", "gzip-compressed; decompress it"),
    (rb"PK\x03\x04", "a zip archive; unpack it"),
    (rb"\0+\Z", "all zero bytes, so the copy or download failed"),
)


def _not_an_image(data: bytes) -> str:
    known = ", ".join(IMAGE_FORMATS)
    if not data:
        return "The file is empty (0 bytes)."
    start = data[:1024]
    for pattern, what in _NOT_IMAGES:
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return f"{len(data)} bytes are not an image of these: {known}. It is {what}."
    return f"{len(data)} bytes are not an image of these: {known}."


def _open(data: bytes) -> Image.Image:
    """The image with only its header read."""
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(_not_an_image(data)) from error
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise ImageError(f"Cannot read the image: {type(error).__name__}: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels are more than the {MAX_PIXELS} allowed.")
    return image


_IMAGE_WIDTH, _IMAGE_LENGTH, _BITS_PER_SAMPLE, _PHOTOMETRIC = 256, 257, 258, 262  # TIFF tags
_TURNS = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata, common on the web, does not affect the pixels
        return 1


def _open_rgb(data: bytes) -> Image.Image:
    return upright_rgb(_open(data))


def upright_rgb(image: Image.Image) -> Image.Image:
    """RGB with the EXIF orientation applied, as `decode_image` gives it. Raises `ImageError`."""
    try:
        # The orientation is read after loading: Pillow turns a TIFF upright while it loads and
        # removes the tag, so reading it before would apply it twice.
        image.load()
        turn = _TURNS.get(_orientation(image))
        image = _to_rgb(image)
        return image if turn is None else image.transpose(turn)
    except ImageError:
        raise
    except Exception as error:  # as above
        raise ImageError(f"Cannot decode the image: {type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image converted to RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):  # which Pillow would clip instead of scaling
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> UInt8[np.ndarray, "H W"]:
    """Gray of more than 8 bits scaled to 8 by its bit depth, not by its content.

    Files of 32 bits do not record which value is white. It is taken to be 1 for fractions up to 1,
    else 255, else 65,535. Raises `ImageError` for values outside these ranges.
    """
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if image.mode.startswith("I;16") or image.format == "PNG":
        bits = min(int(tags.get(_BITS_PER_SAMPLE, (16,))[0]), 16)
        levels = values.astype(np.int64)
        if tags.get(_PHOTOMETRIC) == 0:  # 0 is white; Pillow inverts only up to 8 bits
            levels = (1 << bits) - 1 - levels
        gray = levels >> (bits - 8)
        if "transparency" in image.info:
            gray = np.where(values == image.info["transparency"], 255, gray)
        return gray.clip(0, 255).astype(np.uint8)
    low, high = float(values.min()), float(values.max())  # NaN where there is one
    if not (math.isfinite(low) and math.isfinite(high)) or high > 65_535:
        raise ImageError(
            f"Its 32 bit values range from {low:g} to {high:g}, expected 0 to 1, 255 or 65535; "
            "convert it to 8 or 16 bits."
        )
    white = 1.0 if image.mode == "F" and high <= 1 else 255.0 if high <= 255 else 65_535.0
    return (values.astype(np.float64) * (255.0 / white)).clip(0, 255).round().astype(np.uint8)


def fit_image(
    image: bytes | Pixels, size: int, *, interpolation: str, window: Window | None = None
) -> Square:
    """The window of the image (None: all of it, squashed) as uint8 [size, size, 3].

    The pixels of torchvision's `Resize((size, size))` on a PIL image, antialiased. Cropping and
    resizing are one step, so a crop costs no more than a resize. Raises `ImageError` where the
    image cannot be decoded.
    """
    window = window or FULL
    whole = dataclasses.replace(window, flip=False) == FULL
    if isinstance(image, bytes) and (stored := view_uncompressed(image)) is not None:
        image = stored
    if isinstance(image, np.ndarray):
        if whole and image.shape[:2] == (size, size):
            return image[:, ::-1] if window.flip else image
        opened = Image.fromarray(image)
    else:
        opened = _open_rgb(image)
    width, height = opened.size
    left, top = window.left * width, window.top * height
    right, bottom = left + window.width * width, top + window.height * height
    area = (left, top, min(right, width), min(bottom, height))
    pixels = np.asarray(opened.resize((size, size), RESAMPLING[interpolation], box=area))
    return pixels[:, ::-1] if window.flip else pixels


def image_shape(image: bytes | Pixels) -> tuple[int, int]:
    """(height, width) of the upright image, without decoding it. Raises `ImageError`."""
    if isinstance(image, bytes) and (stored := view_uncompressed(image)) is not None:
        image = stored
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    opened = _open(image)
    width, height = opened.size
    if opened.format == "TIFF":
        # As stored; whether `size` is upright already depends on Pillow's version.
        tags = getattr(opened, "tag_v2", {})
        width, height = tags[_IMAGE_WIDTH], tags[_IMAGE_LENGTH]
    swapped = _orientation(opened) in (5, 6, 7, 8)
    return (width, height) if swapped else (height, width)


def center_window(height: int, width: int) -> Window:
    """The largest centred square of an image, which evaluation uses with resize "crop"."""
    side = min(height, width)
    return Window(
        top=(height - side) / 2 / height,
        left=(width - side) / 2 / width,
        height=side / height,
        width=side / width,
    )


def random_window(height: int, width: int, *, min_area: float, rng: random.Random) -> Window:
    """A random square in the image, of `min_area` to 1 times the area of the largest square."""
    side = min(height, width) * rng.uniform(min_area, 1.0) ** 0.5
    return Window(
        top=rng.random() * (height - side) / height,
        left=rng.random() * (width - side) / width,
        height=side / height,
        width=side / width,
    )


def training_window(config: DataConfig, image: bytes | Pixels, rng: random.Random) -> Window:
    """The random crop and flip of one training sample.

    A flip mirrors boxes but not words: with "left" or "right" in the texts, leave
    `config.flip_probability` at 0. Raises `ImageError` where the image cannot be read.
    """
    flip = config.flip_probability > 0 and rng.random() < config.flip_probability
    if config.resize == "squash":
        return dataclasses.replace(FULL, flip=flip) if flip else FULL
    height, width = image_shape(image)
    window = random_window(height, width, min_area=config.crop_min_area, rng=rng)
    return dataclasses.replace(window, flip=flip)


def select_regions(
    regions: Sequence[Region],
    *,
    limit: int,
    nms_iou: float = 1.0,
    unique_descriptions: bool = False,
) -> list[Region]:
    """The `limit` regions with the highest scores, best first, as in the official code.

    Equal scores keep their order.

    Args:
        nms_iou: a region is dropped if its IoU with a better kept region is above this, for any
            description; 1 drops none.
        unique_descriptions: keep only the best region of each description, compared by
            `normalize_text`.
    """
    kept: list[Region] = []
    seen: set[str] = set()
    for region in sorted(regions, key=lambda region: -region.score):
        if len(kept) == limit:
            break
        text = normalize_text(region.description)
        if unique_descriptions and text in seen:
            continue
        if nms_iou < 1.0 and any(
            box_iou(region.box_xyxy, other.box_xyxy) > nms_iou for other in kept
        ):
            continue
        kept.append(region)
        seen.add(text)
    return kept


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of images in evaluation, stored with a checkpoint.

    Resize "squash" ignores the aspect, "crop" takes the centre square. Raises ValueError for an
    unknown `resize` or `interpolation`.
    """

    image_size: int = 224
    resize: str = "squash"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB in [0, 1], applied on the device
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise ValueError(f"Unknown resize {self.resize!r}; choose one of {RESIZES}.")
        if self.interpolation not in RESAMPLING:
            raise ValueError(
                f"Unknown interpolation {self.interpolation!r}; choose one of {sorted(RESAMPLING)}."
            )

    @classmethod
    def from_config(cls, config: DataConfig, image_size: int) -> "Preprocessing":
        return cls(
            image_size=image_size,
            resize=config.resize,
            interpolation=config.interpolation,
            mean=config.mean,
            std=config.std,
        )

    def window(self, image: bytes | Pixels) -> Window:
        """The part of the image that is used, by which its boxes are transformed too."""
        return FULL if self.resize == "squash" else center_window(*image_shape(image))

    def __call__(self, image: bytes | Pixels) -> Square:
        """The image as uint8 [S, S, 3]. Raises `ImageError` where it cannot be decoded."""
        window = self.window(image)
        return fit_image(image, self.image_size, interpolation=self.interpolation, window=window)

    def spec(self) -> dict[str, Any]:
        """JSON, for `from_spec`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "Preprocessing":
        """Inverse of `spec`. Raises ValueError for unknown or missing fields."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(spec) != names:
            raise ValueError(f"Preprocessing needs the fields {sorted(names)}, got {sorted(spec)}.")
        return cls(**{**spec, "mean": tuple(spec["mean"]), "std": tuple(spec["std"])})
