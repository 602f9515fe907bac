"""The images of a folder, listed in one order everywhere, and read with the project's checks."""

import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags, Image

from grain_jax.data.annotation_rows import content_hash
from grain_jax.data.checks import read_image_file
from grain_jax.data.classification.image_folder import read_folder
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.transforms import ImageError, Pixels, decode_image

JPEG_QUALITY = 92


@dataclass
class ImageList:
    """Paths inside a folder, sorted, with "/"; and what is there besides, by reason."""

    images: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class LoadedImage:
    """An image that decodes, and the hash of its file."""

    data: bytes  # of the file
    pixels: Pixels  # RGB uint8 [H, W, 3], upright
    image_hash: str


def list_images(folder: Path) -> ImageList:
    """The images in a folder and its subfolders. Raises ValueError where there are none."""
    if not folder.is_dir():
        raise ValueError(f"--images={folder} is not a folder.")
    content = read_folder(folder)
    listed = ImageList([name for name in content.images if _is_utf8(name)])
    for reason, count in (
        ("name is not UTF-8", len(content.images) - len(listed.images)),
        ("image format is not supported", len(content.unread)),
        ("link that leads nowhere", len(content.broken)),
        ("folder that cannot be read", len(content.denied)),
    ):
        if count:
            listed.skipped[reason] = count
    if not listed.images:
        found = ", ".join(f"{count} {reason}" for reason, count in listed.skipped.items())
        raise ValueError(
            f"--images={folder} has no JPEG, PNG, WebP, GIF, BMP or TIFF in it or its subfolders"
            f"{f' ({found})' if found else ''}."
        )
    return listed


def load_image(name: str, folder: Path) -> LoadedImage:
    """An image of the folder. Raises `SkippedSample` where it cannot be read or decoded."""
    data = read_image_file(name, folder)
    try:
        return LoadedImage(data, decode_image(data), content_hash(data))
    except ImageError as error:
        raise SkippedSample("corrupt image", f"{name}: {error}") from None


def as_jpeg(image: LoadedImage, max_side: int) -> bytes:
    """The image as JPEG in the size of `jpeg_size`: the file itself where it is that already."""
    height, width = image.pixels.shape[:2]
    size = jpeg_size((width, height), max_side)
    if size == (width, height) and _is_upright_jpeg(image.data):
        return image.data
    resized = Image.fromarray(image.pixels)
    if size != resized.size:
        resized = resized.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    resized.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def _is_upright_jpeg(data: bytes) -> bool:
    """Whether every reader sees a JPEG as `decode_image` does: in RGB or gray, not turned."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            return image.format == "JPEG" and image.mode in ("RGB", "L") and upright
    except Exception:  # another format, or EXIF that cannot be read
        return False


def jpeg_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(width, height) with the longer side at most `max_side` pixels (0: any), aspect kept."""
    if not 0 < max_side < max(size):
        return size
    scale = max_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
