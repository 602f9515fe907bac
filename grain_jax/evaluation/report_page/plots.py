"""Where the marks of a plot stand, in percent of its width: no plotting library is needed."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from grain_jax.evaluation.comparison import Measure
from grain_jax.evaluation.percentages import interval_text, percent, with_interval
from grain_jax.evaluation.reliability import expected_calibration_error, reliability_bins
from grain_jax.evaluation.report_page.content import (
    Grid,
    Mark,
    Plot,
    ReliabilityPlot,
    texts,
)
from grain_jax.evaluation.report_page.evaluations import AnswerDetails, Evaluation
from grain_jax.evaluation.report_page.short_list import ShortList
from grain_jax.evaluation.report_page.tables import (
    measured_title,
    method_title,
    named,
    set_columns,
    zero_shot_methods,
)
from grain_jax.results import Result

SHAPES = ("circle", "square", "diamond", "triangle")  # of evaluations, in turn
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)  # between ticks
MOST_TICKS = 6
EDGE = 3.0  # percent of the width left free on both sides, for marks and the texts of ticks


def accuracy_plots(evaluations: Sequence[Evaluation], shown: ShortList) -> list[Plot]:
    """Of every set, top-1 accuracy with its interval, by the methods shown and evaluation."""
    plots = []
    for column, of in set_columns(evaluations).items():
        found: list[tuple[str, Evaluation, Result]] = []
        random = None
        for method, alpha in zero_shot_methods(evaluations):
            for name, one in of:
                result = one.get(name, method, "top1", alpha)
                if result is None or not math.isfinite(result.value):
                    continue
                if method == "random":
                    random = result.value
                elif shown.has(name, (method, alpha)):
                    found.append((method_title(method, alpha), one, result))
        if found:
            plots.append(_plot(column, evaluations, found, random))
    return plots


def _plot(
    title: str,
    evaluations: Sequence[Evaluation],
    found: Sequence[tuple[str, Evaluation, Result]],
    random: float | None,
) -> Plot:
    ends = [value for *_, result in found for value in _bounds(result)]
    ticks = axis_ticks(min(ends), max(ends))

    def place(value: float) -> float:
        inside = min(max((value - ticks[0]) / (ticks[-1] - ticks[0]), 0.0), 1.0)
        return round(EDGE + (100 - 2 * EDGE) * inside, 2)

    marks = []
    for label, one, result in found:
        low, high = result.low, result.high
        known = interval_text(low, high)
        marks.append(
            Mark(
                label=label,
                letter=named(evaluations, one),
                shape=SHAPES[evaluations.index(one) % len(SHAPES)],
                place=place(result.value),
                low=place(low) if known and low is not None else None,
                high=place(high) if known and high is not None else None,
                text=with_interval(result.value, low, high),
            )
        )
    meaning = "Top-1 accuracy in percent, with its 95 % interval."
    reference = None
    if random is not None:
        within = ticks[0] <= random <= ticks[-1]
        reference = (place(random), percent(random)) if within else None
        line = "the dashed line" if within else "to the left of the axis"
        line = "to the right of the axis" if random > ticks[-1] else line
        meaning += f" A random choice would have {percent(random)}: {line}."
    shown = tuple((place(tick), f"{100 * tick:.4g}") for tick in ticks)
    return Plot(title, shown, tuple(marks), reference, meaning)


def _bounds(result: Result) -> Iterable[float]:
    known = (result.low, result.value, result.high)
    return [value for value in known if value is not None and math.isfinite(value)]


def axis_ticks(low: float, high: float) -> list[float]:
    """At most `MOST_TICKS` round fractions from at most `low` to at least `high`."""
    low, high = min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
    for step in STEPS:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last = max(last, first + 1)
        if last - first < MOST_TICKS:
            break
    if last * step > 1 + 1e-9:  # all values are 1
        first, last = first - 1, last - 1
    return [round(step * k, 4) for k in range(first, last + 1)]


def reliability(
    evaluations: Sequence[Evaluation], shown: ShortList
) -> list[Grid | ReliabilityPlot]:
    """How far probabilities are from accuracies, where the predictions have them: a table of all
    methods, then a plot for each that is shown.
    """
    plots, rows = [], []
    for one in evaluations:
        for measure, answers in one.answers.items():
            known = probabilities(answers)
            if known is not None and measure.task == "zero_shot":
                bins = reliability_bins(*known)
                error = expected_calibration_error(*known)
                rows.append(
                    texts(
                        measure.dataset,
                        measured_title(measure),
                        one.letter,
                        percent(error),
                        *(percent(float(values.mean())) for values in known),
                        f"{len(answers.correct):,}",
                    )
                )
                if not shown.has_measure(measure):
                    continue
                plots.append(
                    ReliabilityPlot(
                        title=_title(evaluations, one, measure),
                        points=tuple((b.probability, b.accuracy, b.answers) for b in bins),
                        meaning=f"Expected calibration error {percent(error)} %",
                    )
                )
    if not rows:
        return []
    table = Grid(
        "Expected calibration error, %",
        ("set", "method", "of", "error", "mean probability", "accuracy", "images"),
        tuple(rows),
        "The mean distance, over 15 bins of equal width, of the accuracy of answers from their "
        "mean probability: the softmax of cosines times the scale that the model was trained "
        "with, or a method's own. In the plots, across: probability, up: accuracy, both from 0 to "
        "100 %; a mark is a bin, and on the dashed line both are equal.",
        num_texts=3,
    )
    return [table, *plots]


def probabilities(answers: AnswerDetails) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities and how right the answers are; None where a line has no probability."""
    values = [value for value in answers.probability if value is not None and 0 <= value <= 1]
    if not values or len(values) < len(answers.correct):
        return None
    return np.array(values), np.array(answers.correct)


def _title(evaluations: Sequence[Evaluation], one: Evaluation, measure: Measure) -> str:
    letter = named(evaluations, one)
    return f"{measure.dataset}: {measured_title(measure)}" + (f", {letter}" if letter else "")
