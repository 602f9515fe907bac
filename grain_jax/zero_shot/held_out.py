"""Hyper-parameters chosen by labelled images that are held out."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

MAX_HELD_OUT = 2000  # images


def held_out(
    labels: Int[np.ndarray, "S"], *, at_least: int
) -> tuple[Int[np.ndarray, "F"], Int[np.ndarray, "V"]] | None:
    """Rows to fit to, and rows to choose hyper-parameters by: every second image of each class, at
    most `MAX_HELD_OUT` in all, evenly spaced over the classes.

    None where a class that has images has fewer than `at_least`.
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    if counts[counts > 0].min() < at_least:
        return None
    in_class = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    held = order[in_class % 2 == 1]
    if len(held) > MAX_HELD_OUT:
        held = held[np.linspace(0, len(held) - 1, MAX_HELD_OUT).round().astype(int)]
    return np.sort(order[in_class % 2 == 0]), held


def hit_rate(scores: Float[np.ndarray, "n K"], labels: Int[np.ndarray, "n"]) -> float:
    """Fraction of images whose best-scored class is theirs."""
    return hit_count(scores, labels) / len(labels)


def hit_count(scores: Float[np.ndarray, "n K"], labels: Int[np.ndarray, "n"]) -> int:
    """Images whose best-scored class is theirs."""
    return int(np.count_nonzero(scores.argmax(axis=1) == labels))


def best_of(values: Sequence[float], rate: Callable[[float], float]) -> float:
    """The value of the highest rate, the first of equal ones."""
    rates = [rate(value) for value in values]
    return values[int(np.argmax(rates))]
