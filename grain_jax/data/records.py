"""The record of one image, and what every source of records promises.

Contract: a source is a random-access sequence. `source[i]` is a pure function of `i`, so a batch is
a pure function of the step and a restart needs no loader state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

DEFAULT_TEMPLATES = ("a photo of a {}.",)  # prompts of zero-shot sets and runs without their own


@dataclass(frozen=True)
class Caption:
    """A text about the whole image."""

    text: str
    # "original" (found with the image) | "synthetic" (written by an MLLM) | "regions" (made by
    # `prepare --captions_from_regions` of their descriptions)
    source: str = "original"


@dataclass(frozen=True)
class Region:
    """A box with what is said about it."""

    bbox: tuple[float, float, float, float]  # ymin, xmin, ymax, xmax in [0, 1] of the image
    description: str
    score: float = 1.0  # confidence of the annotator


@dataclass(frozen=True)
class Record:
    """One image: encoded (JPEG or PNG) bytes, or RGB uint8 [H, W, 3] from a procedural source."""

    id: str
    image: bytes | UInt8[np.ndarray, "H W 3"]
    captions: tuple[Caption, ...] = ()
    regions: tuple[Region, ...] = ()
    label: str | None = None  # class name, for zero-shot sets


@runtime_checkable
class Source(Protocol):
    """Random access to records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclass(frozen=True)
class ZeroShotSet:
    """A classification set: images with `label` in `class_names`, and texts to know them by."""

    name: str
    source: Source
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES  # "{}" takes the class name
    descriptions: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # class name -> descriptions; may be empty
    description_template: str = (
        "{}"  # "{}" takes one description; "{name}", if present, the class name
    )
    # class name -> texts about the whole image, made from the class's descriptions by the source;
    # empty: every description in `description_template`
    global_texts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # what its labels and texts were read from: "labels", "classes", "templates" or "descriptions"
    # -> path of the file, without "#key"; absent where no file was read
    text_files: dict[str, str] = field(default_factory=dict)
    # class name -> what prompts call it, for classes that share a name with another and are told
    # apart by their labels
    name_texts: dict[str, str] = field(default_factory=dict)


def read_records(source: Source, indices: Sequence[int]) -> list[Record]:
    """`source[i]` for each of `indices`: in one call where the source has `__getitems__`."""
    read_all = getattr(source, "__getitems__", None)
    return [source[i] for i in indices] if read_all is None else list(read_all(indices))
