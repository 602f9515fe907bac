"""Targets of a calibration that held-out images contradict."""

import pytest

from grain_jax.evaluation.missed_targets import missed_targets


def rate(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def report(coverage=None, *, reject=(0.05, 0.02, 0.09), accept=None, false_accept=None):
    found = {
        "settings": {"coverage": 0.9, "false_reject": 0.05, "false_accept": false_accept},
        "none_of_these": {"false_reject": rate(*reject)},
    }
    if coverage is not None:
        found["after"] = {"coverage": rate(*coverage)}
    if accept is not None:
        found["none_of_these"]["false_accept"] = rate(*accept)
    return found


def test_nothing_is_said_where_the_interval_holds_the_target():
    assert missed_targets(report()) == []
    assert missed_targets(report((0.88, 0.85, 0.9))) == []  # at its end


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            report((0.8, 0.75, 0.84)),
            "--coverage asked for 90.0% of sets that hold the label, and of the held-out images it "
            "is 80.0% (95 % interval 75.0% to 84.0%), below the target: do not rely",
        ),
        (report((0.97, 0.94, 0.99)), "above the target: it errs on the safe side"),
        (report(reject=(0.12, 0.09, 0.16)), "--false_reject asked for 5.0% of images that"),
        (report(reject=(0.12, 0.09, 0.16)), "above the target: do not rely"),
        (report(reject=(0.01, 0.0, 0.03)), "below the target: it errs on the safe side"),
        (
            report(accept=(0.3, 0.26, 0.34), false_accept=0.1),
            "--false_accept asked for 10.0% of outliers that are accepted",
        ),
    ],
)
def test_a_missed_target_is_named_with_what_to_do(found, words):
    (note,) = missed_targets(found)
    assert words in note
    assert "fit to more images" in note


def test_only_the_rate_that_chose_the_threshold_is_a_target():
    by_accept = report(reject=(0.3, 0.2, 0.4), accept=(0.1, 0.08, 0.12), false_accept=0.1)
    assert missed_targets(by_accept) == []
    by_reject = report(accept=(0.9, 0.8, 0.95))
    assert missed_targets(by_reject) == []
