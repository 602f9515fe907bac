"""Whether probabilities hold: calibration error, likelihood, coverage of sets, with intervals."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from grain_jax.evaluation.bootstrap import bootstrap_interval
from grain_jax.evaluation.reliability import BINS, equal_mass_bins, equal_width_bins

RESAMPLES = 1000


@dataclass(frozen=True)
class Predictions:
    """What was said of N images, and whether it was right."""

    confidence: Float[np.ndarray, "N"]  # probability of the best label
    correct: Float[np.ndarray, "N"]  # 1 / labels tied for best, where the true one is among them
    nll: Float[np.ndarray, "N"]  # - log probability of the true label, natural
    in_set: Bool[np.ndarray, "N"]  # whether the true label is in the set
    set_size: Int[np.ndarray, "N"]


def predictions(
    probabilities: Float[np.ndarray, "N K"],
    sets: Bool[np.ndarray, "N K"],
    labels: Int[np.ndarray, "N"],
) -> Predictions:
    """How right probabilities and sets are; `labels` are the true ones."""
    rows = np.arange(len(labels))
    best = probabilities.max(axis=1)
    tied = probabilities == best[:, None]
    true = probabilities[rows, labels]
    return Predictions(
        confidence=best,
        correct=tied[rows, labels] / tied.sum(axis=1),
        nll=-np.log(np.maximum(true, np.finfo(np.float64).tiny)),
        in_set=sets[rows, labels],
        set_size=sets.sum(axis=1),
    )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of all blocks of images, in their order."""
    names = [field.name for field in dataclasses.fields(Predictions)]
    return Predictions(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )


@dataclass(frozen=True)
class Value:
    """A metric with its 95 % interval."""

    value: float
    low: float
    high: float


def measure(found: Predictions, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Value]:
    """Metrics of held-out images, with percentile bootstrap intervals over images.

    The error of a small sample is above 0 for a calibrated model too, and resampling adds as much
    again: its interval lies high, and the value may lie below it.
    """
    if len(found.confidence) == 0:
        raise ValueError("There are no held-out images to measure on; give more images.")
    count, gap = len(found.confidence), found.correct - found.confidence
    means = {
        "accuracy": found.correct,
        "mean_confidence": found.confidence,
        "nll": found.nll,
        "coverage": found.in_set,
        "set_size": found.set_size,
    }
    binned = {
        "ece": equal_width_bins(found.confidence),
        "adaptive_ece": equal_mass_bins(found.confidence),
    }
    # Every metric is of sums over images: of a value, or of the gap of those in each bin.
    columns = np.concatenate(
        [
            np.stack(list(means.values()), axis=1).astype(np.float64),
            *(gap[:, None] * (bins[:, None] == np.arange(BINS)) for bins in binned.values()),
        ],
        axis=1,
    )

    def metrics(totals: Float[np.ndarray, "R C"]) -> Float[np.ndarray, "R M"]:
        sums = totals / count
        errors = np.abs(sums[:, len(means) :]).reshape(len(sums), len(binned), BINS).sum(axis=2)
        return np.concatenate([sums[:, : len(means)], errors], axis=1)

    low, high = bootstrap_interval(
        columns, metrics, generator=np.random.default_rng(seed), resamples=resamples
    )
    values = metrics(columns.sum(axis=0, keepdims=True))[0]
    return {
        name: Value(float(values[i]), float(low[i]), float(high[i]))
        for i, name in enumerate((*means, *binned))
    }


def false_accepts_at(
    inside: Float[np.ndarray, "N"], outside: Float[np.ndarray, "M"], *, accepted: float = 0.95
) -> float:
    """FPR95: the fraction of `outside` that scores at least the threshold which `accepted` of
    `inside`, at least, reach: the highest such one.
    """
    rank = math.ceil(accepted * len(inside) - 1e-9)
    threshold = np.sort(inside)[len(inside) - rank]
    return float((outside >= threshold).mean())


def separation(inside: Float[np.ndarray, "N"], outside: Float[np.ndarray, "M"]) -> float:
    """AUROC: how probably a score of `inside` is above one of `outside`, ties counting half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)].sum()
    return float((ranks - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))
