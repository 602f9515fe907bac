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


@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_weights_are_those_of_a_plain_loop(scale):
    clusters = make_clusters(num_classes=5)
    cosines = (clusters.images.image @ clusters.vectors.T).astype(np.float32)
    fractions = np.array([0.4, 0.1, 0.1, 0.2, 0.2], np.float32)
    expected = plain_weights(scale * cosines.astype(np.float64), fractions)
    found = matched_log_weights(cosines, scale, fractions, iterations=5000, tolerance=2e-6)
    np.testing.assert_allclose(found, expected, atol=2e-2 * scale / 100 + 2e-3)


def test_every_class_becomes_equally_probable():
    clusters = make_clusters()
    scale = clusters.banks.logit_scale
    score = prior_matching(clusters.banks, unlabeled=clusters.images)
    found = softmax64(scale * score(clusters.images, None).astype(np.float64))
    np.testing.assert_allclose(found.mean(axis=0), 1 / 6, rtol=2e-3)
    plain = softmax64(scale * (clusters.images.image @ clusters.vectors.T))
    assert np.abs(plain.mean(axis=0) * 6 - 1).max() > 0.1


def test_a_class_that_no_image_resembles_gets_a_finite_shift():
    cosines = np.array([[1.0, -1.0], [1.0, -1.0]], np.float32)
    found = matched_log_weights(cosines, 100.0, np.array([0.5, 0.5], np.float32))
    assert np.isfinite(found).all()
    assert found[1] > 50


def test_the_mean_cosine_with_generic_images_is_taken_away():
    clusters = make_clusters()
    rng = np.random.default_rng(3)
    generic = unit64(rng.normal(size=(9, 16)) + 1).astype(np.float32)
    bank = CaptionBank(("",) * 9, generic, generic, lambda texts: generic[: len(texts)])
    found = without_generic(clusters.banks, bank=bank)(clusters.images, None)
    image, vectors = clusters.images.image.astype(np.float64), clusters.vectors
    for k, vector in enumerate(vectors):
        mean = np.mean([one @ vector for one in generic])
        np.testing.assert_allclose(found[:, k], image @ vector - mean, atol=1e-6)


def test_generic_images_are_needed():
    with pytest.raises(ValueError, match="takes images of a caption bank and was given none"):
        without_generic(make_clusters().banks)
