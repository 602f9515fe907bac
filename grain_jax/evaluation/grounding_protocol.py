"""How grounding was measured: figures of unlike protocols say nothing about each other."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Literal

from grain_jax.boxes import IOU_HIT
from grain_jax.data.transforms import Preprocessing

BoxesOf = Literal["predicted", "given"]
Truth = Literal["any", "merged"]
Feature = Literal["region", "crop"]
BETWEEN = "; "
PREDICTED = "the boxes that the model predicts"


@dataclass(frozen=True)
class Protocol:
    """Everything that a figure of grounding depends on besides the model and the images."""

    boxes: BoxesOf  # what is chosen from: predicted boxes, or annotated ones
    truth: Truth  # right with any of the text's boxes, or with the rectangle around them all
    feature: Feature  # of a box: the model's region embedding, or the crop encoded as an image
    image_size: int  # pixels of the square that the model sees
    resize: str
    interpolation: str
    prompt: str  # what a text is put into
    queries: str  # which texts are asked
    candidates: str  # which boxes may be chosen
    iou: float = IOU_HIT  # from which a box is right

    @property
    def text(self) -> str:
        """All of it in one line, for lines of predictions."""
        return BETWEEN.join(f"{name}={value}" for name, value in asdict(self).items())

    @property
    def sentence(self) -> str:
        """What a reader of a table needs to know."""
        right = (
            "one of the text's boxes"
            if self.truth == "any"
            else "the rectangle around all of the text's boxes"
        )
        return (
            f"Protocol: boxes {self.boxes} ({self.candidates}); right: IoU of at least "
            f"{self.iou:g} with {right}; queries: {self.queries}, as {self.prompt!r}; images of "
            f"{self.image_size} pixels, {self.resize}, {self.interpolation}."
        )


def make_protocol(
    *,
    boxes: BoxesOf,
    truth: Truth,
    feature: Feature,
    preprocessing: Preprocessing,
    prompt: str,
    queries: str,
    given_boxes: str = "",
) -> Protocol:
    """The protocol of one feature; `given_boxes` says which boxes are given, where they are."""
    return Protocol(
        boxes=boxes,
        truth=truth,
        feature=feature,
        image_size=preprocessing.image_size,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        prompt=prompt,
        queries=queries,
        candidates=given_boxes if boxes == "given" else PREDICTED,
    )


def unlike(protocols: Collection[str], *, but: Collection[str] = ()) -> str:
    """What differs between the `text` of protocols, as "truth: any or merged"; "" for nothing.

    `but`: fields that may differ.
    """
    values: dict[str, dict[str, None]] = {}
    for text in protocols:
        for part in text.split(BETWEEN):
            name, _, value = part.partition("=")
            values.setdefault(name, {})[value] = None
    differing = {
        name: sorted(found) for name, found in values.items() if len(found) > 1 and name not in but
    }
    return BETWEEN.join(f"{name}: {' or '.join(found)}" for name, found in differing.items())
