"""The record of one image, and the protocol of sources of records.

Contract: a source is a random-access sequence. `source[i]` is a pure function of `i`, so a batch is
a pure function of the step and a restart needs no loader state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from grain_jax.boxes import Box

DEFAULT_TEMPLATES = (
    "a photo of a {}.",
)  # prompts of zero-shot sets and runs without templates of their own


@dataclass(frozen=True)
class Caption:
    """A text about the whole image."""

    text: str
    # "original" (found with the image) | "synthetic" (written by an MLLM) | "regions" (made from
    # region descriptions by `prepare --captions_from_regions`)
    source: str = "original"


@dataclass(frozen=True)
class Region:
    """A box and its description."""

    box_xyxy: Box  # in [0, 1] of the image
    description: str
    score: float = 1.0  # confidence of the annotator

    @property
    def bbox(self) -> Box:
        """(ymin, xmin, ymax, xmax), the order of TFDS; kept for scripts of users."""
        x0, y0, x1, y1 = self.box_xyxy
        return y0, x0, y1, x1


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
    """Random access to records.

    A source whose images are drawn may say what they are by `fingerprint`, JSON or None: embeddings
    are cached by it (`inference/fingerprints.py`), and else by the content of every image, or by
    what `image_digests` says of images that are made from others (`data/image_digest.py`). One that
    holds records in groups, each read as a whole, may say so by `read_in_order`: it is then read by
    one thread where all of it is read.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclass(frozen=True)
class ZeroShotSet:
    """A classification set: images with a `label` in `class_names`, and texts of the classes."""

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
    # class name -> texts about the whole image, made by the source from the class's descriptions;
    # empty: each description in `description_template`
    global_texts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # class name -> training captions that it occurs in; empty: not known
    counts: dict[str, int] = field(default_factory=dict)
    # by kind, class name -> texts of files that only some methods take; a class may be missing
    further: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    # by kind, groups of such texts that are of no single class
    shared: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    # class name -> other class -> texts that tell the class from the other
    pairs: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    # files that labels and texts were read from: "labels", "classes", "templates", "descriptions",
    # "counts" or a kind of further texts -> path of the file, without "#key"; absent where there
    # is none
    text_files: dict[str, str] = field(default_factory=dict)
    # class name -> its name in prompts, for classes that have the same name in prompts as another
    name_texts: dict[str, str] = field(default_factory=dict)
    split: str = ""  # of the images; "" for files that have none


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out images of a data set, and what is measured on them."""

    name: str  # prefix of the metrics, "<name>/box_recall"
    title: str  # prefix of errors
    source: Source
    preferred_captions: str = (
        "original"  # source of captions for retrieval; images without one use all of theirs
    )
    zero_shot: ZeroShotSet | None = None
    methods: tuple[str, ...] = ()  # zero-shot methods to evaluate


@dataclass(frozen=True)
class Selection:
    """Some records of a source, in the order of `indices`."""

    source: Source
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Record:
        return self.source[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """`self[i]` for each of `indices`, in one call where the source has one."""
        return read_records(self.source, [int(self.indices[i]) for i in indices])

    @property
    def in_memory(self) -> bool:
        """Whether the records are kept in the memory of this process."""
        return getattr(self.source, "in_memory", False)

    @property
    def read_in_order(self) -> bool:
        """Whether one thread should read them."""
        return getattr(self.source, "read_in_order", False)

    @property
    def fingerprint(self) -> Any:
        """JSON that says what the images are, where the source has one; else None."""
        drawn = getattr(self.source, "fingerprint", None)
        return None if drawn is None else [[int(index) for index in self.indices], drawn]

    @property
    def image_digests(self) -> Callable[[Sequence[int]], list[bytes]] | None:
        """What stands for images in keys, where the source says so (`data/image_digest.py`)."""
        of_source = getattr(self.source, "image_digests", None)
        if of_source is None:
            return None
        return lambda rows: of_source([int(self.indices[row]) for row in rows])


@dataclass(frozen=True)
class LabelledSelection(Selection):
    """Some records of a source with their labels, known without reading the records."""

    labels: Sequence[str]


@dataclass(frozen=True)
class InMemory:
    """Records kept in memory, so that a procedural image is drawn once in a run."""

    records: tuple[Record, ...]
    in_memory = True

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Record:
        return self.records[index]

    @property
    def labels(self) -> list[str]:
        return [record.label or "" for record in self.records]


@runtime_checkable
class Labelled(Protocol):
    """A source that knows the label of every record without decoding or drawing its image."""

    labels: Sequence[str]


def evenly_spaced(source: Source, limit: int) -> Source:
    """At most `limit` records, evenly spaced over the source.

    So a source that is sorted by class does not lose its last classes.
    """
    if len(source) <= limit:
        return source
    return Selection(source, np.linspace(0, len(source) - 1, limit).round().astype(int).tolist())


def read_records(source: Source, indices: Sequence[int]) -> list[Record]:
    """`source[i]` for each of `indices`: in one call where the source has `__getitems__`."""
    read_all = getattr(source, "__getitems__", None)
    return [source[i] for i in indices] if read_all is None else list(read_all(indices))
