"""TransCLIP against dense loops of its formula in float64."""

import numpy as np
from clustered_images import make_clusters, softmax64

from grain_jax.zero_shot.propagation import Edges
from grain_jax.zero_shot.transclip import fit_mixture, transclip


def neighbour_weights(x: np.ndarray, keys: np.ndarray, *, own: bool) -> np.ndarray:
    cosine, weights = x @ keys.T, np.zeros((len(x), len(keys)))
    for i in range(len(x)):
        order = [j for j in np.argsort(-cosine[i]) if own or j != i][:3]
        weights[i, order] = np.maximum(cosine[i, order], 0)
    return weights


def log_density(x: np.ndarray, means: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return np.array(
        [[-0.5 * np.sum((one - mean) ** 2 / variance) for mean in means] for one in x]
    ) - 0.5 * np.sum(np.log(variance))


def dense_fit(image: np.ndarray, logits: np.ndarray):
    """Assignments, means and variance."""
    prior = softmax64(logits)
    width, num_classes = image.shape[1], logits.shape[1]
    seeds = [np.argsort(-prior[:, k])[:8] for k in range(num_classes)]
    means = np.array([image[rows].mean(axis=0) for rows in seeds])
    variance, assigned = np.full(width, 1 / width), prior
    weights = neighbour_weights(image, image, own=False)
    for _ in range(10):
        density = log_density(image, means, variance)
        for _ in range(5):
            assigned = softmax64(np.log(prior) + density + weights @ assigned)
        means = (assigned.T @ image) / assigned.sum(axis=0)[:, None]
        variance = np.zeros(width)
        for k in range(num_classes):
            variance += assigned[:, k] @ (image - means[k]) ** 2
        variance /= len(image)
    return assigned, means, variance


def test_assignments_and_scores_are_those_of_dense_loops():
    clusters, others = make_clusters(num_classes=4, per_class=12), make_clusters(num_classes=4)
    scale = clusters.banks.logit_scale
    image = clusters.images.image.astype(np.float64)
    logits = scale * image @ clusters.vectors.T
    assigned, means, variance = dense_fit(image, logits)
    weights = neighbour_weights(image, image, own=False)
    found = fit_mixture(
        clusters.images.image,
        np.log(softmax64(logits)).astype(np.float32),
        Edges(*_indices(weights), len(image)),
    )
    np.testing.assert_allclose(found.assigned, assigned, atol=1e-3)
    np.testing.assert_allclose(found.means, means, atol=1e-4)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-3)
    x = others.images.image.astype(np.float64)
    expected = softmax64(
        scale * x @ clusters.vectors.T
        + log_density(x, means, variance)
        + neighbour_weights(x, image, own=True) @ assigned
    )
    score = transclip(clusters.banks, unlabeled=clusters.images)(others.images, None)
    np.testing.assert_allclose(np.exp(scale * score.astype(np.float64)), expected, atol=1e-3)


def _indices(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = np.argsort(-weights, axis=1)[:, :3]
    return found, np.take_along_axis(weights, found, axis=1).astype(np.float32)


def test_images_that_are_all_the_same_keep_a_variance():
    image = np.tile(np.eye(1, 4, dtype=np.float32), (10, 1))
    prior = np.log(np.full((10, 2), 0.5, np.float32))
    joined = Edges(np.zeros((10, 0), int), np.zeros((10, 0), np.float32), 10)
    mixture = fit_mixture(image, prior, joined)
    assert (mixture.variance > 0).all()
    np.testing.assert_allclose(mixture.assigned, 0.5)
