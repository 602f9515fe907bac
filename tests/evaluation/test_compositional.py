"""Scores of tests of composition, against loops over every way to break ties."""

import itertools

import numpy as np
import pytest

from grain_jax.evaluation.compositional import caption_choices, group_mean, pairing_scores
from grain_jax.evaluation.ranking import wilson_interval


def test_a_caption_is_chosen_by_its_cosine_and_a_tie_is_half():
    right, wrong = np.array([0.3, 0.1, 0.2]), np.array([0.1, 0.3, 0.2])
    assert caption_choices(right, wrong).tolist() == [1.0, 0.0, 0.5]
    with pytest.raises(ValueError, match="NaN or infinity"):
        caption_choices(np.array([np.nan]), np.array([0.0]))


def broken(cosines):
    """Text, image and group score, counted over all orders of the four cosines that fit them."""
    fitting = [
        rank
        for rank in itertools.permutations(range(4))
        if all(
            rank[a] < rank[b]
            for a, b in itertools.permutations(range(4), 2)
            if cosines[a] < cosines[b]
        )
    ]
    scored = []
    for c00, c01, c10, c11 in fitting:
        text, image = c00 > c01 and c11 > c10, c00 > c10 and c11 > c01
        scored.append((text, image, text and image))
    return np.mean(scored, axis=0)


def test_pairings_are_worth_their_chance_under_ties():
    every = np.array(list(itertools.product((0.1, 0.2, 0.3), repeat=4)))
    scores = pairing_scores(every.reshape(-1, 2, 2))
    expected = np.array([broken(row) for row in every])
    np.testing.assert_allclose(scores.text, expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(scores.image, expected[:, 1], atol=1e-12)
    np.testing.assert_allclose(scores.group, expected[:, 2], atol=1e-12)


def test_pairings_follow_the_published_rules_without_ties():
    cosines = np.random.default_rng(0).normal(size=(200, 2, 2))
    scores = pairing_scores(cosines)
    for row, c in enumerate(cosines):
        text = c[0, 0] > c[0, 1] and c[1, 1] > c[1, 0]
        image = c[0, 0] > c[1, 0] and c[1, 1] > c[0, 1]
        assert scores.text[row] == text
        assert scores.image[row] == image
        assert scores.group[row] == (text and image)


def test_a_constant_model_gets_the_chance_of_winoground():
    scores = pairing_scores(np.full((1, 2, 2), 0.7))
    assert scores.text[0] == scores.image[0] == 0.25
    np.testing.assert_allclose(scores.group, 1 / 6)


def test_every_group_has_the_same_weight_and_images_are_drawn():
    generator = np.random.default_rng(1)
    groups = np.repeat([0, 1, 2], (60, 8, 30))
    images = generator.integers(0, 25, len(groups))
    values = generator.integers(0, 2, len(groups)).astype(float)
    found = group_mean(values, groups, images, counted=[0, 1], resamples=2000)
    assert found.value == pytest.approx((values[:60].mean() + values[60:68].mean()) / 2)
    assert found.groups == 2
    kept, means = groups < 2, []
    every = np.unique(images[kept])
    for _ in range(2000):
        rows = np.concatenate(
            [np.flatnonzero(kept & (images == image)) for image in generator.choice(every, 25)]
        )
        own = [values[rows][groups[rows] == g] for g in (0, 1)]
        means.append(np.mean([part.mean() for part in own if len(part)]))
    np.testing.assert_allclose(
        (found.low, found.high), np.quantile(means, (0.025, 0.975)), atol=0.04
    )
    again = group_mean(values, groups, images, counted=[0, 1], resamples=2000)
    assert again == found  # the draws are of the seed
    with pytest.raises(ValueError, match="No group is counted"):
        group_mean(values, groups, images, counted=[])


def test_images_that_all_agree_have_wilsons_interval():
    values, groups = np.full(3, 0.5), np.zeros(3, int)
    found = group_mean(values, groups, np.arange(3), counted={0})
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.5, 3))
