"""Numbers of tables: percent with the bounds of the interval, which need not lie evenly."""

import math

import pytest

from grain_jax.evaluation.percentages import (
    COSINE,
    interval_text,
    percent,
    result_text,
    signed_with_interval,
)
from grain_jax.evaluation.ranking import wilson_interval
from grain_jax.results import Result


def test_the_bounds_are_shown_as_they_are():
    low, high = wilson_interval(1.0, 10)
    shown = result_text(Result("birds", "name", None, "top1", 1.0, low, high, 10))
    z = 1.959964  # of the normal distribution: Wilson's lower bound of n in n is n / (n + z^2)
    assert shown == f"100.0 ({100 * 10 / (10 + z**2):.1f}-100.0)"


def test_a_hyphen_does_not_run_into_a_sign():
    assert interval_text(-0.003, 0.031) == "-0.3 to 3.1"
    assert interval_text(-0.031, -0.003) == "-3.1 to -0.3"
    assert interval_text(0.0, 0.031) == "0.0-3.1"


@pytest.mark.parametrize("count", range(1, 60))
def test_wilson_ends_at_0_and_1_exactly(count):
    assert wilson_interval(0.0, count)[0] == 0.0
    assert wilson_interval(1.0, count)[1] == 1.0


def test_what_is_not_known_is_said():
    assert result_text(None) == percent(None) == "-"
    assert result_text(Result("birds", "random", None, "top1", 0.125)) == "12.5"
    assert percent(math.nan) == "not a number"
    assert interval_text(0.5, math.inf) == interval_text(None, 0.5) == ""


@pytest.mark.parametrize(
    ("given", "shown"),
    [((0.015, -0.003, 0.031), "+1.5 (-0.3 to +3.1)"), ((0.0, 0.0, 0.0), "+0.0 (+0.0 to +0.0)")],
)
def test_differences_have_signs(given, shown):
    assert signed_with_interval(*given) == shown


def test_a_cosine_is_not_a_percentage():
    result = Result("birds", "cased", None, "own_encoder_similarity", 0.61251, -0.0316, 0.6875, 9)
    assert result_text(result, unit=COSINE) == "0.613 (-0.032 to 0.688)"
    assert interval_text(0.5, 0.75, unit=COSINE) == "0.500-0.750"
    assert percent(math.inf, unit=COSINE) == "not a number"
    assert result_text(result).startswith("61.3 (")
