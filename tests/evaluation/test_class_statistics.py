"""Classes found, confused, won and lost, against loops over the images."""

import math

import numpy as np
import pytest

from grain_jax.evaluation.class_statistics import (
    class_accuracies,
    class_differences,
    confused_pairs,
    sign_test,
)
from grain_jax.evaluation.reliability import expected_calibration_error, reliability_bins

NAMES = ("wren", "tit", "jay", "<b>")


@pytest.fixture
def answers():
    generator = np.random.default_rng(0)
    labels = [NAMES[k] for k in generator.integers(0, 4, 200)]
    predicted = [NAMES[k] for k in generator.integers(0, 3, 200)]
    correct = np.array([float(a == b) for a, b in zip(labels, predicted, strict=True)])
    return labels, predicted, correct


def test_the_accuracy_of_each_class_is_the_mean_over_its_images(answers):
    labels, _, correct = answers
    found = {one.name: one for one in class_accuracies(labels, correct)}
    assert list(found) == sorted(set(labels))
    for name in set(labels):
        own = [hit for label, hit in zip(labels, correct, strict=True) if label == name]
        assert found[name].images == len(own)
        assert found[name].accuracy == pytest.approx(sum(own) / len(own))


def test_confused_pairs_are_the_most_frequent_ones(answers):
    labels, predicted, _ = answers
    counts = {}
    for pair in zip(labels, predicted, strict=True):
        if pair[0] != pair[1]:
            counts[pair] = counts.get(pair, 0) + 1
    found = confused_pairs(labels, predicted, limit=4)
    assert len(found) == 4
    assert [one.images for one in found] == sorted(counts.values(), reverse=True)[:4]
    for one in found:
        assert counts[one.label, one.predicted] == one.images
        assert one.fraction == pytest.approx(one.images / labels.count(one.label))


def test_without_a_mistake_no_pair_is_confused():
    assert confused_pairs(["a", "b"], ["a", "b"], limit=3) == []


def test_classes_are_won_and_lost_on_the_same_images(answers):
    labels, _, first = answers
    second = np.where(np.array(labels) == "wren", 1.0, np.minimum(first, 0.5))
    found = {one.name: one for one in class_differences(labels, first, second)}
    order = [one.value for one in class_differences(labels, first, second)]
    assert order == sorted(order, reverse=True)
    for name, one in found.items():
        rows = [i for i, label in enumerate(labels) if label == name]
        assert one.first == pytest.approx(np.mean([first[i] for i in rows]))
        assert one.value == pytest.approx(np.mean([second[i] - first[i] for i in rows]))
        assert one.only_first == sum(first[i] > second[i] for i in rows)
        assert one.only_second == sum(second[i] > first[i] for i in rows)
        assert one.p_value <= one.adjusted_p_value <= 1
    assert found["wren"].value > 0 > found["jay"].value


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 6), (3, 9), (5, 5), (40, 20)])
def test_the_sign_test_adds_up_binomial_chances(lost, won):
    total, least = lost + won, min(lost, won)
    tail = sum(math.comb(total, k) for k in range(least + 1)) / 2**total
    assert sign_test(lost, won) == pytest.approx(min(1.0, 2 * tail))
    assert sign_test(won, lost) == sign_test(lost, won)


def test_the_calibration_error_is_the_mean_gap_of_the_bins():
    generator = np.random.default_rng(1)
    probability = generator.random(500)
    probability[:3] = 0.0, 1.0, 0.2  # the ends, and an edge of a bin
    correct = (generator.random(500) < probability**2).astype(float)
    gap = 0.0
    for k in range(10):
        inside = [
            i
            for i, p in enumerate(probability)
            if k / 10 < p <= (k + 1) / 10 or (k == 0 and p == 0)
        ]
        accuracy = np.mean([correct[i] for i in inside])
        gap += len(inside) / 500 * abs(accuracy - np.mean([probability[i] for i in inside]))
    assert expected_calibration_error(probability, correct, bins=10) == pytest.approx(gap)
    found = reliability_bins(probability, correct, bins=10)
    assert sum(one.answers for one in found) == 500
    assert all(one.low <= one.probability <= one.high for one in found)


@pytest.mark.parametrize("probability", [[], [0.5, np.nan], [1.2], [-0.1]])
def test_what_is_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        reliability_bins(np.array(probability), np.zeros(len(probability)))
