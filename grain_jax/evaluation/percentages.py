"""Values, their intervals and their differences as text, the same in every table: fractions in
percent, or another `Unit`.
"""

from dataclasses import dataclass
from math import isfinite

from grain_jax.results import Result

MISSING = "-"
NOT_A_NUMBER = "not a number"


@dataclass(frozen=True)
class Unit:
    """How a value is written: times `factor`, with so many decimals."""

    factor: float
    decimals: int


PERCENT = Unit(100.0, 1)
COSINE = Unit(1.0, 3)


def percent(value: float | None, *, unit: Unit = PERCENT) -> str:
    """A fraction in percent with one decimal, or a value in another unit; `MISSING` or
    `NOT_A_NUMBER`.
    """
    if value is None:
        return MISSING
    return f"{unit.factor * value:.{unit.decimals}f}" if isfinite(value) else NOT_A_NUMBER


def interval_text(low: float | None, high: float | None, *, unit: Unit = PERCENT) -> str:
    """ "58.1-64.2", "-0.3 to 3.1" below zero; "" without one."""
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        return ""
    lower = percent(low, unit=unit)
    return f"{lower}{' to ' if lower.startswith('-') else '-'}{percent(high, unit=unit)}"


def with_interval(
    value: float | None, low: float | None, high: float | None, *, unit: Unit = PERCENT
) -> str:
    """ "61.3 (58.1-64.2)"; without an interval the value alone."""
    interval, shown = interval_text(low, high, unit=unit), percent(value, unit=unit)
    return f"{shown} ({interval})" if interval else shown


def result_text(result: Result | None, *, unit: Unit = PERCENT) -> str:
    """`with_interval` of a result, `MISSING` without one."""
    if result is None:
        return MISSING
    return with_interval(result.value, result.low, result.high, unit=unit)


def signed(value: float) -> str:
    """A difference of fractions in percentage points, as "+1.5"."""
    return f"{100 * value:+.1f}" if isfinite(value) else NOT_A_NUMBER


def signed_with_interval(value: float, low: float, high: float) -> str:
    """ "+1.5 (-0.3 to +3.1)"; signs would run into a hyphen."""
    return f"{signed(value)} ({signed_interval(low, high)})"


def signed_interval(low: float, high: float) -> str:
    """ "-0.3 to +3.1"."""
    return f"{signed(low)} to {signed(high)}"
