"""TransCLIP: a mixture of Gaussians over image embeddings, one a class, held by the class texts and
by each image's neighbours.

Zanella, Gerin & Ben Ayed 2024, arXiv 2406.01837, without labelled images. With y the softmax over
class texts, p the density of a class (means, one diagonal covariance) and w the cosine with the 3
nearest images, the assignment z of an image is in proportion to y^lambda p exp(sum_j w_j z_j);
means and covariance are those of the assigned images.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.arithmetic import log_softmax, softmax
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Images, Score, Support
from grain_jax.zero_shot.neighbours import neighbours_among, neighbours_within
from grain_jax.zero_shot.propagation import Edges
from grain_jax.zero_shot.unlabeled import (
    best_images,
    blocks,
    class_vectors,
    images_to_fit,
    log_probabilities,
)

NEIGHBOURS, SEEDS, ITERATIONS, INNER_ITERATIONS, TEXT_WEIGHT = 3, 8, 10, 5, 1.0
MIN_VARIANCE = 1e-3  # over the width: one of all images is about 1 / width


@dataclass(frozen=True)
class Mixture:
    """The Gaussians, and the assignment of the images that they were fitted to."""

    means: Float[np.ndarray, "D E"]  # float64, as the variance
    variance: Float[np.ndarray, "E"]
    assigned: Float[np.ndarray, "N D"]


def transclip(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """The log of the assignment that an image would get, over the logit scale.

    Published for the unlabeled images alone, whose assignment is read off; here an image gets one
    from the fitted Gaussians, its text scores and its 3 nearest unlabeled images, itself if it is
    one.
    """
    classes = class_vectors(texts)
    keys = images_to_fit(unlabeled, len(classes.vectors))
    assert unlabeled is not None
    scale = texts.logit_scale
    prior = log_probabilities(keys, classes.vectors, scale)
    joined = Edges(*neighbours_within(unlabeled, keys, NEIGHBOURS), len(keys))
    mixture = fit_mixture(keys, prior, joined)

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        by_text = scale * (images.image.astype(np.float64) @ classes.vectors.T.astype(np.float64))
        near = Edges(*neighbours_among(images, unlabeled, keys, NEIGHBOURS), len(keys))
        logits = TEXT_WEIGHT * log_softmax(by_text) + log_densities(images.image, mixture)
        return classes.expand(log_softmax(logits + near @ mixture.assigned) / scale)

    return score


def fit_mixture(
    images: Float[np.ndarray, "N E"],
    prior: Float[np.ndarray, "N D"],
    joined: Edges,
    *,
    iterations: int = ITERATIONS,
    inner_iterations: int = INNER_ITERATIONS,
) -> Mixture:
    """Assignments and Gaussians in turn, from the mean of the 8 likeliest images of each class and
    the variance 1 / width. A class that is assigned nothing keeps its mean.

    Args:
        images: of unit length.
        prior: log of the softmax over class texts.
        joined: each image with its neighbours.
        iterations, inner_iterations: of all, and of the assignments in each.
    """
    width = images.shape[1]
    seeds = best_images(prior, SEEDS)
    means = images[seeds].mean(axis=0, dtype=np.float64)
    mixture = Mixture(means, np.full(width, 1.0 / width), np.exp(prior))
    graph = joined.matrix()
    parts = [(rows, graph[rows]) for rows in blocks(*prior.shape)]
    squares = np.einsum("ij,ij->j", images, images, dtype=np.float64)
    logits, following = np.empty_like(prior), np.empty_like(prior)
    for _ in range(iterations):
        for rows in blocks(*prior.shape):
            logits[rows] = TEXT_WEIGHT * prior[rows] + log_densities(images[rows], mixture)
        assigned = mixture.assigned
        for _ in range(inner_iterations):
            for rows, part in parts:
                following[rows] = softmax(logits[rows] + part @ assigned)
            assigned, following = following, assigned
        mixture = _gaussians(images, assigned, squares, mixture.means)
    return mixture


def log_densities(images: Float[np.ndarray, "n E"], mixture: Mixture) -> Float[np.ndarray, "n D"]:
    """Of each Gaussian, without what is the same for all of them; in float64."""
    precise = mixture.means / mixture.variance
    constant = 0.5 * np.einsum("ij,ij->i", precise, mixture.means)
    return images.astype(np.float64) @ precise.T - constant


def _gaussians(
    images: Float[np.ndarray, "N E"],
    assigned: Float[np.ndarray, "N D"],
    squares: Float[np.ndarray, "E"],
    means: Float[np.ndarray, "D E"],
) -> Mixture:
    counts = assigned.sum(axis=0, dtype=np.float64)[:, None]
    sums = (assigned.T @ images).astype(np.float64)
    means = np.where(counts > 1e-6, sums / np.maximum(counts, 1e-6), means)
    spread = squares - 2 * (sums * means).sum(axis=0) + (counts * means**2).sum(axis=0)
    floor = MIN_VARIANCE / images.shape[1]
    return Mixture(means, np.maximum(spread / len(images), floor), assigned)
