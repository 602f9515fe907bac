"""Checks that turn an imported image into a record: paths, pixels, boxes and texts.

Everything that is skipped is counted under a reason, which the report of the build prints.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grain_jax.boxes import Box
from grain_jax.data.captions import clean_text, normalize_text
from grain_jax.data.decoded_cache import DecodedCache
from grain_jax.data.image_files import MAX_IMAGE_BYTES, SkippedSample, read_image_bytes
from grain_jax.data.image_paths import path_inside
from grain_jax.data.importers import ImportedImage, ImportedRegion, InvalidRecordError
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.transforms import IMAGE_FORMATS, ImageError, decode_image

MAX_TEXT = 10_000  # characters of one caption or description; more is taken for a mistake
JPEG_QUALITY = 92  # of images shrunk by --max_image_side
PIXEL_TOLERANCE, FRACTION_TOLERANCE = 1.0, 0.01  # boxes this far outside are clipped
SMALLEST_SIDE = 8  # pixels of an image of which a box of one pixel is taken for fractions
FLOAT32_MAX = float(np.finfo(np.float32).max)
STORED_AS_GIVEN = ("JPEG", "MPO", "PNG")  # MPO: a JPEG with further images behind it


@dataclass
class DatasetStatistics:
    """Counts of a split, for the report of its build; JSON with the same names."""

    images: int = 0
    captions: int = 0
    regions: int = 0
    images_with_regions: int = 0
    clipped_boxes: int = 0
    captions_from_regions: int = 0  # images whose caption was made from region descriptions
    several_frames: int = 0  # images with several frames or pages, of which the first is kept
    merged_images: int = 0  # images that got an annotation of --merge_annotations
    merged_annotations: int = 0  # annotations that some image of the input got
    annotations: int = 0  # all that --merge_annotations has
    repeated_ids: int = 0  # images whose id an earlier image has
    repeated_images: int = 0  # images whose stored bytes an earlier image has
    dropped_images: Counter[str] = field(default_factory=Counter)  # by reason
    dropped_regions: Counter[str] = field(default_factory=Counter)
    ignored_fields: Counter[str] = field(default_factory=Counter)  # of dropped images too
    # Dropped boxes that would fit another format, by that format.
    misread_boxes: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)  # the first messages about dropped images
    notes: list[str] = field(default_factory=list)  # of the importer, about the input as a whole

    def add(self, other: "DatasetStatistics", *, max_examples: int = 20) -> None:
        """Adds the counts of `other`, and its examples up to `max_examples` in all."""
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)
            elif isinstance(value, Counter):
                getattr(self, name).update(value)
        self.examples = (self.examples + other.examples)[:max_examples]

    def drop_image(self, reason: str, message: str) -> None:
        """Counts a skipped image; `message` may become one of the examples."""
        self.add(DatasetStatistics(dropped_images=Counter([reason]), examples=[message]))

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))  # a Counter is a dict; `asdict` breaks it in Python 3.11

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "DatasetStatistics":
        """Reads `to_json`, also of earlier versions, which had fewer fields."""
        blank = vars(cls())
        values: dict[str, Any] = {
            name: Counter(value) if isinstance(blank[name], Counter) else value
            for name, value in stored.items()
        }
        return cls(**values)


def check_item(
    item: ImportedImage,
    images: Path | None,
    *,
    max_image_side: int,
    decoded_cache: DecodedCache | None = None,
    captions_from_regions: bool = False,
    statistics: DatasetStatistics,
) -> Record:
    """The record of an imported image, counted in `statistics`.

    Args:
        images: folder that `item.image` is relative to; None where the input has the bytes.
        max_image_side: larger images are shrunk to this many pixels; 0 for no limit.
        decoded_cache: store pixels of this size, rather than encoded images.
        captions_from_regions: an image without a caption gets one made from its region
            descriptions.

    Raises `SkippedSample` where the image is missing, another than `item.image_hashes` say, cannot
    be decoded or has no caption, and `InvalidRecordError` where the size that pixel boxes refer to
    has another aspect ratio than the image.
    """
    statistics.ignored_fields.update(item.ignored)
    data = read_image(item, images)
    if item.image_hashes and set(item.image_hashes) != {hashlib.sha256(data).hexdigest()}:
        raise SkippedSample(
            "image changed since it was annotated",
            f"{item.image} is another file than the one that was annotated; both stages of "
            "`python -m grain_jax.annotate` with --redo_replaced annotate it anew.",
        )
    try:
        pixels = decode_image(data)  # completely: truncation shows only at the end of a file
    except ImageError as error:
        raise SkippedSample("corrupt image", f"{item.image}: {error}") from None
    height, width = pixels.shape[:2]
    if item.regions and item.box_unit == "pixel" and item.size is not None:
        check_size(item.size, (width, height), item.image)
    texts = [(clean_text(caption.text), caption.source) for caption in item.captions]
    captions = tuple(Caption(text, source) for text, source in texts if 0 < len(text) <= MAX_TEXT)
    if not captions and not (captions_from_regions and item.regions):
        message = f"{item.image}: no caption of 1 to {MAX_TEXT} characters."
        if item.regions:
            message += " --captions_from_regions makes one from its region descriptions."
        raise SkippedSample("no caption", message)
    unit = item.size or (width, height)
    checked = (
        check_region(region, item.box_unit, unit, statistics, sides_given=item.sides_given)
        for region in item.regions
    )
    regions = tuple(region for region in checked if region is not None)
    statistics.dropped_regions.update(item.left_out)
    if not captions:
        captions = region_captions(regions)
        if not captions:
            raise SkippedSample(
                "no caption", f"{item.image}: no caption, and all of its regions are dropped."
            )
        statistics.captions_from_regions += 1
    statistics.images += 1
    statistics.captions += len(captions)
    statistics.regions += len(regions)
    statistics.images_with_regions += bool(regions)
    statistics.merged_images += bool(item.merged_rows)
    statistics.several_frames += has_several_frames(data)
    return Record(
        id=clean_text(item.id),
        image=decoded_cache.encode(pixels)
        if decoded_cache
        else stored_image(data, pixels, max_image_side),
        captions=captions,
        regions=regions,
        label=clean_text(item.label or "") or None,
    )


def check_size(given: tuple[int, int], image: tuple[int, int], name: str) -> None:
    """Raises `InvalidRecordError` unless two sizes (width, height) have the same aspect ratio.

    `given`: the size that pixel boxes refer to; `image`: the size of the file called `name`.
    """
    if abs(given[0] * image[1] - given[1] * image[0]) <= max(*given, *image):  # rounding
        return
    turned = " Boxes refer to the upright image, after its EXIF orientation is applied."
    raise InvalidRecordError(
        f"{name}: its boxes refer to {given[0]} x {given[1]} pixels ('width' x 'height'), and the "
        f"image has {image[0]} x {image[1]}, of another shape."
        f"{turned if given[::-1] == image else ''}"
    )


def region_captions(regions: Sequence[Region]) -> tuple[Caption, ...]:
    """One caption with source "regions" that lists the descriptions, best score first, each once.

    Empty where there are no descriptions.
    """
    best_first = sorted(regions, key=lambda region: -region.score)
    texts = {normalize_text(region.description): region.description for region in best_first[::-1]}
    whole = ", ".join(dict.fromkeys(texts[normalize_text(r.description)] for r in best_first))
    cut = whole[:MAX_TEXT].rpartition(", ")[0] if len(whole) > MAX_TEXT else whole
    return (Caption(cut, "regions"),) if cut else ()


def has_several_frames(data: bytes) -> bool:
    """Whether an image that decodes is an animation or has several pages. An MPO counts as one."""
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged later frame does not affect the first
        return False


def read_image(item: ImportedImage, images: Path | None) -> bytes:
    """The bytes of an image: its own, those of a part of a file, or a file's in `images`.

    Raises `SkippedSample` where they cannot be read, and `InvalidRecordError` where the image is a
    file and there is no folder.
    """
    if isinstance(item.content, bytes):
        if len(item.content) > MAX_IMAGE_BYTES:
            raise SkippedSample(
                "file too large", f"{item.image!r} is larger than {MAX_IMAGE_BYTES} bytes."
            )
        return item.content
    if item.content is not None:
        part = item.content
        return read_image_bytes(part.path, name=item.image, offset=part.offset, size=part.size)
    if images is None:
        raise InvalidRecordError(
            f"{item.image!r} is a path, without the image's bytes; give --images=DIR, the folder "
            "it starts from."
        )
    return read_image_file(item.image, images)


def read_image_file(relative: str, images: Path) -> bytes:
    """The bytes of a file inside the images folder, found by `path_inside`.

    Raises `SkippedSample` where it is outside the folder, missing or too large.
    """
    try:
        path = path_inside(relative, images)
    except ValueError as error:
        raise SkippedSample("path outside the images folder", str(error)) from None
    return read_image_bytes(images / path, name=relative)


def image_state(relative: str, images: Path) -> list[int] | None:
    """[size in bytes, mtime, ctime in nanoseconds] of an image file, to notice changes.

    None where the file does not exist or cannot be reached.
    """
    try:
        status = (images / path_inside(relative, images)).stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def stored_image(data: bytes, pixels: np.ndarray, max_side: int) -> bytes:
    """The bytes to store: `data` itself for JPEG and PNG of at most `max_side` pixels (0: any).

    Larger images are resized with their aspect kept and stored as JPEG. Other formats are stored
    as PNG, upright and RGB.
    """
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    if 0 < max_side < max(image.size):
        scale = max_side / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        small = image.resize((width, height), Image.Resampling.BICUBIC)
        small.save(out, "JPEG", quality=JPEG_QUALITY)
        return out.getvalue()
    if Image.open(io.BytesIO(data), formats=IMAGE_FORMATS).format in STORED_AS_GIVEN:
        return data
    image.save(out, "PNG")
    return out.getvalue()


def check_region(
    region: ImportedRegion,
    unit: str,
    size: tuple[int, int],
    statistics: DatasetStatistics,
    *,
    sides_given: bool = False,
) -> Region | None:
    """The region with its box in fractions; None where it is dropped, counted in `statistics`.

    Args:
        size: (width, height) that boxes in the unit "pixel" refer to.
        sides_given: the input has x, y, width, height, so that a dropped box is not taken for one
            that should have been read so.
    """
    if not all(abs(value) < FLOAT32_MAX for value in (*region.box_xyxy, region.score)):
        statistics.dropped_regions["box or score not finite"] += 1
        return None
    x0, y0, x1, y1 = region.box_xyxy
    if x1 <= x0 or y1 <= y0:
        statistics.dropped_regions["empty box"] += 1
        _count_misread(region, unit, size, statistics, sides_given=sides_given)
        return None
    description = clean_text(region.description)
    if not description:
        statistics.dropped_regions["empty description"] += 1
        return None
    if len(description) > MAX_TEXT:
        statistics.dropped_regions["description too long"] += 1
        return None
    width, height = size if unit == "pixel" else (1, 1)
    if unit == "pixel" and max(x1, y1) <= 1 and min(size) >= SMALLEST_SIDE:
        statistics.dropped_regions["box within one pixel"] += 1
        statistics.misread_boxes["fractions"] += 1
        return None
    slack = PIXEL_TOLERANCE if unit == "pixel" else FRACTION_TOLERANCE
    if min(x0, y0) < -slack or x1 > width + slack or y1 > height + slack:
        statistics.dropped_regions["box out of range"] += 1
        _count_misread(region, unit, size, statistics, sides_given=sides_given)
        return None
    box: Box = (x0 / width, y0 / height, x1 / width, y1 / height)
    clipped: Box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], 1.0), min(box[3], 1.0))
    left, top, right, bottom = np.asarray(clipped, np.float32)  # as it is stored
    if bottom <= top or right <= left:
        statistics.dropped_regions["empty box"] += 1
        return None
    statistics.clipped_boxes += clipped != box
    return Region(clipped, description, region.score)


def _count_misread(
    region: ImportedRegion,
    unit: str,
    size: tuple[int, int],
    statistics: DatasetStatistics,
    *,
    sides_given: bool,
) -> None:
    """Counts each other box format that a dropped box would fit."""
    x0, y0, x1, y1 = region.box_xyxy
    width, height = size
    sides = (width, height) if unit == "pixel" else (1, 1)
    if min(region.box_xyxy) < 0:
        return
    if sides_given:
        corners = x0, y0, x1 - x0, y1 - y0  # the four numbers as they are written
        if corners[0] < corners[2] <= width and corners[1] < corners[3] <= height:
            statistics.misread_boxes["x0, y0, x1, y1"] += 1
    elif min(x1, y1) > 0 and x0 + x1 <= sides[0] * 1.01 and y0 + y1 <= sides[1] * 1.01:
        statistics.misread_boxes["x, y, width, height"] += 1
    if x0 < x1 and y0 < y1 and unit == "fraction":
        if max(region.box_xyxy) <= 100:
            statistics.misread_boxes["percent"] += 1
        if x1 <= width and y1 <= height:
            statistics.misread_boxes["pixels"] += 1
        if max(region.box_xyxy) <= 1000:
            statistics.misread_boxes["thousandths"] += 1
