"""The output of importers: one image as written in the input, not checked yet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from grain_jax.data.records import Caption

MAX_SIDE = 1_000_000  # pixels of an image that boxes refer to


class InvalidRecordError(ValueError):
    """A record of the input that cannot be read; the message names file, line and field."""


@dataclass(frozen=True)
class ImportedRegion:
    """A box as x0, y0, x1, y1 (left, top, right, bottom), and its description."""

    box_xyxy: tuple[float, float, float, float]
    description: str
    score: float = 1.0


@dataclass(frozen=True)
class FilePart:
    """Bytes inside a larger file, such as a member of a tar."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class ImportedImage:
    """One image of the input, only parsed: `prepare` checks paths, pixels, boxes and texts."""

    id: str
    image: str  # path inside the images folder; its name in messages where `content` has the bytes
    captions: tuple[Caption, ...] = ()
    regions: tuple[ImportedRegion, ...] = ()
    label: str | None = None
    box_unit: str = "fraction"  # of the image's width and height | "pixel"
    size: tuple[int, int] | None = (
        None  # (width, height) that pixel boxes refer to; None: the file's
    )
    ignored: tuple[str, ...] = ()  # fields of the input that are not read
    content: bytes | FilePart | None = None  # the encoded image; None: the file at `image`
    left_out: tuple[str, ...] = ()  # why regions of the input are not in `regions`, one reason each
    image_hashes: tuple[str, ...] = ()  # SHA-256 of the file that the rest was said of; all one
    sides_given: bool = False  # boxes are written as x, y, width, height in the input
    merged_rows: tuple[int, ...] = ()  # of `--merge_annotations` that were joined onto it


# Whether an importer's images are files in the folder `--images` ("required"), may be, lie in the
# folder `--input`, or are inside the files of the input.
ImagesFolder = Literal["required", "optional", "input", "inside"]


@runtime_checkable
class Importer(Protocol):
    """A random-access sequence of images, pickled to worker processes.

    A class is built as `Class(path, **options)`: each keyword of its constructor is an option of
    `prepare`, refused for the classes that do not have it, but for `split`, which is the name of
    the split that is built, and `held_out`, true for the part that `holdout` sets aside. A class
    may have `images_folder`, an `ImagesFolder` ("required" without it); `notes`, a list of
    sentences for the report of the build; a method `holds_images`, whether the images of an
    "optional" class are inside its files; and a method `class_descriptions`, {class: descriptions},
    which is kept beside the records.

    `__getitem__` raises `InvalidRecordError` for a record that cannot be read, and `SkippedSample`
    for one that the collection itself marks as unusable.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ImportedImage: ...

    def fingerprint(self) -> dict[str, object]:
        """JSON that identifies the input, so that a finished split is not built again."""
        ...

    def checksum(self, start: int, stop: int) -> str:
        """A hash of records `start` to `stop` - 1, so that unchanged shards are not rebuilt."""
        ...
