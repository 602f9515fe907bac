"""Which of the boxes that a detector proposes are kept. NumPy, one image at a time."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.annotation.backends.detector import ScoredBoxes
from grain_jax.boxes import pairwise_iou

OFFICIAL_TEXTS = 10  # descriptions of an image that GRAIN's annotation code reads
OFFICIAL_PADDING = "<pad>"  # text that fills the list up there, and takes part as one of them
OFFICIAL_STRIPPED = ".,!? -*"  # characters removed from the beginning of a description there


@dataclass(frozen=True)
class Detections:
    """The boxes that were kept, highest score first."""

    boxes_xyxy: Float[np.ndarray, "N 4"]  # in [0, 1] of the image, each with an area
    scores: Float[np.ndarray, "N"]
    text_index: Int[np.ndarray, "N"]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Selection:
    """A rule by which boxes are kept. Its parts are applied in the order of the fields."""

    one_text_per_box: bool = False  # a box counts for the text with its highest score only
    threshold: float = 0.3  # scores at or below it are dropped
    nms_iou: float = 1.0  # a box that overlaps a better one by more is dropped; 1 drops none
    nms_across_texts: bool = False  # ... also one of another text
    boxes_per_text: int | None = None  # None: any number
    max_boxes: int | None = None  # of the image; None: any number
    official_texts: bool = False  # texts as GRAIN's annotation code prepares them

    def __post_init__(self) -> None:
        for name in ("threshold", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1.")
        for name in ("boxes_per_text", "max_boxes"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise ValueError(f"{name} is {limit}; expected at least 1.")

    def replace(self, **changes: float | int | bool | None) -> "Selection":
        """The rule with other values for the fields that are not None."""
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, **given)  # type: ignore[arg-type]


# Thresholds here are those of OWLv2; other detectors have their own default.
SELECTIONS = {
    # For each description the best place: what GRAIN learns from.
    "best_per_text": Selection(boxes_per_text=1),
    # Every place of each description, for things that an image has several of.
    "all": Selection(nms_iou=0.5),
    # box_supervision.py: each location of OWLv2 keeps its best description, without NMS.
    "official": Selection(one_text_per_box=True, threshold=0.3, official_texts=True),
}


def official_texts(texts: Sequence[str]) -> list[str]:
    """The queries of GRAIN's annotation code: the first ten, stripped, filled up with "<pad>"."""
    kept = [text.lstrip(OFFICIAL_STRIPPED) for text in texts[:OFFICIAL_TEXTS]]
    return kept + [OFFICIAL_PADDING] * (OFFICIAL_TEXTS - len(kept))


def select(scored: ScoredBoxes, rule: Selection, *, num_texts: int | None = None) -> Detections:
    """The boxes of an image that the rule keeps, clipped to the image.

    Boxes that are not finite or outside the image are dropped. Equal scores keep the order of the
    detector's boxes, then of the texts.

    Args:
        num_texts: queries from this number on are padding: they take part, and what they win is
            dropped at the end. None: none is.
    """
    boxes = np.clip(scored.boxes_xyxy, 0, 1)
    real = np.isfinite(scored.boxes_xyxy).all(axis=1)
    real &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    candidates = (scored.scores > rule.threshold) & real[:, None]  # NaN is not above it
    if rule.one_text_per_box and scored.scores.shape[1]:
        best = np.nan_to_num(scored.scores, nan=-1.0).argmax(axis=1)
        candidates &= best[:, None] == np.arange(scored.scores.shape[1])
    place, text = np.nonzero(candidates)
    order = np.argsort(-scored.scores[place, text], kind="stable")
    place, text = place[order], text[order]
    kept = _without_overlaps(boxes[place], text, rule)
    place, text = place[kept], text[kept]
    if rule.boxes_per_text is not None:
        kept = _first_of_each(text, rule.boxes_per_text)
        place, text = place[kept], text[kept]
    if num_texts is not None:
        place, text = place[text < num_texts], text[text < num_texts]
    place, text = place[: rule.max_boxes], text[: rule.max_boxes]
    return Detections(boxes[place], scored.scores[place, text], text)


def _without_overlaps(boxes_xyxy: np.ndarray, text: np.ndarray, rule: Selection) -> np.ndarray:
    """Non-maximum suppression: indices of the boxes that stay. Boxes come best first."""
    if rule.nms_iou >= 1:
        return np.arange(len(boxes_xyxy))
    waiting = np.arange(len(boxes_xyxy))
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        near = pairwise_iou(boxes_xyxy[best][None], boxes_xyxy[waiting])[0] > rule.nms_iou
        if not rule.nms_across_texts:
            near &= text[waiting] == text[best]
        waiting = waiting[~near]
    return np.array(kept, np.int64)


def _first_of_each(text: np.ndarray, limit: int) -> np.ndarray:
    """Indices of the first `limit` of each text, in order."""
    seen: dict[int, int] = {}
    kept = []
    for index, value in enumerate(text.tolist()):
        seen[value] = seen.get(value, 0) + 1
        if seen[value] <= limit:
            kept.append(index)
    return np.array(kept, np.int64)
