"""Whether answers given with a probability are right as often as it says."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

BINS = 15  # as Guo et al. 2017 (arXiv 1706.04599) have
TIED_DIGITS = 6  # as many as float32 has


@dataclass(frozen=True)
class ReliabilityBin:
    """The answers whose probability is in (low, high]."""

    low: float
    high: float
    answers: int
    probability: float  # mean
    accuracy: float  # mean


def equal_width_bins(probability: Float[np.ndarray, "N"], bins: int = BINS) -> Int[np.ndarray, "N"]:
    """Bin of each: (i / B, (i + 1) / B], as Guo et al. 2017; 0 lies in the first."""
    return np.clip(np.ceil(probability * bins).astype(int) - 1, 0, bins - 1)


def equal_mass_bins(probability: Float[np.ndarray, "N"], bins: int = BINS) -> Int[np.ndarray, "N"]:
    """Bin of each, with as many answers in each as ties allow (the adaptive error).

    Probabilities that are equal in `TIED_DIGITS` decimals tie, and lie in one bin. By their last
    bits they would be split at random among bins, whose errors of opposite sign no longer cancel:
    the more ties, as where a model is sure of everything, the larger and noisier the error.
    """
    probability = np.round(probability, TIED_DIGITS)
    edges = np.quantile(probability, np.arange(1, bins) / bins)
    return np.searchsorted(edges, probability, side="left")


def calibration_error(
    probability: Float[np.ndarray, "N"],
    correct: Float[np.ndarray, "N"],
    bins: Int[np.ndarray, "N"],
) -> float:
    """Mean over answers of |accuracy - mean probability| of their bin, in [0, 1]."""
    gaps = np.bincount(bins, weights=correct - probability)
    return float(np.abs(gaps).sum() / len(bins))


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
    place = equal_width_bins(probability, bins)
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
    """`calibration_error` over bins of equal width (Guo et al. 2017)."""
    return calibration_error(probability, correct, equal_width_bins(probability, bins))
