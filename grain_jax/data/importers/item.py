"""What an importer yields: one image as its file says it, unchecked."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from grain_jax.data.records import Caption

MAX_SIDE = 1_000_000  # pixels of an image that boxes refer to


class InvalidRecordError(ValueError):
    """An entry that cannot be read at all; the message names file, line and what is wrong."""


@dataclass(frozen=True)
class ImportedRegion:
    """A box as x0, y0, x1, y1 (left, top, right, bottom), and what it shows."""

    box_xyxy: tuple[float, float, float, float]
    description: str
    score: float = 1.0


@dataclass(frozen=True)
class ImportedImage:
    """One image of the input. `prepare` checks paths, pixels, boxes and texts; importers only
    parse.
    """

    id: str
    image: str  # path inside the images folder
    captions: tuple[Caption, ...] = ()
    regions: tuple[ImportedRegion, ...] = ()
    label: str | None = None
    box_unit: str = "fraction"  # of the image's width and height | "pixel"
    size: tuple[int, int] | None = (
        None  # (width, height) that pixel boxes refer to; None: the file's
    )
    ignored: tuple[str, ...] = ()  # fields of the entry that nothing reads


@runtime_checkable
class Importer(Protocol):
    """A random-access sequence of images. Pickled to worker processes. Raises `InvalidRecordError`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ImportedImage: ...

    def fingerprint(self) -> dict[str, object]:
        """JSON that changes with the input: a finished split is not built again from the same."""
        ...

    def checksum(self, start: int, stop: int) -> str:
        """Changes with what is read of the entries from `start` to before `stop`: a half-done run
        keeps the shards of entries that are still the same.
        """
        ...
