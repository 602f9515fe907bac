"""The baseline of grounding: boxes that look at no image, fitted to training boxes.

Birds sit in the middle and photographs have habits, so blind boxes score well above nothing; a
model has learned to ground by what it adds to them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from grain_jax.boxes import best_pairs, pairwise_iou
from grain_jax.evaluation.annotations import Annotations
from grain_jax.evaluation.grounding import Phrase, box_scores, phrase_hits
from grain_jax.evaluation.mean_results import mean_result
from grain_jax.results import Result


@dataclass(frozen=True)
class ConstantBoxes:
    """As many boxes as the model has queries, the one that answers most phrases, and one of each
    part (xyxy).
    """

    boxes: Float[np.ndarray, "Q 4"]
    single: Float[np.ndarray, "4"]
    parts: dict[str, Float[np.ndarray, "4"]] = field(default_factory=dict)
    part_of: Callable[[str], str | None] | None = None


def fit_constant_boxes(
    training: Annotations, num_boxes: int, *, part_of: Callable[[str], str | None] | None = None
) -> ConstantBoxes:
    """`part_of` tells the part that a phrase speaks of, where data has parts: their median boxes
    are fitted too.

    Raises ValueError without a training box.
    """
    boxes = constant_boxes(training.boxes, num_boxes)
    groups: dict[str, list[np.ndarray]] = {}
    for phrase in training.phrases if part_of is not None else ():
        if part_of is not None and (part := part_of(phrase.text)) is not None:
            groups.setdefault(part, []).extend(phrase.boxes)
    medians = {part: np.median(own, axis=0) for part, own in groups.items()}
    return ConstantBoxes(boxes, best_single_box(boxes, training.phrases), medians, part_of)


def score_constant_boxes(baseline: ConstantBoxes, truth: Annotations, dataset: str) -> list[Result]:
    """The metrics of grounding for boxes that are the same on every image: "constant_boxes".

    A phrase is answered by the best single box. With parts also "part_boxes": the median box of
    each part, and for a phrase that of the part it speaks of (a blind model that understands the
    words).
    """
    answers = np.broadcast_to(baseline.single, (len(truth.phrases), 4))
    results = _scores(dataset, "constant_boxes", baseline.boxes, answers, truth)
    if baseline.parts and baseline.part_of is not None:
        parts = [baseline.part_of(phrase.text) or "" for phrase in truth.phrases]
        answers = np.stack([baseline.parts.get(part, baseline.single) for part in parts])
        boxes = np.stack(list(baseline.parts.values()))
        results += _scores(dataset, "part_boxes", boxes, answers, truth)
    return results


def _scores(
    dataset: str, method: str, boxes: np.ndarray, answers: np.ndarray, truth: Annotations
) -> list[Result]:
    scores = box_scores(np.broadcast_to(boxes, (len(truth.boxes), *boxes.shape)), truth.boxes)
    hits = phrase_hits(answers, truth.phrases)
    images = np.array([phrase.image for phrase in truth.phrases], int)
    accuracy = mean_result(dataset, method, "phrase_accuracy", hits, images)
    return [*scores.results(dataset, method), accuracy]


def constant_boxes(
    true_xyxy: Sequence[Float[np.ndarray, "_ 4"]],
    num_boxes: int,
    *,
    seed: int = 0,
    restarts: int = 4,
    rounds: int = 12,
) -> Float[np.ndarray, "Q 4"]:
    """The `num_boxes` boxes that, the same for every image, match these training boxes best: the
    baseline.

    k-means under matched IoU: each image's boxes are assigned one-to-one to the constants, each
    constant moves to the median of its boxes, and the best of some random starts is kept. Raises
    ValueError without a training box.
    """
    with_boxes = [boxes for boxes in true_xyxy if len(boxes)]
    if not with_boxes:
        raise ValueError("Constant boxes need at least one training box.")
    pool = np.concatenate(with_boxes)
    generator = np.random.default_rng([seed, num_boxes])
    best_boxes, best_iou = pool[:1].repeat(num_boxes, axis=0), -1.0
    for _ in range(restarts):
        constants = pool[generator.choice(len(pool), num_boxes, replace=len(pool) < num_boxes)]
        for _ in range(rounds):
            mean_iou, moved = _assign_and_move(constants, with_boxes)
            if mean_iou > best_iou:
                best_boxes, best_iou = constants, mean_iou
            if np.abs(moved - constants).max() < 1e-4:
                break
            constants = moved
    return best_boxes


def best_single_box(
    boxes_xyxy: Float[np.ndarray, "Q 4"], phrases: Sequence[Phrase]
) -> Float[np.ndarray, "4"]:
    """Of some boxes the one that answers most of these (training) phrases: the blind answer to any
    phrase.
    """
    hits = [
        phrase_hits(np.broadcast_to(box, (len(phrases), 4)), phrases).sum() for box in boxes_xyxy
    ]
    return boxes_xyxy[int(np.argmax(hits))]


def _assign_and_move(
    constants: Float[np.ndarray, "Q 4"], true_xyxy: Sequence[Float[np.ndarray, "_ 4"]]
) -> tuple[float, Float[np.ndarray, "Q 4"]]:
    """Mean matched IoU of the constants, and each moved to the median of its boxes (one without any
    stays).
    """
    members: list[list[np.ndarray]] = [[] for _ in constants]
    total = 0.0
    for boxes in true_xyxy:
        iou = pairwise_iou(constants, boxes)
        for query, box in zip(*best_pairs(iou), strict=True):
            members[query].append(boxes[box])
            total += float(iou[query, box])
    moved = [
        np.median(own, axis=0) if own else box for own, box in zip(members, constants, strict=True)
    ]
    return total / sum(map(len, true_xyxy)), np.stack(moved).astype(constants.dtype)
