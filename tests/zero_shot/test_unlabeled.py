"""What methods share that are fitted to images without labels, and what all of them keep to."""

import dataclasses

import numpy as np
import pytest
from clustered_images import make_clusters, softmax64, unit64

from grain_jax.zero_shot.method import Images
from grain_jax.zero_shot.methods import METHODS
from grain_jax.zero_shot.neighbours import nearest, neighbours_among, neighbours_within, rows_of
from grain_jax.zero_shot.scorers import TextBank
from grain_jax.zero_shot.unlabeled import (
    ClassVectors,
    best_images,
    images_to_fit,
    log_probabilities,
)

FITTED = [name for name, method in METHODS.items() if method.needs == {"unlabeled"}]


@pytest.mark.parametrize(("count", "keys"), [(5, 40), (3, 700), (20, 9000), (9, 4)])
@pytest.mark.parametrize("others", [False, True])
def test_nearest_keys_are_those_of_a_whole_sort(count, keys, others):
    rng = np.random.default_rng(keys)
    found_in = unit64(rng.normal(size=(keys, 6))).astype(np.float32)
    queries = found_in if keys <= 700 else found_in[:30]
    found, products = nearest(queries, found_in, count, others=others)
    whole = queries.astype(np.float64) @ found_in.T.astype(np.float64)
    if others:
        np.fill_diagonal(whole, -np.inf)
    expected = np.argsort(-whole, axis=1)[:, : min(count, keys - others)]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(products, np.take_along_axis(whole, expected, axis=1), atol=1e-6)


def test_of_equal_keys_the_first_is_nearest():
    keys = np.tile(np.eye(2, dtype=np.float32), (300, 1))  # key i is axis i % 2
    found, products = nearest(np.eye(2, dtype=np.float32), keys, 4)
    np.testing.assert_array_equal(found, [[0, 2, 4, 6], [1, 3, 5, 7]])
    np.testing.assert_array_equal(products, np.ones((2, 4)))


def test_one_image_has_no_other():
    found, products = nearest(
        np.eye(1, 3, dtype=np.float32), np.eye(1, 3, dtype=np.float32), 5, others=True
    )
    assert found.shape == products.shape == (1, 0)


def test_neighbours_are_searched_once_for_all_methods():
    images = make_clusters().images
    first, _ = neighbours_within(images, images.image, 5)
    again, _ = neighbours_within(images, images.image, 3)
    assert np.shares_memory(first, again)
    np.testing.assert_array_equal(first[:, :3], again)
    found, cosines = neighbours_among(images, images, images.image, 2)
    np.testing.assert_array_equal(found[:, 0], np.arange(len(images)))  # each is its own nearest
    np.testing.assert_array_equal(found[:, 1], first[:, 0])
    np.testing.assert_allclose(cosines[:, 0], 1.0, atol=1e-6)


def test_log_probabilities_are_those_of_a_softmax():
    clusters = make_clusters()
    logs = log_probabilities(clusters.images.image, clusters.vectors.astype(np.float32), 20.0)
    cosines = clusters.images.image.astype(np.float64) @ clusters.vectors.T
    np.testing.assert_allclose(np.exp(logs), softmax64(20.0 * cosines), atol=1e-5)


@pytest.mark.parametrize("count", [4, 50])
def test_best_images_of_a_class_have_its_largest_values(count):
    values = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32)
    expected = np.sort(np.argsort(-values, axis=0)[:count], axis=0)
    np.testing.assert_array_equal(np.sort(best_images(values, count), axis=0), expected)


def test_of_more_images_than_may_be_held_some_are_drawn_whatever_their_class():
    image = np.arange(1000, dtype=np.float32)[:, None]  # 10 classes of 100, one after another
    images = Images(image)
    assert images_to_fit(images, 5, max_cells=5000) is image
    drawn = images_to_fit(images, 10, max_cells=5000).ravel()
    assert len(set(drawn)) == 500
    assert set(drawn) <= set(range(1000))
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(images_to_fit(Images(image), 10, max_cells=5000).ravel(), drawn)
    counts = np.bincount(drawn.astype(int) // 100)
    assert counts.max() - counts.min() > 5  # stratified, they would be 50 each
    assert abs(drawn.mean() - 499.5) < 50
    assert len(images_to_fit(images, 9999, max_cells=50)) == 1


def test_fractions_count_classes_that_have_the_same_texts():
    same = ClassVectors(np.eye(2, dtype=np.float32), np.array([0, 1, 0, 0]))
    np.testing.assert_array_equal(same.fractions, [0.75, 0.25])
    scores = np.array([[1.0, 2.0]])
    np.testing.assert_array_equal(same.expand(scores), [[1, 2, 1, 1]])


@pytest.mark.parametrize("name", FITTED)
def test_clean_clusters_are_told_apart_at_least_as_well_as_by_clip(name):
    """Texts point beside the clusters, so that CLIP's accuracy is not 1."""
    clusters = make_clusters()
    clip = METHODS["name"].fit(clusters.banks)(clusters.images, None)
    plain = (clip.argmax(axis=1) == clusters.labels).mean()
    assert 0.6 < plain < 0.95
    score = METHODS[name].fit(clusters.banks, unlabeled=clusters.images)
    found = score(clusters.images, None)
    assert (found.argmax(axis=1) == clusters.labels).mean() >= plain
    assert found.dtype == np.float32
    again = METHODS[name].fit(clusters.banks, unlabeled=Images(clusters.images.image.copy()))
    np.testing.assert_array_equal(again(clusters.images, None), found)


@pytest.mark.parametrize("name", FITTED)
def test_classes_with_the_same_texts_tie(name):
    clusters = make_clusters(num_classes=4, per_class=6)
    bank = clusters.banks["names"]
    banks = dataclasses.replace(
        clusters.banks, banks={"names": TextBank(bank.embed, (*bank.members[:3], bank.members[0]))}
    )
    found = METHODS[name].fit(banks, unlabeled=clusters.images)(clusters.images, None)
    np.testing.assert_array_equal(found[:, 0], found[:, 3])
    assert (found[:, 0] != found[:, 1]).any()


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("unlabeled", [None, Images(np.zeros((0, 16), np.float32))])
def test_without_images_a_method_says_what_it_is_fitted_to(name, unlabeled):
    with pytest.raises(ValueError, match="fitted to images without labels and was given none"):
        METHODS[name].fit(make_clusters().banks, unlabeled=unlabeled)


@pytest.mark.parametrize("name", FITTED)
def test_a_single_image_is_enough_to_be_fitted_to(name):
    clusters = make_clusters(num_classes=3, per_class=1)
    one = Images(clusters.images.image[:1])
    found = METHODS[name].fit(clusters.banks, unlabeled=one)(clusters.images, None)
    assert found.shape == (3, 3)
    assert np.isfinite(found).all()


def test_neighbours_of_an_image_that_is_a_key_are_looked_up_as_they_would_be_found():
    """Some images are keys, two of them the same, others are new."""
    rng = np.random.default_rng(0)
    keys = unit64(rng.normal(size=(60, 6))).astype(np.float32)
    keys[41] = keys[7]
    image = np.concatenate([keys[[41, 3, 59]], unit64(rng.normal(size=(5, 6))).astype(np.float32)])
    unlabeled = Images(keys)
    found, cosines = neighbours_among(Images(image), unlabeled, keys, 9)
    expected, products = nearest(image, keys, 9)
    np.testing.assert_allclose(cosines, products, atol=1e-6)
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))
    np.testing.assert_array_equal(
        rows_of(Images(image), unlabeled, keys), [41, 3, 59, -1, -1, -1, -1, -1]
    )
