"""Fitting (`evaluation/calibration.py`) against loops and by its guarantees."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.evaluation import calibration
from grain_jax.evaluation.calibration import (
    false_accept_threshold,
    false_reject_threshold,
    fit_label_sets,
    fit_temperature,
    match_prior,
    mean_probabilities,
    negative_log_likelihood,
    prior_departure,
    says_nothing,
    seen_histogram,
    seen_rate,
    seen_threshold,
    split_by_name,
    summed_sets,
)
from grain_jax.zero_shot.calibration import nonconformity, sets_of_labels, softmax
from grain_jax.zero_shot.scorers import TextBank


def drawn(count: int, classes: int, *, temperature: float = 1.0, seed: int = 0):
    """Logits whose probabilities are right at `temperature`, and labels drawn from those."""
    generator = np.random.default_rng(seed)
    logits = 3 * generator.normal(size=(count, classes))
    cumulated = softmax(logits / temperature).cumsum(axis=1)
    labels = (generator.random((count, 1)) > cumulated[:, :-1]).sum(axis=1)
    return logits, labels


def likelihood_of_a_loop(logits, labels, temperature):
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total += math.log(sum(math.exp(z / temperature) for z in row)) - row[label] / temperature
    return total / len(labels)


def test_the_temperature_is_where_a_loop_finds_the_likelihood_highest():
    logits, labels = drawn(60, 4, temperature=2.0)
    found = fit_temperature(logits.astype(np.float32), labels)
    assert found is not None
    best = likelihood_of_a_loop(logits, labels, found)
    assert negative_log_likelihood(logits, labels, found) == pytest.approx(best, rel=1e-12)
    assert best <= min(
        likelihood_of_a_loop(logits, labels, found * math.exp(step))
        for step in (-1, -0.1, -0.01, 0.01, 0.1, 1)
    )
    # The derivative by 1 / T: mean of the true logit less its expectation.
    probabilities = softmax(logits / found)
    slope = (logits[np.arange(60), labels] - (probabilities * logits).sum(axis=1)).mean()
    assert abs(slope) < 1e-4
    assert not says_nothing(found)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found_again(temperature):
    logits, labels = drawn(20_000, 5, temperature=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.04)


def test_where_all_are_right_there_is_no_temperature_and_where_all_are_wrong_the_highest():
    logits = np.eye(3)
    assert fit_temperature(logits, np.arange(3)) is None
    highest = fit_temperature(logits, np.array([1, 2, 0]))
    assert highest is not None
    assert says_nothing(highest)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "no images"),
        (np.zeros((3, 1)), np.zeros(3, int), "1 class"),
        (np.full((3, 2), np.nan), np.zeros(3, int), "NaN"),
        (np.full((3, 2), np.inf), np.zeros(3, int), "infinity"),
    ],
)
def test_nothing_is_fitted_to_nothing(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


@pytest.mark.parametrize("classes", [2, 5])
def test_prior_matching_makes_every_class_as_probable_on_average(classes):
    logits = np.random.default_rng(1).normal(size=(200, classes))
    biased = logits + np.arange(classes)[None, :]
    assert prior_departure(mean_probabilities(biased, np.zeros(classes))) > 0.3
    shift = match_prior(biased)
    means = [
        sum(math.exp(row[k] + shift[k]) / sum(np.exp(row + shift)) for row in biased) / 200
        for k in range(classes)
    ]
    assert means == pytest.approx([1 / classes] * classes, abs=1e-6)
    assert shift.sum() == pytest.approx(0, abs=1e-9)
    # Only the bias differs, so only that does in what undoes it.
    undone = shift + np.arange(classes)
    np.testing.assert_allclose(undone - undone.mean(), match_prior(logits), atol=1e-4)


def test_prior_matching_of_a_class_that_no_image_comes_near_is_refused():
    with pytest.raises(ValueError, match="does not converge"):
        match_prior(np.tile([0.0, -1000.0], (5, 1)) * np.ones((5, 1)) + 0.0)


def test_thresholds_are_ranks():
    scores = np.arange(1.0, 20.0)  # 19 of them: the smallest is the quantile of 1 in 20
    assert false_reject_threshold(scores, 0.05) == 1.0
    assert false_reject_threshold(scores, 0.1) == 2.0
    assert 19.0 < false_accept_threshold(scores, 0.05) < 19.0001
    for fit in (false_reject_threshold, false_accept_threshold):
        with pytest.raises(ValueError, match="at least 19"):
            fit(scores[:-1], 0.05)
        with pytest.raises(ValueError, match="rate of 0 would"):
            fit(scores, 0.0)


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_a_threshold_rejects_no_more_than_its_rate_in_the_mean_over_draws(seed):
    generator = np.random.default_rng(seed)
    rejected = [
        (generator.normal(size=200) < false_reject_threshold(generator.normal(size=30), 0.1)).mean()
        for _ in range(200)
    ]
    assert np.mean(rejected) == pytest.approx(3 / 31, abs=0.025)  # the rank, of 31


@pytest.mark.parametrize("rule", ["lac", "aps"])
@pytest.mark.parametrize("count", [25, 60])
def test_sets_of_exchangeable_draws_hold_the_label_as_often_as_said(rule, count):
    coverage, rounds, test = 0.8, 200, 100
    covered = []
    for seed in range(rounds):
        # Probabilities that are wrong: the guarantee needs none of them to be right.
        logits, labels = drawn(count + test, 6, temperature=2.5, seed=seed)
        probabilities = softmax(logits)
        sets = fit_label_sets(logits[:count], labels[:count], coverage=coverage, rule=rule)
        held = sets_of_labels(probabilities[count:], sets)
        covered.append(held[np.arange(test), labels[count:]].mean())
    spread = 3 * np.std(covered) / math.sqrt(rounds)
    assert np.mean(covered) >= coverage - spread
    # Exact up to 1 / (n + 1), what ties add, and the best label, which is always there.
    assert np.mean(covered) <= coverage + 1 / (count + 1) + 0.03 + spread


def test_the_quantile_is_corrected_for_the_number_of_images():
    logits, labels = drawn(9, 4)
    probabilities = softmax(logits)
    true = sorted(nonconformity(probabilities, "lac")[np.arange(9), labels])
    for coverage, rank in ((0.9, 9), (0.8, 8), (0.5, 5)):
        sets = fit_label_sets(logits, labels, coverage=coverage, rule="lac")
        assert sets.quantile == true[rank - 1]
    assert fit_label_sets(logits, labels, coverage=0.95, rule="lac").quantile is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit_label_sets(logits, labels, coverage=1.0, rule="lac")


def test_summed_sets_are_the_shortest_whose_probabilities_reach_the_coverage():
    rows = np.array([[0.5, 0.3, 0.15, 0.05], [0.95, 0.03, 0.01, 0.01], [0.25] * 4])
    assert summed_sets(rows, 0.75).sum(axis=1).tolist() == [2, 1, 4]
    assert summed_sets(rows, 0.9).tolist()[0] == [True, True, True, False]


def test_a_file_stays_on_its_side_however_many_others_there_are():
    names = [f"class_{i % 10}/{i}.jpg" for i in range(4000)]
    found = split_by_name(names, 0.3)
    assert found.mean() == pytest.approx(0.3, abs=0.03)
    assert split_by_name(names[::-1][:50], 0.3).tolist() == found[::-1][:50].tolist()
    assert (found <= split_by_name(names, 0.6)).all()


def test_the_cosine_from_which_descriptions_are_seen_tells_own_from_others():
    texts = np.eye(4, dtype=np.float32)
    bank = TextBank(texts, (np.array([0, 1]), np.array([1, 2])))  # row 3 is of no class
    angles = np.deg2rad([20, 25, 70]).astype(np.float32)
    regions = np.zeros((3, 2, 4), np.float32)
    for n, (angle, row) in enumerate(zip(angles, (0, 2, 0), strict=True)):
        regions[n, 0, row], regions[n, 0, 3] = np.cos(angle), np.sin(angle)
    labels = np.array([0, 1, 1])
    own, others = seen_histogram(regions, bank, labels)
    assert own.sum() == 6  # 2 of each image
    assert others.sum() == 3  # 1 of each: no text of another class is own too
    cosine = seen_threshold(own, others)
    assert cosine is not None
    assert np.cos(np.deg2rad(70)) < cosine <= np.cos(np.deg2rad(25))
    assert seen_rate(own, cosine) == pytest.approx(2 / 6)
    assert seen_rate(others, cosine) == 0
    assert seen_threshold(others, own) is None or seen_rate(others, 0.5) == 0
    assert seen_threshold(own, 0 * own) is None


def test_blocks_of_images_change_nothing_and_bound_the_memory(monkeypatch):
    logits, labels = drawn(4000, 50, temperature=2.0)
    logits = logits.astype(np.float32)

    def fitted():
        shift = match_prior(logits)
        means = mean_probabilities(logits, shift)
        sets = [
            fit_label_sets(logits, labels, temperature=2.0, coverage=0.9, rule=rule).quantile
            for rule in ("lac", "aps")
        ]
        return [fit_temperature(logits, labels), prior_departure(means), *sets, *shift]

    whole = fitted()
    monkeypatch.setattr(calibration, "BLOCK_CELLS", 50 * 64)
    tracemalloc.start()
    try:
        assert fitted() == pytest.approx(whole, rel=1e-6, abs=1e-9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < logits.size * 8 / 2  # half of one float64 copy
