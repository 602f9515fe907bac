"""Fractions, their intervals and their differences in percent, the same in every table."""

from math import isfinite

from grain_jax.results import Result

MISSING = "-"
NOT_A_NUMBER = "not a number"


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal, `MISSING` or `NOT_A_NUMBER`."""
    if value is None:
        return MISSING
    return f"{100 * value:.1f}" if isfinite(value) else NOT_A_NUMBER


def interval_text(low: float | None, high: float | None) -> str:
    """ "58.1-64.2", "-0.3 to 3.1" below zero; "" without one."""
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        return ""
    lower = percent(low)
    return f"{lower}{' to ' if lower.startswith('-') else '-'}{percent(high)}"


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """ "61.3 (58.1-64.2)"; without an interval the value alone."""
    interval = interval_text(low, high)
    return f"{percent(value)} ({interval})" if interval else percent(value)


def result_text(result: Result | None) -> str:
    """`with_interval` of a result, `MISSING` without one."""
    if result is None:
        return MISSING
    return with_interval(result.value, result.low, result.high)


def signed(value: float) -> str:
    """A difference of fractions in percentage points, as "+1.5"."""
    return f"{100 * value:+.1f}" if isfinite(value) else NOT_A_NUMBER


def signed_with_interval(value: float, low: float, high: float) -> str:
    """ "+1.5 (-0.3 to +3.1)"; signs would run into a hyphen."""
    return f"{signed(value)} ({signed_interval(low, high)})"


def signed_interval(low: float, high: float) -> str:
    """ "-0.3 to +3.1"."""
    return f"{signed(low)} to {signed(high)}"
