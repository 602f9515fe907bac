"""The record of one image, the batch a step consumes, and what every source of records promises.

Contract: a source is a random-access sequence. `source[i]` is a pure function of `i`, so a batch is
a pure function of the step and a restart needs no loader state.
"""

from dataclasses import dataclass, field
from typing import Protocol, no_type_check, runtime_checkable

import flax.struct
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt32

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


@no_type_check  # under tree_map its leaves become device arrays, shardings or shape structs
@flax.struct.dataclass
class Batch:
    """What one training step consumes; every shape static.

    `caption_key` and `description_key` are hashes of the tokens: texts that the model cannot tell
    apart have equal keys, which is how the losses find duplicates. Padded regions have
    `region_mask` False, zero boxes, zero keys and all-zero tokens.
    """

    images: UInt8[np.ndarray, "B H W 3"]  # normalised on the device
    captions: Int[np.ndarray, "B L"]  # int32 token ids, 0 after end-of-text
    caption_key: UInt32[np.ndarray, "B"]
    descriptions: Int[np.ndarray, "B M L"]
    description_key: UInt32[np.ndarray, "B M"]
    boxes: Float[np.ndarray, "B M 4"]  # float32 cxcywh in [0, 1]
    region_mask: Bool[np.ndarray, "B M"]
    index: Int[np.ndarray, "B"]  # int32 index of the record in its source
    replaced: Bool[np.ndarray, "B"]  # True where a corrupt image was replaced by another
    truncated: Int[np.ndarray, "B"]  # int32 number of texts of this sample cut to the static length
