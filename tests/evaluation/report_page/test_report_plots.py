"""Plots of a report: where marks stand, and probabilities against accuracies."""

import numpy as np
import pytest
from report_files import (
    mean,
    sections_of,
    zero_shot_lines,
)

from grain_jax.evaluation.report_page.content import all_grids
from grain_jax.evaluation.report_page.evaluations import read_evaluations
from grain_jax.evaluation.report_page.plots import accuracy_plots, axis_ticks
from grain_jax.evaluation.report_page.short_list import ShortList


def test_probabilities_are_set_against_accuracies(two):
    _, sections = sections_of(*two)
    grid = next(one for one in all_grids(sections) if one.title.startswith("Expected calibration"))
    accuracy = mean(zero_shot_lines(5, 0.5))
    row = next(row for row in grid.rows if row[1].text == "name" and row[2].text == "A")
    assert [cell.text for cell in row[3:]] == [
        f"{100 * abs(0.7 - accuracy):.1f}",
        "70.0",
        f"{100 * accuracy:.1f}",
        "60",
    ]


def test_marks_are_named_and_shaped_and_stand_where_the_values_are(two):
    evaluations = read_evaluations(two[0], [])
    (plot,) = accuracy_plots(evaluations, ShortList(evaluations))
    assert [(mark.label, mark.letter) for mark in plot.marks] == [
        *(("name", letter) for letter in "AB"),
        *(("description, alpha = 1", letter) for letter in "AB"),
    ]
    assert len({mark.shape for mark in plot.marks}) == 2
    (first, low), (last, high) = plot.ticks[0], plot.ticks[-1]
    for mark in plot.marks:
        value = float(mark.text.partition(" ")[0])
        expected = first + (last - first) * (value - float(low)) / (float(high) - float(low))
        assert mark.place == pytest.approx(expected, abs=0.2)
        assert mark.low < mark.place < mark.high


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.72, 0.77), (0.981, 0.983), (1.0, 1.0), (0.0, 0.0), (0.3, 0.3)]
)
def test_ticks_are_few_and_hold_the_values(low, high):
    ticks = axis_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= low <= high <= ticks[-1] <= 1
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
