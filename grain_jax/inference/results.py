"""What a model says of images, in pixels of each image as it was given, upright."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Box = tuple[float, float, float, float]
DESCRIPTION, NAME = "description", "name"  # what the texts of a label are


@dataclass(frozen=True)
class Skipped:
    """An image that was left out."""

    position: int  # among those given
    name: str
    reason: str


@dataclass(frozen=True)
class ImageEmbeddings:
    """N images as the model sees them; float32, embeddings of unit length."""

    names: tuple[str, ...]  # file, or "image 3" for what came without one
    sizes: Int[np.ndarray, "N 2"]  # height and width in pixels, upright
    image: Float[np.ndarray, "N E"]
    regions: Float[np.ndarray, "N Q E"] | None  # None for a CLIP model, or never trained
    boxes_xyxy: Float[np.ndarray, "N Q 4"] | None  # of the regions, in pixels of each image
    crop_xyxy: Float[np.ndarray, "N 4"]  # the part of each image that the model saw, likewise
    skipped: tuple[Skipped, ...] = ()  # none of the N

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class GroundedText:
    """A text and the region of an image that is most similar to it, or the whole image."""

    text: str
    cosine: float
    query: int | None  # which region query of the model; None: compared with the whole image
    # Pixels of the image; of the whole, what the model saw of it; None: boxes never trained.
    box_xyxy: Box | None


@dataclass(frozen=True)
class RankedLabel:
    """A label with its score; `grounded`: its descriptions, each with its best-matching region,
    highest-scoring first.

    Where the whole image alone decides (alpha 1, a CLIP model) they are as it met them, in their
    template. A label without descriptions has its name there, or its prompts, and
    `grounded_kind` says so; one that is defined by examples alone has nothing.
    """

    label: str
    score: float  # cosines, mixed with alpha
    # Softmax of the model's logit scale x score over all labels given; calibrated where
    # `Classification.calibrated` is not None.
    probability: float
    grounded: tuple[GroundedText, ...]  # () by name alone
    # Descriptions that a region shows; None where not calibrated, and without descriptions.
    num_seen: int | None = None
    # "texts", "examples" or "both"; None where no examples were given
    defined_by: str | None = None
    num_examples: int | None = None  # different ones of the label, likewise
    grounded_kind: str | None = None  # "description" or "name": what `grounded` has; None for ()


@dataclass(frozen=True)
class Calibrated:
    """What a calibration says of an image; None where it was not fitted to these labels."""

    in_distribution_score: float | None = None  # of GL-MCM; low where it looks like no label
    threshold: float | None = None  # of `in_distribution_score`
    label_set: tuple[str, ...] | None = None  # holds the true label at the rate `coverage`
    coverage: float | None = None

    @property
    def none_of_these(self) -> bool | None:
        """Whether it looks like none of the labels."""
        if self.in_distribution_score is None or self.threshold is None:
            return None
        return self.in_distribution_score < self.threshold


@dataclass(frozen=True)
class Classification:
    """The best labels of an image, best first."""

    name: str
    height: int
    width: int
    ranked: tuple[RankedLabel, ...]
    num_labels: int  # given; `ranked` has the best of them
    calibrated: Calibrated | None = None  # None: probabilities are the model's own

    @property
    def label(self) -> str:
        """The best one, also where the image looks like none of them."""
        return self.ranked[0].label


@dataclass(frozen=True)
class Grounding:
    """The best-matching region of each of T phrases in an image, in the order they were given."""

    name: str
    height: int
    width: int
    phrases: tuple[GroundedText, ...]
    boxes_xyxy: Float[np.ndarray, "Q 4"]  # of all regions, in pixels
    cosines: Float[np.ndarray, "Q T"]  # of every region with every phrase
