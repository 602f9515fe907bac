"""Are the boxes right, and does a phrase pick the right one?

Boxes here are xyxy in [0, 1] of the image the model sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.boxes import IOU_HIT, best_pairs, pairwise_iou
from grain_jax.evaluation.mean_results import mean_result
from grain_jax.results import Result


@dataclass(frozen=True)
class Phrase:
    """A phrase of an image and every box it may mean (xyxy)."""

    image: int
    text: str
    boxes: Float[np.ndarray, "n 4"]


@dataclass(frozen=True)
class BoxScores:
    """Of n true boxes, all in [0, 1]. Those that no query was left for count as misses;
    `upper_bound` is the best recall possible.
    """

    matched: Float[np.ndarray, "n"]  # IoU of each true box with the query matched to it
    images: Int[np.ndarray, "n"]  # the image of each
    upper_bound: float  # fraction of true boxes that as many queries could cover

    @property
    def found(self) -> Float[np.ndarray, "n"]:
        """1 for true boxes matched with IoU of at least 0.5, else 0."""
        return (self.matched >= IOU_HIT).astype(np.float64)

    @property
    def iou(self) -> float:
        """The mean over true boxes."""
        return float(self.matched.mean())

    @property
    def recall(self) -> float:
        """The fraction that is found."""
        return float(self.found.mean())

    @property
    def count(self) -> int:
        return len(self.matched)

    def results(self, dataset: str, method: str, *, intervals: bool = True) -> list[Result]:
        """Mean IoU and recall, with intervals over images unless told otherwise."""
        values = {"box_iou": self.matched, "box_recall": self.found}
        return [
            mean_result(dataset, method, metric, of_box, self.images, interval=intervals)
            for metric, of_box in values.items()
        ]


def matched_iou(
    predicted_xyxy: Float[np.ndarray, "Q 4"], true_xyxy: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "n"]:
    """IoU of each true box with the query assigned to it one-to-one so that the sum is largest; 0
    if none is left.
    """
    iou = pairwise_iou(predicted_xyxy, true_xyxy)
    queries, boxes = best_pairs(iou)
    matched = np.zeros(len(true_xyxy), iou.dtype)
    matched[boxes] = iou[queries, boxes]
    return matched


def box_scores(
    predicted_xyxy: Float[np.ndarray, "N Q 4"], true_xyxy: Sequence[Float[np.ndarray, "_ 4"]]
) -> BoxScores:
    """Matched IoU of all true boxes of N images. Raises ValueError when there is no
    true box.
    """
    counts = np.array([len(boxes) for boxes in true_xyxy])
    if counts.sum() == 0:
        raise ValueError("No image of this split has a true box: grounding cannot be scored.")
    iou = np.concatenate(
        [
            matched_iou(queries, boxes)
            for queries, boxes in zip(predicted_xyxy, true_xyxy, strict=True)
        ]
    )
    upper_bound = np.minimum(counts, predicted_xyxy.shape[1]).sum() / counts.sum()
    return BoxScores(iou, np.repeat(np.arange(len(counts)), counts), float(upper_bound))


def phrase_hits(
    chosen_xyxy: Float[np.ndarray, "T 4"], phrases: Sequence[Phrase]
) -> Float[np.ndarray, "T"]:
    """1 where the box chosen for a phrase overlaps any of its true boxes with IoU of at least 0.5,
    else 0.
    """
    return np.array(
        [
            float(pairwise_iou(box[None], phrase.boxes).max(initial=0.0) >= IOU_HIT)
            for box, phrase in zip(chosen_xyxy, phrases, strict=True)
        ]
    )


def chosen_queries(
    regions: Float[np.ndarray, "N Q E"],
    phrase_embed: Float[np.ndarray, "T E"],
    phrases: Sequence[Phrase],
) -> np.ndarray:
    """Of each phrase, the query of its image whose embedding is most similar. [T] int."""
    own = regions[np.array([phrase.image for phrase in phrases], int)]  # [T, Q, E]
    return np.einsum("tqe,te->tq", own, phrase_embed).argmax(axis=1)
