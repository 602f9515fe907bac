"""Intervals and p-values of paired differences, against scipy and by what they claim."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from grain_jax.evaluation.bootstrap import bootstrap_interval
from grain_jax.evaluation.ranking import wilson_interval
from grain_jax.evaluation.statistics import (
    class_mean_interval,
    holm,
    paired_difference,
    sign_flip_p_value,
)


def right(generator: np.random.Generator, rate: float, *shape: int) -> np.ndarray:
    return (generator.random(shape) < rate).astype(float)


def compare(first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None, **options):
    groups = np.arange(first.shape[-1]) if groups is None else groups
    return paired_difference(np.atleast_2d(first), np.atleast_2d(second), groups, **options)


def test_the_interval_is_that_of_scipy():
    generator = np.random.default_rng(0)
    first, second = right(generator, 0.5, 400), right(generator, 0.6, 400)
    found = compare(first, second)
    theirs = scipy.stats.bootstrap(
        (second, first),
        lambda b, a, axis: b.mean(axis=axis) - a.mean(axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (found.first, found.second) == (first.mean(), second.mean())
    assert found.low < found.value < found.high
    assert found.low == pytest.approx(theirs.low, abs=0.005)
    assert found.high == pytest.approx(theirs.high, abs=0.005)


@pytest.mark.parametrize("count", [9, 200])  # every sign, and as many at random
def test_the_p_value_is_that_of_scipy(count):
    generator = np.random.default_rng(3)
    differences = generator.normal(0.1, 1.0, count).round(1)
    found = sign_flip_p_value(differences, generator=generator)
    theirs = scipy.stats.permutation_test(
        (differences,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        rng=np.random.default_rng(4),
    ).pvalue
    assert found == pytest.approx(theirs, abs=1e-12 if count == 9 else 0.02)
    assert 0.01 < found < 0.99


def test_the_p_value_of_right_and_wrong_is_mcnemars():
    first = np.repeat([1.0, 0.0, 1.0], [30, 14, 500])
    second = np.repeat([0.0, 1.0, 1.0], [30, 14, 500])
    exact = scipy.stats.binomtest(14, 44).pvalue
    assert compare(first, second).p_value == pytest.approx(exact, abs=0.005)


def test_the_same_answers_differ_by_nothing():
    answers = right(np.random.default_rng(0), 0.5, 50)
    found = compare(answers, answers)
    assert (found.value, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_phrases_of_an_image_are_kept_together():
    """Ten copies of each answer say no more than one; as images of their own they would."""
    generator = np.random.default_rng(0)
    first, second = right(generator, 0.4, 60), right(generator, 0.5, 60)
    once = compare(first, second)
    copies = np.repeat(first, 10), np.repeat(second, 10)
    together = compare(*copies, np.repeat(np.arange(60) * 7, 10))
    apart = compare(*copies)
    assert together.value == pytest.approx(once.value)
    assert together.low == pytest.approx(once.low, abs=0.01)
    assert together.p_value == pytest.approx(once.p_value, abs=0.02)
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


def test_groups_of_unequal_size_weigh_by_their_answers():
    groups = np.array([0, 0, 0, 1])
    found = compare(np.zeros(4), np.array([1.0, 1.0, 1.0, 0.0]), groups)
    assert (found.first, found.second) == (0.0, 0.75)
    assert (found.low, found.high) == (0.0, 1.0)  # both draws may be the same group


def test_trainings_that_disagree_widen_the_interval():
    generator = np.random.default_rng(0)
    hard = generator.random(300)
    agree = np.stack([(hard < 0.5).astype(float)] * 3)
    differ = np.stack([(hard < rate).astype(float) for rate in (0.4, 0.5, 0.6)])
    baseline = right(generator, 0.5, 1, 300)
    narrow, wide = compare(baseline, agree), compare(baseline, differ)
    assert wide.second == pytest.approx(differ.mean())
    assert wide.high - wide.low > 1.15 * (narrow.high - narrow.low)


def test_methods_of_the_same_trainings_are_drawn_together():
    """Trainings far apart, and a second method that is better by the same in each."""
    generator = np.random.default_rng(0)
    hard = generator.random(2_000)
    first = np.stack([(hard < rate).astype(float) for rate in (0.3, 0.5, 0.7)])
    second = np.stack([(hard < rate + 0.02).astype(float) for rate in (0.3, 0.5, 0.7)])
    together = compare(first, second, same_trainings=True)
    apart = compare(first, second)
    assert 0.01 < together.low < together.value < together.high < 0.03
    assert together.p_value < 0.01
    assert apart.low < -0.15
    assert apart.p_value > 0.3


def test_seeds_alone_do_not_make_a_difference():
    """Trainings of one kind, whose seeds differ more than images do by chance."""
    generator = np.random.default_rng(7)
    false = 0
    for trial in range(60):
        hard = generator.random(2_000)
        rates = 0.5 + 0.015 * generator.normal(size=6)
        answers = np.stack([(hard < rate).astype(float) for rate in rates])
        found = compare(answers[:3], answers[3:], seed=trial, resamples=500)
        false += found.p_value < 0.05
    assert false <= 8  # 5 % of 60 are 3


def test_the_spread_of_trainings_is_welchs():
    """Images that all trainings agree about: only the trainings are left to differ."""
    rates = np.array([[0.3, 0.4, 0.6], [0.5, 0.7, 0.65]])
    answers = np.repeat(rates[:, :, None], 50, axis=2)
    found = compare(answers[0], answers[1])
    theirs = scipy.stats.ttest_ind(rates[1], rates[0], equal_var=False)
    assert found.p_value == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    paired = compare(answers[0], answers[1], same_trainings=True)
    assert paired.p_value == pytest.approx(scipy.stats.ttest_rel(rates[1], rates[0]).pvalue)


def test_a_single_training_spreads_as_the_others():
    answers = np.repeat(np.array([[0.3], [0.5], [0.4], [0.9]]), 50, axis=1)
    found = compare(answers[:3], answers[3:])
    spread = 0.1 * np.sqrt(1 / 3 + 1)
    assert found.p_value == pytest.approx(2 * scipy.stats.t.sf(0.5 / spread, 3.2))
    assert found.value == pytest.approx(0.5)


def test_95_of_100_intervals_hold_the_true_difference():
    generator = np.random.default_rng(5)
    held = 0
    for trial in range(100):
        first, second = right(generator, 0.5, 150), right(generator, 0.6, 150)
        found = compare(first, second, seed=trial, resamples=300)
        held += found.low <= 0.1 <= found.high
    assert 0.88 <= held / 100 <= 0.99


def test_p_values_without_a_difference_are_uniform():
    generator = np.random.default_rng(6)
    values = [
        sign_flip_p_value(generator.normal(size=40), generator=generator, resamples=300)
        for _ in range(300)
    ]
    assert scipy.stats.kstest(values, "uniform").pvalue > 0.01


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_its_definition(p_values):
    adjusted, count = holm(p_values), len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    for rank, index in enumerate(order):
        steps = [(count - j) * p_values[order[j]] for j in range(rank + 1)]
        assert adjusted[index] == pytest.approx(min(1.0, max(steps)))
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))


@pytest.mark.parametrize("alike", [True, False])
def test_the_bootstrap_of_several_sums_is_that_of_scipy(alike):
    """Of a ratio and of a mean, from the same resamples, with units that come more than once, which
    are drawn by their kind, and with units that all differ.
    """
    generator = np.random.default_rng(1)
    units = generator.integers(1, 4, (150, 2)).astype(float)
    units += 0 if alike else generator.random((150, 2))

    def statistics(totals):
        return np.stack([totals[:, 0] / totals[:, 1], totals[:, 0] / len(units)], axis=1)

    low, high = bootstrap_interval(
        units, statistics, generator=np.random.default_rng(2), resamples=20_000
    )
    for k, statistic in enumerate((lambda x, y: x.sum() / y.sum(), lambda x, y: x.mean())):
        theirs = scipy.stats.bootstrap(
            (units[:, 0], units[:, 1]),
            statistic,
            paired=True,
            vectorized=False,
            n_resamples=4_000,
            method="percentile",
            rng=np.random.default_rng(3),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert low[k] == pytest.approx(theirs.low, abs=0.05 * width)
        assert high[k] == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_interval_of_a_mean_of_classes_is_that_of_drawing_within_each():
    generator = np.random.default_rng(0)
    right = [(generator.random(n) < generator.beta(4, 1)) for n in generator.integers(40, 200, 37)]
    rates = np.array([own.mean() for own in right])
    low, high = class_mean_interval(rates, np.array([len(own) for own in right]))
    drawn = np.mean(
        [generator.choice(own, (2_000, len(own))).mean(axis=1) for own in right], axis=0
    )
    lower, upper = np.quantile(drawn, [0.025, 0.975])
    width = upper - lower
    assert (low, high) == pytest.approx((lower, upper), abs=0.1 * width)


@pytest.mark.parametrize(
    ("classes", "least", "most"),
    [(np.full(100, 20), 0.7, 1.0), (np.full(60, 1), 0.2, 1.0), (np.arange(1, 31), 0.0, 0.9)],
)
def test_95_of_100_intervals_hold_the_true_mean_of_classes(classes, least, most):
    generator = np.random.default_rng(0)
    true = generator.uniform(least, most, len(classes))
    rates = generator.binomial(classes, true, (2_000, len(classes))) / classes
    bounds = np.array([class_mean_interval(own, classes) for own in rates])
    held = (bounds[:, 0] <= true.mean()) & (true.mean() <= bounds[:, 1])
    assert 0.94 <= held.mean() <= 0.99


def test_a_mean_of_classes_that_are_all_right_or_all_wrong_is_not_certain():
    few, many = np.array([5, 5, 5]), np.array([50, 50, 50])
    for rates in (np.ones(3), np.zeros(3), np.array([1.0, 0.0, 1.0])):
        low, high = class_mean_interval(rates, few)
        assert low <= rates.mean() <= high
        assert high - low > 0.15
        less, more = class_mean_interval(rates, many)
        assert high - low > more - less > 0.02
    assert class_mean_interval(np.ones(3), few)[1] == 1.0
    assert class_mean_interval(np.zeros(3), few)[0] == 0.0
    assert 0 < class_mean_interval(np.array([1.0]), np.array([1]))[0] < 1


def test_classes_that_are_alike_have_about_the_interval_of_all_their_images():
    alike = class_mean_interval(np.full(10, 0.7), np.full(10, 50))
    assert alike == pytest.approx(wilson_interval(0.7, 500), abs=0.001)
    few = class_mean_interval(np.full(10, 0.7), np.r_[np.full(9, 50), 2])
    assert few[1] - few[0] > 1.2 * (alike[1] - alike[0])  # the small class weighs as the others
