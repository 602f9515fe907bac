"""The output of importers: one image as written in the input, not checked yet."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
class ImportedImage:
    """One image of the input, only parsed: `prepare` checks paths, pixels, boxes and texts."""

    id: str
    image: str  # path inside the images folder
    captions: tuple[Caption, ...] = ()
    regions: tuple[ImportedRegion, ...] = ()
    label: str | None = None
    box_unit: str = "fraction"  # of the image's width and height | "pixel"
    size: tuple[int, int] | None = (
        None  # (width, height) that pixel boxes refer to; None: the file's
    )
    ignored: tuple[str, ...] = ()  # fields of the input that are not read


@runtime_checkable
class Importer(Protocol):
    """A random-access sequence of images, pickled to worker processes.

    `__getitem__` raises `InvalidRecordError` for a record that cannot be read.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ImportedImage: ...

    def fingerprint(self) -> dict[str, object]:
        """JSON that identifies the input, so that a finished split is not built again."""
        ...

    def checksum(self, start: int, stop: int) -> str:
        """A hash of records `start` to `stop` - 1, so that unchanged shards are not rebuilt."""
        ...
