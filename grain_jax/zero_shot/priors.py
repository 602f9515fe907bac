"""Methods that correct what a class gets from any image: prior matching, and the mean over images
that have nothing to do with the classes.

Both add a number to the score of each class. Liusie et al. 2023, arXiv 2309.04992, have them for
prompts of language models, whose word bias this is.
"""

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

_LARGEST = 60.0  # of a log weight: its exponential is still a float32


def prior_matching(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """Weights a_c such that p_a(c|x), in proportion to a_c p(c|x), has the same mean over the
    unlabeled images for every class; the score is the cosine + log(a_c) / scale.

    Published with a grid search over few classes; here the fixed point, whose solution is the same.
    """
    classes = class_vectors(texts)
    images = images_to_fit(unlabeled, len(classes.vectors))
    cosines = similarities(images, classes.vectors)
    weights = matched_log_weights(cosines, texts.logit_scale, classes.fractions)
    shift = (weights / texts.logit_scale).astype(np.float32)
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


def matched_log_weights(
    cosines: Float[np.ndarray, "N D"],
    scale: float,
    fractions: Float[np.ndarray, "D"],
    *,
    iterations: int = 200,
    tolerance: float = 1e-3,
) -> Float[np.ndarray, "D"]:
    """Logs of the weights with which the mean probability of each class over the images is its
    fraction: Sinkhorn's iteration, every row a distribution.

    Args:
        cosines: overwritten.
        scale: of the softmax.
        fractions: sum to 1.
        iterations: at most.
        tolerance: largest relative error of a mean that is accepted.
    """
    for rows in blocks(*cosines.shape):
        part = cosines[rows]
        part -= part.max(axis=1, keepdims=True)
        part *= np.float32(scale)
        np.exp(part, out=part)
    logs = np.zeros(cosines.shape[1])
    for _ in range(iterations):
        weights = np.exp(logs).astype(np.float32)
        total = cosines @ weights
        mean = weights * ((1.0 / total) @ cosines) / np.float32(len(cosines))
        mean = np.maximum(mean.astype(np.float64), 1e-30)
        if np.abs(mean / fractions - 1.0).max() < tolerance:
            break
        logs += np.log(fractions / mean)
        logs -= logs.mean()
        np.clip(logs, -_LARGEST, _LARGEST, out=logs)
    return logs.astype(np.float32)
