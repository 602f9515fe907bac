"""Methods that correct what a class gets from any image: prior matching, and the mean over images
that have nothing to do with the classes.

Both add a number to the score of each class. Liusie et al. 2023, arXiv 2309.04992, have them for
prompts of language models, whose word bias this is.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.method import (
    CaptionBank,
    ClassBanks,
    Images,
    Score,
    Support,
    caption_bank,
)
from grain_jax.zero_shot.unlabeled import blocks, class_vectors, images_to_fit

_LARGEST = 300.0  # of a log weight: products of its exponential are still a float64
_LEAST_FLOAT32 = 1e-20  # weight relative to the largest with which float32 is precise
_LEAST_TOLERANCE = 1e-5  # that sums in float32 can tell
_SMALLEST = 1e-300  # mean probability whose logarithm is taken


def prior_matching(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """Weights a_c such that p_a(c|x), in proportion to a_c p(c|x), has the same mean over the
    unlabeled images for every class; the score is the cosine + log(a_c) / scale.

    Published with a grid search over few classes; here the fixed point, whose solution is the same;
    where 200 iterations do not reach it, the last weights.
    """
    classes = class_vectors(texts)
    images = images_to_fit(unlabeled, len(classes.vectors))
    cosines = similarities(images, classes.vectors)
    weights = matched_log_weights(cosines, texts.logit_scale, classes.fractions)
    shift = (weights.logs / texts.logit_scale).astype(np.float32)
    return lambda images, alpha: classes.expand(images.image @ classes.vectors.T + shift)


def without_generic(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """The cosine less its mean over the images of the caption bank: what a class gets from an
    image that says nothing about it. Published with an empty text as the input.
    """
    generic = caption_bank(bank).image
    classes = class_vectors(texts)
    shift = generic.mean(axis=0, dtype=np.float64).astype(np.float32) @ classes.vectors.T
    return lambda images, alpha: classes.expand(images.image @ classes.vectors.T - shift)


def similarities(
    images: Float[np.ndarray, "N E"], vectors: Float[np.ndarray, "D E"]
) -> Float[np.ndarray, "N D"]:
    """Cosines."""
    return images @ vectors.T


@dataclass(frozen=True)
class MatchedWeights:
    """What `matched_log_weights` found, and whether the means are as they should be."""

    logs: Float[np.ndarray, "D"]  # of mean 0
    converged: bool


def matched_log_weights(
    cosines: Float[np.ndarray, "N D"],
    scale: float,
    fractions: Float[np.ndarray, "D"],
    *,
    iterations: int = 200,
    tolerance: float = 1e-3,
) -> MatchedWeights:
    """Logs of the weights with which the mean probability of each class over the images is its
    fraction: Sinkhorn's iteration, every row a distribution. Sums over all
    images are in float64.

    A class whose probability is 0 in every image, to the precision of `cosines`, cannot be matched:
    the others are, among themselves, and it gets the least weight that could be too small.

    Args:
        cosines: overwritten; the precision of probabilities is theirs.
        scale: of the softmax.
        fractions: sum to 1.
        iterations: at most.
        tolerance: largest relative error of a mean that is accepted.
    """
    for rows in blocks(*cosines.shape):
        part = cosines[rows]
        part -= part.max(axis=1, keepdims=True)
        part *= scale
        np.exp(part, out=part)
    there = cosines.max(axis=0) > 0
    wanted = np.where(there, fractions, 0.0).astype(np.float64)
    wanted /= wanted.sum()
    logs, near = np.zeros(cosines.shape[1]), False
    for _ in range(iterations):
        weights = np.where(there, np.exp(logs), 0.0)
        mean = _mean_probabilities(cosines, weights, exact=tolerance < _LEAST_TOLERANCE)
        near = bool(np.abs(mean[there] / wanted[there] - 1.0).max() < tolerance)
        if near:
            break
        logs[there] += np.log(wanted[there] / np.maximum(mean[there], _SMALLEST))
        logs[there] -= logs[there].mean()
        np.clip(logs, -_LARGEST, _LARGEST, out=logs)
    logs[~there] = logs[there].min() - np.log(np.finfo(cosines.dtype).tiny)
    return MatchedWeights(logs - logs.mean(), near and bool(there.all()))


def _mean_probabilities(
    powers: Float[np.ndarray, "N D"], weights: Float[np.ndarray, "D"], *, exact: bool
) -> Float[np.ndarray, "D"]:
    """Mean over the rows of `weights` times `powers`, each row scaled to a sum of 1.

    Args:
        exact: in float64; otherwise in that of `powers` within blocks of rows, if it holds them.
    """
    weights = weights / weights.max()
    # The largest of a row is 1: its sum is at least the least weight.
    narrow = not exact and weights[weights > 0].min() > _LEAST_FLOAT32
    precision = powers.dtype if narrow else np.dtype(np.float64)
    factors = weights.astype(precision)
    total = np.zeros(len(weights))
    for rows in blocks(*powers.shape):
        part = powers[rows].astype(precision, copy=False)
        total += (1 / (part @ factors)) @ part
    return weights * total / len(powers)
