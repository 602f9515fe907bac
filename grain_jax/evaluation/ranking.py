"""Top-k hits with exact ties in random order, and the interval of a proportion.

A tie is worth its expected value, so a model that gives every class the same score is exactly
at the random baseline, whatever the order of the classes.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int

CHUNK_ROWS = 1024  # rows of a score matrix looked at together: bounds the memory of the masks


def expected_recall(
    scores: Float[np.ndarray, "N K"], correct: Bool[np.ndarray, "N K"], ks: tuple[int, ...]
) -> dict[int, Float[np.ndarray, "N"]]:
    """Expected recall at each k, in [0, 1]: the probability that a correct item is among the k best
    of its row, with ties in random order.

    Without ties it is 0 or 1. Raises ValueError on scores that are not finite or a row without a
    correct item.
    """
    _check_finite(scores)
    if not correct.any(axis=1).all():
        row = int(np.flatnonzero(~correct.any(axis=1))[0])
        raise ValueError(f"Row {row} has no correct item to find; leave such rows out.")
    best = np.where(correct, scores, -np.inf).max(axis=1, keepdims=True)  # [N, 1]
    tied = scores == best
    return _recall_at(
        ks,
        ahead=np.count_nonzero(scores > best, axis=1),
        wrong_tied=np.count_nonzero(tied & ~correct, axis=1),
        correct_tied=np.count_nonzero(tied & correct, axis=1),
    )


def expected_recall_of_labels(
    scores: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"], ks: tuple[int, ...]
) -> dict[int, Float[np.ndarray, "N"]]:
    """As `expected_recall`, where the correct item of a row is that of its label.

    Raises ValueError on scores that are not finite and on labels beyond the items.
    """
    if labels.size and (labels.min() < 0 or labels.max() >= scores.shape[1]):
        raise ValueError(
            f"Labels range from {labels.min()} to {labels.max()}, but there are {scores.shape[1]} "
            f"items; give indices from 0 to {scores.shape[1] - 1}."
        )
    _check_finite(scores)
    best = scores[np.arange(len(scores)), labels][:, None]
    return _recall_at(
        ks,
        ahead=np.count_nonzero(scores > best, axis=1),
        wrong_tied=np.count_nonzero(scores == best, axis=1) - 1,
        correct_tied=np.ones(len(scores), int),
    )


def _check_finite(scores: Float[np.ndarray, "N K"]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        total = scores.sum()  # not finite where a score is not, or where it overflows
    if not np.isfinite(total) and not np.isfinite(scores).all():
        raise ValueError(
            "Scores to rank hold NaN or infinity: the model or a text embedding is not finite. "
            "Evaluate an earlier checkpoint."
        )


def _recall_at(
    ks: tuple[int, ...],
    *,
    ahead: Int[np.ndarray, "N"],  # wrong ones only: nothing correct beats the best correct
    wrong_tied: Int[np.ndarray, "N"],
    correct_tied: Int[np.ndarray, "N"],
) -> dict[int, Float[np.ndarray, "N"]]:
    """Expected recall from how many items are ahead of the best correct one, and tie with it."""
    hits = {}
    for k in ks:
        miss = np.ones(len(ahead))
        for draw in range(k):  # slots of the top k that the tied group fills, one by one
            factor = np.maximum(wrong_tied - draw, 0) / np.maximum(
                wrong_tied + correct_tied - draw, 1
            )
            miss *= np.where(draw < k - ahead, factor, 1.0)
        hits[k] = 1.0 - miss
    return hits


def wilson_interval(rate: float, count: int | float) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion `rate` seen in `count` independent trials, which
    may be an effective number, not a whole one; (0, 1) for none.
    """
    if count == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    denominator = 1 + z**2 / count
    centre = (rate + z**2 / (2 * count)) / denominator
    half = z * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)) / denominator
    # exact where rounding would leave 1e-17 of 0, or of 1
    low = 0.0 if rate == 0 else max(0.0, centre - half)
    high = 1.0 if rate == 1 else min(1.0, centre + half)
    return low, high
