"""What every detector offers: boxes of an image, with a score for each text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from grain_jax.annotation.backends.placement import PreparedImage
from grain_jax.data.transforms import Pixels


@dataclass(frozen=True)
class ScoredBoxes:
    """All boxes that a detector proposes for one image, before any is selected.

    Boxes are xyxy in fractions of the image as it was before any resizing. They may reach beyond
    [0, 1]: `grain_jax.annotation.detection.select` clips them.
    """

    boxes_xyxy: Float[np.ndarray, "P 4"]
    scores: Float[np.ndarray, "P T"]  # in [0, 1]; 0 where a box was not compared with a text


@runtime_checkable
class Detector(Protocol):
    """A model that finds texts in images. One thread detects; the other methods are for any."""

    name: str  # path or name on the hub
    revision: str  # commit on the hub; "" for a local folder
    dtype: str  # of the computation: "float32", "bfloat16", "float16"
    default_threshold: float  # below which its score usually means: not there

    def prepare(self, image: Pixels) -> PreparedImage:
        """The image as the detector sees it. Cheap enough for threads, and safe in them."""
        ...

    def detect(
        self, images: Sequence[PreparedImage], texts: Sequence[Sequence[str]]
    ) -> list[ScoredBoxes]:
        """Boxes of each image, with a score for each of the texts that belong to it.

        An answer does not depend on the other images of the batch. Raises ValueError for numbers
        of images and texts that differ.
        """
        ...

    def reads_whole(self, text: str) -> bool:
        """Whether the text fits; the end of a longer one is cut off."""
        ...


@runtime_checkable
class ImageGuidedDetector(Detector, Protocol):
    """A detector that also finds what example images show."""

    default_example_threshold: float

    def embed_examples(self, images: Sequence[PreparedImage]) -> Float[np.ndarray, "N E"]:
        """An embedding of norm 1 of each example: of the box that covers most of it."""
        ...

    def detect_embeddings(
        self, images: Sequence[PreparedImage], queries: Float[np.ndarray, "T E"]
    ) -> list[ScoredBoxes]:
        """Boxes of each image, with a score for each query, which need not have norm 1."""
        ...


def check_batch(images: Sequence[PreparedImage], texts: Sequence[Sequence[str]]) -> None:
    """Raises ValueError unless there is a list of texts for each image."""
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} lists of texts; expected as many.")
    for each in texts:
        if isinstance(each, str):
            raise ValueError(f"{each!r} is one text; expected a list of texts for each image.")
