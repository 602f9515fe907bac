import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from grain_jax.evaluation.calibration_metrics import (
    false_accepts_at,
    measure,
    predictions,
    separation,
)
from grain_jax.evaluation.reliability import (
    BINS,
    calibration_error,
    equal_mass_bins,
    equal_width_bins,
)

GENERATOR = np.random.default_rng(3)


def error_of_a_loop(confidence, correct):
    total = 0.0
    for b in range(BINS):
        low, high = b / BINS, (b + 1) / BINS
        inside = [i for i, c in enumerate(confidence) if low < c <= high or (b == 0 and c == 0)]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


def test_the_error_is_that_of_a_loop():
    confidence = GENERATOR.random(300)
    correct = (GENERATOR.random(300) < 0.5).astype(np.float64)
    bins = equal_width_bins(confidence, BINS)
    expected = error_of_a_loop(confidence.tolist(), correct.tolist())
    assert calibration_error(confidence, correct, bins) == pytest.approx(expected, rel=1e-12)
    rows = np.stack([confidence, 1 - confidence], axis=1)
    chosen = np.maximum(confidence, 1 - confidence)
    labels = (GENERATOR.random(300) < 0.5).astype(int)
    right = (rows.argmax(axis=1) == labels).astype(np.float64)
    values = measure(predictions(rows, rows > 0.5, labels), resamples=10)
    expected = error_of_a_loop(chosen.tolist(), right.tolist())
    assert values["ece"].value == pytest.approx(expected, rel=1e-9)
    bins = equal_mass_bins(chosen, BINS)
    adaptive = calibration_error(chosen, right, bins)
    assert values["adaptive_ece"].value == pytest.approx(adaptive, rel=1e-9)


def test_intervals_are_those_of_resampled_images():
    confidence = GENERATOR.uniform(0.5, 1, 200)
    rows = np.stack([confidence, 1 - confidence], axis=1)
    labels = (GENERATOR.random(200) < 0.3).astype(int)
    right = (labels == 0).astype(np.float64)
    drawn = []
    for _ in range(2000):
        chosen = GENERATOR.integers(200, size=200)
        drawn.append(error_of_arrays(confidence[chosen], right[chosen]))
    found = measure(predictions(rows, rows > 0.5, labels), resamples=2000)["ece"]
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.008)


def error_of_arrays(confidence, correct):
    return calibration_error(confidence, correct, equal_width_bins(confidence, BINS))


@pytest.mark.parametrize("make_bins", [equal_width_bins, equal_mass_bins])
def test_the_error_of_what_is_calibrated_is_near_0_and_of_what_is_not_its_distance(make_bins):
    confidence = GENERATOR.random(200_000)
    right = (GENERATOR.random(200_000) < confidence).astype(np.float64)
    assert calibration_error(confidence, right, make_bins(confidence, BINS)) < 0.01
    surer = np.full(200_000, 0.9)
    wrong = (GENERATOR.random(200_000) < 0.6).astype(np.float64)
    error = calibration_error(surer, wrong, make_bins(surer, BINS))
    assert error == pytest.approx(0.3, abs=0.01)


def test_bins():
    edges = np.array([0.0, 1 / 15, 0.0667, 0.5, 1.0])
    assert equal_width_bins(edges, 15).tolist() == [0, 0, 1, 7, 14]
    even = equal_mass_bins(GENERATOR.random(1500), 15)
    assert np.bincount(even).tolist() == [100] * 15


def test_predictions_share_a_tie():
    rows = np.array([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1]])
    sets = np.array([[True, True, False], [False, False, True], [True, True, False]])
    found = predictions(rows, sets, np.array([0, 2, 1]))
    assert found.correct.tolist() == [0.5, 1.0, 0.0]
    assert found.nll == pytest.approx([math.log(2), -math.log(0.6), -math.log(0.3)])
    assert found.in_set.tolist() == [True, True, True]
    assert found.set_size.tolist() == [2, 1, 2]


def test_intervals_hold_their_values_and_shrink_with_more_images():
    def widths(count):
        confidence = GENERATOR.uniform(0.5, 1, count)
        rows = np.stack([confidence, 1 - confidence], axis=1)
        labels = (GENERATOR.random(count) > confidence).astype(int)
        values = measure(predictions(rows, rows > 0.3, labels), resamples=200)
        for name in ("accuracy", "mean_confidence", "nll", "coverage", "set_size"):
            assert values[name].low <= values[name].value <= values[name].high, name
        assert values["accuracy"].value == pytest.approx((labels == 0).mean())
        return values["accuracy"].high - values["accuracy"].low

    assert widths(3000) < widths(100) / 3
    empty = predictions(np.zeros((0, 2)), np.zeros((0, 2), bool), np.zeros(0, int))
    with pytest.raises(ValueError, match="no held-out images"):
        measure(empty)


@pytest.mark.parametrize("count", [1, 7, 20, 39, 40, 41])
def test_false_accepts_are_at_the_highest_threshold_that_enough_images_reach(count):
    inside = GENERATOR.normal(1.0, size=count).round(1)  # with ties
    outside = GENERATOR.normal(size=50).round(1)
    enough = [t for t in inside if (inside >= t).mean() >= 0.95]
    expected = float((outside >= max(enough)).mean())
    assert false_accepts_at(inside, outside) == pytest.approx(expected)
    assert false_accepts_at(inside, inside - 100) == 0.0


def test_separation_is_the_statistic_of_mann_and_whitney():
    inside, outside = GENERATOR.normal(1, 1, 40).round(1), GENERATOR.normal(0, 1, 30).round(1)
    expected = mannwhitneyu(inside, outside).statistic / (40 * 30)
    assert separation(inside, outside) == pytest.approx(expected)


def test_probabilities_that_differ_in_rounding_alone_lie_in_one_bin():
    generator = np.random.default_rng(4)
    tied = np.repeat([0.6, 0.7, 0.9999], 500)
    correct = (generator.random(1500) < tied).astype(np.float64)
    exact = equal_mass_bins(tied, 15)
    noisy = equal_mass_bins(tied + generator.normal(0, 1e-9, 1500), 15)
    assert np.array_equal(exact, noisy)
    assert len(np.unique(exact)) == 3
    by_group = sum(abs((correct - tied)[tied == value].sum()) for value in (0.6, 0.7, 0.9999))
    assert calibration_error(tied, correct, noisy) == pytest.approx(by_group / 1500)
