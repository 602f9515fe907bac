"""Which classes a method finds, which ones it takes for each other, and which ones another method
finds more often.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from grain_jax.evaluation.statistics import holm


@dataclass(frozen=True)
class ClassAccuracy:
    """Of the images of one class."""

    name: str
    images: int
    accuracy: float  # mean of how right their answers are, in [0, 1]


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were given to another."""

    label: str
    predicted: str
    images: int
    fraction: float  # of the images of `label`


@dataclass(frozen=True)
class ClassDifference:
    """One class by A and by B, on the same images."""

    name: str
    images: int
    first: float  # accuracy of A
    second: float  # of B
    only_first: int  # images that A gets more right than B
    only_second: int
    p_value: float  # two-sided, of the sign test
    adjusted_p_value: float  # by Holm, over the classes

    @property
    def value(self) -> float:
        """B - A: positive where B wins the class."""
        return self.second - self.first


def class_accuracies(labels: Sequence[str], correct: Float[np.ndarray, "N"]) -> list[ClassAccuracy]:
    """Of every class that has images, in the order of the names."""
    names, index, counts = np.unique(np.array(labels), return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=correct) / counts
    return [
        ClassAccuracy(str(name), int(count), float(mean))
        for name, count, mean in zip(names, counts, means, strict=True)
    ]


def confused_pairs(
    labels: Sequence[str], predicted: Sequence[str], *, limit: int
) -> list[ConfusedPair]:
    """The `limit` most frequent pairs of a class and another one that its images were given to;
    of equally frequent ones those first in the order of the names.
    """
    images = Counter(labels)
    pairs = Counter(pair for pair in zip(labels, predicted, strict=True) if pair[0] != pair[1])
    first = sorted(pairs.items(), key=lambda entry: (-entry[1], entry[0]))[:limit]
    return [
        ConfusedPair(label, other, count, count / images[label]) for (label, other), count in first
    ]


def class_differences(
    labels: Sequence[str], first: Float[np.ndarray, "N"], second: Float[np.ndarray, "N"]
) -> list[ClassDifference]:
    """Every class by how much B wins or loses it, its largest win first.

    Args:
        labels: the true class of each image.
        first: how right A is of each, in [0, 1].
        second: how right B is, of the same images.
    """
    names, index, counts = np.unique(np.array(labels), return_inverse=True, return_counts=True)
    before, after, lost, won = (
        np.bincount(index, weights=values, minlength=len(names))
        for values in (first, second, first > second, second > first)
    )
    p_values = [sign_test(int(a), int(b)) for a, b in zip(lost, won, strict=True)]
    found = [
        ClassDifference(
            name=str(names[k]),
            images=int(counts[k]),
            first=float(before[k] / counts[k]),
            second=float(after[k] / counts[k]),
            only_first=int(lost[k]),
            only_second=int(won[k]),
            p_value=p_values[k],
            adjusted_p_value=adjusted,
        )
        for k, adjusted in enumerate(holm(p_values))
    ]
    return sorted(found, key=lambda one: (-one.value, one.name))


def sign_test(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact sign test, which for right and wrong answers is McNemar's
    exact test: whether images that only one side gets right are as often A's as B's.
    """
    import scipy.stats

    total = only_first + only_second
    tail = scipy.stats.binom.cdf(min(only_first, only_second), total, 0.5)
    return min(1.0, 2.0 * float(tail))
