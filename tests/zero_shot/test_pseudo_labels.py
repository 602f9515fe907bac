"""Prototypes from pseudo-labels against plain loops, the vote for clusters against all orders."""

import itertools

import numpy as np
import pytest
from clustered_images import make_clusters, softmax64, unit64

from grain_jax.zero_shot.method import Images
from grain_jax.zero_shot.pseudo_labels import (
    class_means,
    cluster_vote,
    dpa,
    k_means,
    named_clusters,
    nearest_centre,
    top_means,
    top_prototypes,
)
from grain_jax.zero_shot.unlabeled import log_probabilities


def clip_probabilities(clusters) -> np.ndarray:
    cosines = clusters.images.image.astype(np.float64) @ clusters.vectors.T
    return softmax64(clusters.banks.logit_scale * cosines)


def test_dpa_is_its_formula():
    clusters, others = make_clusters(), make_clusters(spread=0.6)
    scale, vectors = clusters.banks.logit_scale, clusters.vectors
    image, probability = clusters.images.image.astype(np.float64), clip_probabilities(clusters)
    label = probability.argmax(axis=1)
    prototypes = unit64(np.stack([image[label == k].mean(axis=0) for k in range(6)]))
    x = others.images.image.astype(np.float64)
    by_text = softmax64(scale * x @ vectors.T) / probability.mean(axis=0)
    by_text /= by_text.sum(axis=1, keepdims=True)
    expected = 0.5 * softmax64(scale * x @ prototypes.T) + 0.5 * by_text
    found = dpa(clusters.banks, unlabeled=clusters.images)(others.images, None)
    np.testing.assert_allclose(np.exp(scale * found.astype(np.float64)), expected, atol=1e-5)


def test_a_class_that_no_image_is_taken_for_has_its_likeliest_image():
    images = np.eye(3, dtype=np.float32)
    logs = np.log(np.array([[0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.8, 0.1, 0.1]], np.float32))
    expected = [np.full(3, 3**-0.5), [1, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(class_means(images, logs), expected, atol=1e-6)


def test_top_prototypes_are_means_of_the_likeliest_images():
    clusters = make_clusters(per_class=30)
    image, probability = clusters.images.image.astype(np.float64), clip_probabilities(clusters)
    expected = []
    for k in range(6):
        likeliest = sorted(range(len(image)), key=lambda i: -probability[i, k])[:16]
        expected.append(sum(image[i] for i in likeliest))
    found = top_prototypes(clusters.banks, unlabeled=clusters.images)(clusters.images, None)
    np.testing.assert_allclose(found, image @ unit64(np.array(expected)).T, atol=1e-5)


@pytest.mark.parametrize(("num_images", "count"), [(4, 1), (14, 2), (60, 10), (200, 16)])
def test_few_images_are_shared_among_the_classes(num_images, count):
    """Of N images a class has no more than N / 6: with all of them, prototypes would be equal."""
    clusters = make_clusters(per_class=40)
    image = clusters.images.image[:num_images]
    logs = log_probabilities(image, clusters.vectors.astype(np.float32), 20.0)
    likeliest = np.argsort(-logs, axis=0)[:count]
    expected = unit64(image.astype(np.float64)[likeliest].sum(axis=0))
    found = top_means(image, logs)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - found[0]).max() > 0.1


def test_k_means_stops_where_each_centre_is_the_mean_of_its_images():
    images = make_clusters(spread=0.7).images.image
    centres, cluster = k_means(images, images[:6], iterations=100)
    for k in range(6):
        assert (cluster == k).any()
        mean = unit64(images[cluster == k].astype(np.float64).sum(axis=0))
        np.testing.assert_allclose(centres[k], mean, atol=1e-5)
    np.testing.assert_array_equal(cluster, nearest_centre(images, centres))


def test_an_empty_cluster_keeps_its_centre():
    images = np.array([[1, 0], [1, 0]], np.float32)
    centres, cluster = k_means(images, np.array([[1, 0], [-1, 0]], np.float32))
    np.testing.assert_array_equal(cluster, [0, 0])
    np.testing.assert_array_equal(centres, [[1, 0], [-1, 0]])


def test_names_keep_the_most_votes_of_all_orders():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cluster, label = rng.integers(5, size=40), rng.integers(5, size=40)
        similarity = rng.normal(size=(5, 5))
        votes = np.zeros((5, 5))
        for one, name in zip(cluster, label, strict=True):
            votes[one, name] += 1
        kept = [
            sum(votes[order[k], k] for k in range(5)) for order in itertools.permutations(range(5))
        ]
        found = named_clusters(cluster, label, similarity)
        assert sorted(found) == list(range(5))
        assert sum(votes[found[k], k] for k in range(5)) == max(kept)


def test_between_equal_votes_the_more_similar_cluster_has_the_name():
    nobody = np.zeros(0, int)
    similarity = np.array([[0.1, 0.9], [0.2, 0.1]])
    np.testing.assert_array_equal(named_clusters(nobody, nobody, similarity), [1, 0])


def test_a_vote_corrects_the_images_that_are_outvoted():
    clusters = make_clusters(text_error=1.0, per_class=40)
    plain = (clip_probabilities(clusters).argmax(axis=1) == clusters.labels).mean()
    score = cluster_vote(clusters.banks, unlabeled=clusters.images)
    found = score(Images(clusters.images.image), None).argmax(axis=1)
    assert (found == clusters.labels).mean() > plain + 0.05
