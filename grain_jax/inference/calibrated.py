"""Scores of labels as probabilities, "none of these" and sets, by a model's calibration if it has
one that was fitted to the same question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from grain_jax.inference.fingerprints import params_sha256
from grain_jax.inference.results import Calibrated, GroundedText
from grain_jax.models.bundle import ModelBundle
from grain_jax.zero_shot.arithmetic import mean_vectors, softmax
from grain_jax.zero_shot.by_text import kind_scores, name_scores
from grain_jax.zero_shot.calibration import (
    Calibration,
    bank_of_regions,
    gl_mcm_score,
    mcm_scores,
    sets_of_labels,
    texts_sha256,
)
from grain_jax.zero_shot.method import ClassBanks, Images
from grain_jax.zero_shot.methods import METHODS
from grain_jax.zero_shot.text_kinds import DESCRIPTIONS, NAMES


@dataclass(frozen=True)
class Question:
    """What N images were asked, by one method."""

    labels: Sequence[str]
    banks: ClassBanks
    method: str  # of `METHODS`
    alpha: float | None  # None for a method without one


@dataclass(frozen=True)
class Meaning:
    """What the scores of N images for K labels mean."""

    rank_by: Float[np.ndarray, "N K"]  # higher is better
    probabilities: Float[np.ndarray, "N K"]
    calibrated: bool = False
    in_distribution_score: Float[np.ndarray, "N"] | None = None
    threshold: float | None = None  # of `in_distribution_score`
    in_set: Bool[np.ndarray, "N K"] | None = None
    coverage: float | None = None
    seen_cosine: float | None = None

    def of_image(self, n: int, labels: Sequence[str]) -> Calibrated | None:
        """What the calibration says of image n; None where there is none for the question."""
        if not self.calibrated:
            return None
        inside = None
        if self.in_set is not None:
            order = np.argsort(-self.rank_by[n], kind="stable").tolist()
            inside = tuple(labels[k] for k in order if self.in_set[n, k])
        found = None
        if self.in_distribution_score is not None:
            found = float(self.in_distribution_score[n])
        return Calibrated(found, self.threshold, inside, self.coverage)

    def num_seen(self, grounded: Sequence[GroundedText]) -> int | None:
        """How many of a label's descriptions a region shows; None where that was not fitted."""
        found = [one.cosine for one in grounded if one.query is not None]
        if self.seen_cosine is None or not found:
            return None
        return sum(cosine >= self.seen_cosine for cosine in found)


def in_distribution_scores(
    images: Images, banks: ClassBanks, *, method: str, temperature: float
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"] | None]:
    """`mcm_scores` of images by the texts that the method compares the whole image with."""
    if NAMES in METHODS[method].texts:
        whole = name_scores(images, banks)
    else:
        whole = kind_scores(images, banks, DESCRIPTIONS)
    classes = mean_vectors(bank_of_regions(banks))
    return mcm_scores(whole, images.regions, classes, temperature=temperature)


def scored_method(method: str, alpha: float, *, described: bool) -> tuple[str, float | None]:
    """The method and alpha by which evaluation knows what `Model.classify` scores.

    At its ends the mixture is one of its parts, and evaluation has it under that name.
    """
    if not described or method == "name" or (method == "name_and_regions" and alpha == 1):
        return "name", None
    return "description" if method == "name_and_regions" and alpha == 0 else method, alpha


def check_weights(calibration: Calibration, loaded: ModelBundle) -> None:
    """Raises ValueError where the calibration is of other weights."""
    if params_sha256(loaded.params) != calibration.weights_sha256:
        raise ValueError(
            f"the calibration was fitted to other weights, of step {calibration.step}, and these "
            f"are of step {loaded.step}; fit one to them with python -m grain_jax.calibrate"
        )


def interpret(
    scores: Float[np.ndarray, "N K"],
    question: Question,
    images: Images,
    *,
    logit_scale: float,
    calibration: Calibration | None,
    note: Callable[[str], None],
) -> Meaning:
    """What scores mean; without a calibration that fits the question, their softmax.

    The temperature is used for other classes too, the rest only for those it was fitted to.
    """
    logits = logit_scale * scores.astype(np.float64)
    if calibration is None:
        return Meaning(scores, softmax(logits))
    if (reason := _other_method(calibration, question)) is not None:
        note(f"The calibration is not used: {reason}.")
        return Meaning(scores, softmax(logits))
    reason = _other_texts(calibration, question)
    if reason is not None and calibration.class_shift is not None:
        note(f"The calibration is not used: {reason}, and it has no temperature.")
        return Meaning(scores, softmax(logits))
    logits /= calibration.temperature
    if reason is not None:
        note(
            f"{reason[0].upper()}{reason[1:]}. Of the calibration only the temperature is used, "
            "which often carries over and is not certain to; fit one to these for 'none of these' "
            "and sets of labels."
        )
        return Meaning(scores, softmax(logits), calibrated=True)
    rank_by = scores
    if calibration.class_shift is not None:
        logits += np.array([calibration.class_shift[label] for label in question.labels])
        rank_by = logits
    probabilities = softmax(logits)
    none, sets = calibration.none_of_these, calibration.label_sets
    found = None
    if none is not None:
        parts = in_distribution_scores(
            images, question.banks, method=question.method, temperature=none.temperature
        )
        found = gl_mcm_score(*parts, none.region_weight)
    return Meaning(
        rank_by,
        probabilities,
        calibrated=True,
        in_distribution_score=found,
        threshold=None if none is None else none.threshold,
        in_set=None if sets is None else sets_of_labels(probabilities, sets),
        coverage=None if sets is None else sets.coverage,
        seen_cosine=calibration.seen_cosine,
    )


def _other_method(calibration: Calibration, question: Question) -> str | None:
    fitted = {"method": calibration.method, "alpha": calibration.alpha, **calibration.scoring}
    asked = {"method": question.method, "alpha": question.alpha, **question.banks.scoring}
    for name, value in asked.items():
        if fitted.get(name) != value:
            return f"it was fitted for {name}={fitted.get(name)}, and this is {name}={value}"
    return None


def _other_texts(calibration: Calibration, question: Question) -> str | None:
    if set(calibration.classes) != set(question.labels):
        return (
            f"the calibration was fitted to {len(calibration.classes)} other classes "
            f"({calibration.classes[0]!r} first) than these {len(question.labels)}"
        )
    found = texts_sha256(question.labels, question.banks.texts, question.banks.banks)
    if found != calibration.texts_sha256:
        return "the calibration was fitted to these classes by other descriptions or templates"
    return None
