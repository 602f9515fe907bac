"""Prior matching against a plain Sinkhorn loop, and the score less that of generic images."""

import numpy as np
import pytest
from clustered_images import make_clusters, softmax64, unit64

from grain_jax.zero_shot.method import CaptionBank
from grain_jax.zero_shot.priors import matched_log_weights, prior_matching, without_generic


def plain_weights(logits: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Alternate scaling of the columns to their fractions and of the rows to 1."""
    table = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights = np.ones(table.shape[1])
    for _ in range(5000):
        rows = table * weights / (table @ weights)[:, None]
        weights *= fractions / rows.mean(axis=0)
    return np.log(weights) - np.log(weights).mean()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_weights_are_those_of_a_plain_loop(scale, dtype):
    clusters = make_clusters(num_classes=5)
    cosines = (clusters.images.image @ clusters.vectors.T).astype(np.float32)
    fractions = np.array([0.4, 0.1, 0.1, 0.2, 0.2], np.float32)
    expected = plain_weights(scale * cosines.astype(np.float64), fractions)
    found = matched_log_weights(
        cosines.astype(dtype), scale, fractions, iterations=20000, tolerance=1e-9
    )
    assert found.converged
    np.testing.assert_allclose(found.logs, expected, atol=1e-3 if dtype is np.float32 else 1e-5)


def test_every_class_becomes_equally_probable():
    clusters = make_clusters()
    scale = clusters.banks.logit_scale
    score = prior_matching(clusters.banks, unlabeled=clusters.images)
    found = softmax64(scale * score(clusters.images, None).astype(np.float64))
    np.testing.assert_allclose(found.mean(axis=0), 1 / 6, rtol=2e-3)
    plain = softmax64(scale * (clusters.images.image @ clusters.vectors.T))
    assert np.abs(plain.mean(axis=0) * 6 - 1).max() > 0.1


def test_a_class_that_no_image_resembles_leaves_the_others_matched():
    clusters = make_clusters(num_classes=5)
    cosines = (clusters.images.image @ clusters.vectors.T).astype(np.float32)
    iterations, tolerance = 5000, 1e-6
    alone = matched_log_weights(
        cosines.copy(), 20.0, np.full(5, 0.2), iterations=iterations, tolerance=tolerance
    )
    far = np.hstack([cosines, np.full((len(cosines), 1), -50.0, np.float32)])
    found = matched_log_weights(
        far, 20.0, np.full(6, 1 / 6), iterations=iterations, tolerance=tolerance
    )
    assert alone.converged
    assert not found.converged
    np.testing.assert_allclose(np.diff(found.logs[:5]), np.diff(alone.logs), atol=1e-4)
    assert 80 < found.logs[5] - found.logs[:5].min() < 90  # e^-87 is a float32's smallest


def test_too_few_iterations_are_told():
    clusters = make_clusters(num_classes=5)
    cosines = (clusters.images.image @ clusters.vectors.T).astype(np.float32)
    assert not matched_log_weights(cosines, 20.0, np.full(5, 0.2), iterations=1).converged


def test_the_mean_cosine_with_generic_images_is_taken_away():
    clusters = make_clusters()
    rng = np.random.default_rng(3)
    generic = unit64(rng.normal(size=(9, 16)) + 1).astype(np.float32)
    bank = CaptionBank(("",) * 9, generic, lambda: generic, lambda texts: generic[: len(texts)])
    found = without_generic(clusters.banks, bank=bank)(clusters.images, None)
    image, vectors = clusters.images.image.astype(np.float64), clusters.vectors
    for k, vector in enumerate(vectors):
        mean = np.mean([one @ vector for one in generic])
        np.testing.assert_allclose(found[:, k], image @ vector - mean, atol=1e-6)


def test_generic_images_are_needed():
    with pytest.raises(ValueError, match="takes images of a caption bank and was given none"):
        without_generic(make_clusters().banks)
