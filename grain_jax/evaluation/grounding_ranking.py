"""Which of an image's boxes a text chooses, and how often that is right: pure functions of arrays.

Boxes are xyxy in [0, 1] of the image. Exact ties count as their expected value, so a model that
gives every box the same score has the accuracy of a random choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from grain_jax.boxes import IOU_HIT, pairwise_iou
from grain_jax.evaluation.grounding_protocol import Truth
from grain_jax.evaluation.ranking import expected_recall

KS = (1, 5, 10)
NO_BOX = -4.0  # score of places where an image has fewer boxes than others; cosines are above it
WHOLE_IMAGE = np.array([0.0, 0.0, 1.0, 1.0], np.float32)
POOL = 256  # boxes that the best constant one is chosen from


@dataclass(frozen=True)
class Ranking:
    """T queries by C boxes, of which those of the query's own image come first."""

    real: Bool[np.ndarray, "T C"]  # False beyond the image's boxes
    right: Bool[np.ndarray, "T C"]  # IoU of at least 0.5 with a true box
    inside: Bool[np.ndarray, "T C"]  # its centre is in a true box
    iou: Float[np.ndarray, "T C"]  # with the true box it overlaps most


@dataclass(frozen=True)
class Hits:
    """Of each query, in [0, 1]."""

    recall: dict[int, Float[np.ndarray, "T"]]  # a right box is among the k best
    pointing: Float[np.ndarray, "T"]  # the centre of the best box is in a true one


def true_boxes(boxes_xyxy: Float[np.ndarray, "n 4"], truth: Truth) -> Float[np.ndarray, "_ 4"]:
    """The boxes of a text as they are ("any"), or the rectangle around them all ("merged")."""
    if truth == "any":
        return boxes_xyxy
    low, high = boxes_xyxy[:, :2].min(axis=0), boxes_xyxy[:, 2:].max(axis=0)
    return np.concatenate([low, high])[None]


def rank_boxes(
    candidates: Sequence[Float[np.ndarray, "_ 4"]],
    images: Int[np.ndarray, "T"],
    truths: Sequence[Float[np.ndarray, "_ 4"]],
) -> Ranking:
    """Compares every query's true boxes with all boxes of its image.

    Args:
        candidates: boxes of each image.
        images: image of each query.
        truths: true boxes of each query.
    """
    shape = len(images), max(map(len, candidates))
    real, right, inside = (np.zeros(shape, bool) for _ in range(3))
    iou = np.zeros(shape, np.float32)
    for row, (image, truth) in enumerate(zip(images.tolist(), truths, strict=True)):
        boxes = candidates[image]
        overlap = pairwise_iou(boxes, truth).max(axis=1, initial=0.0)
        real[row, : len(boxes)] = True
        iou[row, : len(boxes)] = overlap
        right[row, : len(boxes)] = overlap >= IOU_HIT
        inside[row, : len(boxes)] = centre_inside(boxes, truth)
    return Ranking(real, right, inside, iou)


def centre_inside(
    boxes_xyxy: Float[np.ndarray, "C 4"], truth_xyxy: Float[np.ndarray, "n 4"]
) -> Bool[np.ndarray, "C"]:
    """Whether the centre of each box is in any of the true ones, edges included."""
    centre = (boxes_xyxy[:, None, :2] + boxes_xyxy[:, None, 2:]) / 2  # [C, 1, 2]
    within = (centre >= truth_xyxy[None, :, :2]) & (centre <= truth_xyxy[None, :, 2:])
    return np.asarray(within.all(axis=-1).any(axis=1))


def hits(ranking: Ranking, scores: Float[np.ndarray, "T C"]) -> Hits:
    """How right the best boxes by `scores` are; what is not `real` comes last."""
    scores = np.where(ranking.real, scores, NO_BOX)
    recall = _expected(scores, ranking.right, KS)
    return Hits(recall, _expected(scores, ranking.inside, (1,))[1])


def random_hits(ranking: Ranking) -> Hits:
    """Of a random order of the image's boxes."""
    return hits(ranking, np.zeros(ranking.real.shape))


def upper_bound(ranking: Ranking) -> Float[np.ndarray, "T"]:
    """1 for queries that any box is right for, else 0: no choice among them does better."""
    return np.asarray(ranking.right.any(axis=1), np.float64)


def _expected(
    scores: Float[np.ndarray, "T C"], correct: Bool[np.ndarray, "T C"], ks: tuple[int, ...]
) -> dict[int, Float[np.ndarray, "T"]]:
    """`expected_recall`, 0 for rows with nothing correct."""
    rows = correct.any(axis=1)
    found = {k: np.zeros(len(scores)) for k in ks}
    if rows.any():
        for k, values in expected_recall(scores[rows], correct[rows], ks).items():
            found[k][rows] = values
    return found


def box_scores_of(
    box_xyxy: Float[np.ndarray, "4"],
    candidates: Sequence[Float[np.ndarray, "_ 4"]],
    images: Int[np.ndarray, "T"],
) -> Float[np.ndarray, "T C"]:
    """IoU of one constant box with the boxes of each query's image: the choice of who is blind."""
    scores = np.zeros((len(images), max(map(len, candidates))), np.float32)
    own = [pairwise_iou(boxes, box_xyxy[None])[:, 0] for boxes in candidates]
    for row, image in enumerate(images.tolist()):
        scores[row, : len(own[image])] = own[image]
    return scores


def fitted_box(truths: Sequence[Float[np.ndarray, "_ 4"]]) -> Float[np.ndarray, "4"]:
    """The box that is right for most of these queries: of some of their own, and the whole image.

    Of equals the first, the whole image before all.
    """
    flat = np.concatenate(truths)
    starts = np.cumsum([0, *(len(truth) for truth in truths[:-1])])
    picked = np.unique(np.linspace(0, len(flat) - 1, POOL).round().astype(int))
    pool = np.concatenate([WHOLE_IMAGE[None], flat[picked].astype(np.float32)])
    right = pairwise_iou(pool, flat) >= IOU_HIT  # [P, all true boxes]
    return pool[int(np.logical_or.reduceat(right, starts, axis=1).sum(axis=1).argmax())]


def constant_hits(
    box_xyxy: Float[np.ndarray, "4"],
    truths: Sequence[Float[np.ndarray, "_ 4"]],
    *,
    chosen_from: tuple[Sequence[Float[np.ndarray, "_ 4"]], Int[np.ndarray, "T"]] | None,
) -> Hits:
    """Of the same box for every query.

    `chosen_from`: boxes of each image and image of each query, where one of them must be chosen:
    that which overlaps the constant one most. None: the constant box itself is the answer.
    """
    if chosen_from is None:
        images = np.arange(len(truths))
        candidates: Sequence[np.ndarray] = [box_xyxy[None]] * len(truths)
    else:
        candidates, images = chosen_from
    ranking = rank_boxes(candidates, images, truths)
    return hits(ranking, box_scores_of(box_xyxy, candidates, images))


def cross_fitted_hits(
    truths: Sequence[Float[np.ndarray, "_ 4"]],
    images: Int[np.ndarray, "T"],
    *,
    candidates: Sequence[Float[np.ndarray, "_ 4"]] | None,
) -> Hits | None:
    """Of the best constant box, fitted to every other image and measured on the others, both ways.

    `candidates`: the boxes of each image to choose from, or None. None with a single image.
    """
    odd = images % 2 == 1
    if odd.all() or not odd.any():
        return None
    found = Hits({k: np.zeros(len(truths)) for k in KS}, np.zeros(len(truths)))
    for rows in (np.flatnonzero(odd), np.flatnonzero(~odd)):
        others = np.setdiff1d(np.arange(len(truths)), rows)
        box = fitted_box([truths[row] for row in others.tolist()])
        own = None if candidates is None else (candidates, images[rows])
        part = constant_hits(box, [truths[row] for row in rows.tolist()], chosen_from=own)
        for k in KS:
            found.recall[k][rows] = part.recall[k]
        found.pointing[rows] = part.pointing
    return found
