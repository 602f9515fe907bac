"""Scores of tests of composition: pure functions of cosines, exact ties at their expectation.

A question with several images or captions is answered in full or not at all; where cosines tie
exactly, the value is the probability of a right answer with ties broken at random, as a model that
says the same of everything should be at the random baseline.
"""

import itertools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.evaluation.bootstrap import bootstrap_interval
from grain_jax.evaluation.ranking import wilson_interval

RESAMPLES = 2_000


def caption_choices(
    right: Float[np.ndarray, "N"], wrong: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "N"]:
    """1 where the right caption has the higher cosine, 0 where the wrong one has, 0.5 for a tie.

    Raises ValueError for cosines that are not finite.
    """
    _check_finite(right, wrong)
    return np.where(right == wrong, 0.5, (right > wrong).astype(np.float64))


@dataclass(frozen=True)
class PairingScores:
    """Winoground's three scores of each question (Thrush et al. 2022)."""

    text: Float[np.ndarray, "N"]  # each image has its own caption as the best
    image: Float[np.ndarray, "N"]  # each caption has its own image as the best
    group: Float[np.ndarray, "N"]  # both


def pairing_scores(cosines: Float[np.ndarray, "N 2 2"]) -> PairingScores:
    """The scores of `cosines[n, image, caption]`, caption i being of image i.

    A model that says the same of everything gets 1/4, 1/4 and 1/6. Raises ValueError for cosines
    that are not finite.
    """
    _check_finite(cosines)
    flat = cosines.reshape(len(cosines), 4)  # (0,0), (0,1), (1,0), (1,1)
    equal = flat[:, :, None] == flat[:, None, :]
    above = flat[:, :, None] > flat[:, None, :]
    totals = np.zeros((3, len(flat)))
    orders = list(itertools.permutations(range(4)))
    for order in orders:  # of what is equal
        first = np.array(order)[:, None] > np.array(order)[None, :]
        wins = above | (equal & first)
        text = wins[:, 0, 1] & wins[:, 3, 2]
        image = wins[:, 0, 2] & wins[:, 3, 1]
        totals += np.stack([text, image, text & image])
    return PairingScores(*(totals / len(orders)))


@dataclass(frozen=True)
class GroupMean:
    """Accuracy averaged over groups, each with the same weight, and its 95 % interval."""

    value: float
    low: float
    high: float
    groups: int


def group_mean(
    values: Float[np.ndarray, "N"],
    groups: Int[np.ndarray, "N"],
    images: Int[np.ndarray, "N"],
    *,
    counted: Collection[int],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> GroupMean:
    """The mean over `counted` groups of the mean of each, with a bootstrap of images.

    The interval is the percentile one: images are drawn with replacement, with all their questions,
    and a group that was not drawn is left out of that draw. Where all images agree, it is Wilson's
    over images. Raises ValueError without a group.
    """
    kept = np.isin(groups, list(counted))
    if not kept.any():
        raise ValueError("No group is counted, so there is nothing to average.")
    _, groups = np.unique(groups[kept], return_inverse=True)
    _, images = np.unique(images[kept], return_inverse=True)
    shape = int(images.max()) + 1, int(groups.max()) + 1
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (images, groups), values[kept])
    np.add.at(counts, (images, groups), 1.0)
    value = float((sums.sum(axis=0) / counts.sum(axis=0)).mean())

    def mean(totals: Float[np.ndarray, "R C"]) -> Float[np.ndarray, "R 1"]:
        hits, seen = np.split(totals, 2, axis=1)  # [R, groups]
        rates = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        return rates.sum(axis=1, keepdims=True) / (seen > 0).sum(axis=1, keepdims=True)

    lows, highs = bootstrap_interval(
        np.concatenate([sums, counts], axis=1),
        mean,
        generator=np.random.default_rng(seed),
        resamples=resamples,
    )
    low, high = float(lows[0]), float(highs[0])
    if low == high:  # all images agree, so that drawing them says nothing of others
        low, high = wilson_interval(value, shape[0])
    return GroupMean(value, low, high, shape[1])


def _check_finite(*scores: np.ndarray) -> None:
    if not all(np.isfinite(part).all() for part in scores):
        raise ValueError("Cosines hold NaN or infinity. Evaluate an earlier checkpoint.")
