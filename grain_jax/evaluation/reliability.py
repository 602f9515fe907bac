"""Whether answers given with a probability are right as often as it says."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

BINS = 15  # as Guo et al. 2017 (arXiv 1706.04599) have


@dataclass(frozen=True)
class ReliabilityBin:
    """The answers whose probability is in (low, high]."""

    low: float
    high: float
    answers: int
    probability: float  # mean
    accuracy: float  # mean


def reliability_bins(
    probability: Float[np.ndarray, "N"], correct: Float[np.ndarray, "N"], *, bins: int = BINS
) -> list[ReliabilityBin]:
    """Bins of equal width over [0, 1] that hold answers, lowest first.

    Args:
        probability: of the predicted class, in [0, 1].
        correct: how right the prediction is, in [0, 1].

    Raises ValueError for no answers, or probabilities outside [0, 1].
    """
    if len(probability) == 0 or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("Reliability needs one or more probabilities, each in [0, 1].")
    place = np.clip(np.ceil(probability * bins).astype(int) - 1, 0, bins - 1)
    counts, probabilities, hits = (
        np.bincount(place, weights=weights, minlength=bins)
        for weights in (np.ones(len(place)), probability, correct)
    )
    return [
        ReliabilityBin(
            low=k / bins,
            high=(k + 1) / bins,
            answers=int(counts[k]),
            probability=float(probabilities[k] / counts[k]),
            accuracy=float(hits[k] / counts[k]),
        )
        for k in np.flatnonzero(counts).tolist()
    ]


def expected_calibration_error(
    probability: Float[np.ndarray, "N"], correct: Float[np.ndarray, "N"], *, bins: int = BINS
) -> float:
    """Mean over answers of |accuracy - probability| of their bin (Guo et al. 2017), in [0, 1].

    Raises ValueError as `reliability_bins`.
    """
    found = reliability_bins(probability, correct, bins=bins)
    gaps = sum(one.answers * abs(one.accuracy - one.probability) for one in found)
    return gaps / len(probability)
