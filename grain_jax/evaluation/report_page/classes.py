"""What single answers say of classes: found, confused, won and lost; and paired differences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from grain_jax.evaluation.class_statistics import (
    ClassDifference,
    class_accuracies,
    class_differences,
    confused_pairs,
)
from grain_jax.evaluation.comparison import (
    TASKS,
    Comparison,
    Measure,
    aligned,
    compare_methods,
    compare_models,
    metrics_of,
)
from grain_jax.evaluation.percentages import (
    interval_text,
    percent,
    signed,
    signed_interval,
)
from grain_jax.evaluation.ranking import wilson_interval
from grain_jax.evaluation.report_page.content import (
    Cell,
    Grid,
    texts,
)
from grain_jax.evaluation.report_page.deciding import MEANING, deciding_cells, has_texts
from grain_jax.evaluation.report_page.evaluations import Evaluation
from grain_jax.evaluation.report_page.short_list import ShortList
from grain_jax.evaluation.report_page.tables import measured_title, named
from grain_jax.evaluation.statistics import holm

MAX_CLASSES = 2_000  # rows of a table of classes
MAX_METHODS = 12  # columns of one
PAIRS = 10  # confused pairs of a method
OF_CLASS = ("images", "value, %", "against, %", "points", "more right", "p")
EACH_WAY = 12  # classes won and classes lost that a table shows


@dataclass(frozen=True)
class Pairing:
    """Two measures on the same images: of two evaluations, or two methods of one."""

    first: Evaluation
    second: Evaluation
    before: Measure
    after: Measure

    def title(self) -> str:
        """ "B against A: description, alpha = 1"."""
        if self.first is not self.second:
            letters = f"{self.second.letter} against {self.first.letter}"
            return f"{letters}: {measured_title(self.after)}"
        letter = f"{self.first.letter}: " if self.first.letter else ""
        return f"{letter}{measured_title(self.after)} against {measured_title(self.before)}"


def class_grids(evaluations: Sequence[Evaluation], shown: ShortList) -> list[Grid]:
    """Accuracy of every class by the methods shown, and the pairs that are most often confused."""
    grids = []
    for one in evaluations:
        sets: dict[str, list[Measure]] = {}
        for measure in one.answers:
            labels = one.answers[measure].labels
            if measure.task == "zero_shot" and shown.has_measure(measure) and all(labels):
                sets.setdefault(measure.dataset, []).append(measure)
        for name, measures in sets.items():
            letter = named(evaluations, one)
            title = f"{name}, {letter}" if letter else name
            grids.append(_accuracies(title, one, measures[:MAX_METHODS], len(measures)))
            grids += _confusions(title, one, measures)
    return grids


def _accuracies(title: str, one: Evaluation, measures: Sequence[Measure], count: int) -> Grid:
    tables = []
    for measure in measures:
        answers = one.answers[measure]
        found = class_accuracies(answers.labels, np.array(answers.correct))
        tables.append({each.name: each for each in found})
    names = list(dict.fromkeys(name for table in tables for name in table))
    means = {
        name: float(np.mean([table[name].accuracy for table in tables if name in table]))
        for name in names
    }
    names.sort(key=lambda name: (means[name], name))
    rows = []
    for name in names[:MAX_CLASSES]:
        images = next(table[name].images for table in tables if name in table)
        cells = [
            Cell(
                percent(table[name].accuracy),
                interval_text(*wilson_interval(table[name].accuracy, table[name].images)),
            )
            if name in table
            else Cell("-")
            for table in tables
        ]
        rows.append((Cell(name), Cell(f"{images:,}"), *cells))
    left = [
        f"{len(names) - MAX_CLASSES:,} classes with higher accuracy are left out."
        if len(names) > MAX_CLASSES
        else "",
        f"{count - len(measures)} further methods are left out." if count > len(measures) else "",
    ]
    return Grid(
        f"{title}: accuracy of each class, %",
        ("class", "images", *map(measured_title, measures)),
        tuple(rows),
        " ".join(
            [
                "The lowest mean over methods first; with 95 % intervals (Wilson).",
                *filter(None, left),
            ]
        ),
        folded=True,
    )


def _confusions(title: str, one: Evaluation, measures: Sequence[Measure]) -> Iterator[Grid]:
    rows = []
    for measure in measures:
        answers = one.answers[measure]
        if any(predicted is None for predicted in answers.predicted):
            continue
        predicted = [str(each) for each in answers.predicted]
        for pair in confused_pairs(answers.labels, predicted, limit=PAIRS):
            rows.append(
                texts(
                    measured_title(measure),
                    pair.label,
                    pair.predicted,
                    f"{pair.images:,}",
                    percent(pair.fraction),
                )
            )
    if rows:
        yield Grid(
            f"{title}: the most confused pairs",
            ("method", "class", "taken for", "images", "of the class, %"),
            tuple(rows),
            f"Up to {PAIRS} pairs of each method, by their number of images.",
            num_texts=3,
            folded=True,
        )


def pairings(evaluations: Sequence[Evaluation], against: str) -> list[Pairing]:
    """The first evaluation with answers against each later one, by every common method; and in
    each evaluation the other methods against `against`.
    """
    having = [one for one in evaluations if one.answers]
    found = [
        Pairing(having[0], other, measure, measure)
        for other in having[1:]
        for measure in having[0].answers
        if measure in other.answers
    ]
    for one in having:
        for before in one.answers:
            if before.method == against:
                found += [
                    Pairing(one, one, before, after)
                    for after in one.answers
                    if after.on == before.on and after != before
                ]
    return found


def paired_grids(
    pairs: Sequence[Pairing], shown: ShortList, *, seed: int
) -> tuple[list[Grid], list[str]]:
    """Differences with intervals, then of each pairing of a method shown the classes won and lost;
    and sentences on what cannot be compared.
    """
    compared: list[tuple[Pairing, Comparison]] = []
    notes = []
    for pair in pairs:
        try:
            compared.append((pair, _compare(pair, seed)))
        except ValueError as error:
            notes.append(f"{pair.title()} is left out: {error}")
    if not compared:
        return [], notes
    adjusted = holm([found.difference.p_value for _, found in compared])
    rows = []
    for (pair, found), p_value in zip(compared, adjusted, strict=True):
        difference = found.difference
        rows.append(
            (
                *texts(
                    f"{found.dataset}{TASKS[found.task].title}", pair.title(), f"{found.images:,}"
                ),
                *texts(percent(difference.second), percent(difference.first)),
                Cell(
                    signed(difference.value),
                    signed_interval(difference.low, difference.high),
                ),
                Cell(f"{p_value:.2g}"),
            )
        )
    count = f"{len(rows)} comparisons" if len(rows) > 1 else "1 comparison"
    table = Grid(
        "Differences on the same images",
        ("set", "compared", "images", "value, %", "against, %", "difference, points", "p"),
        tuple(rows),
        f"Value: {metrics_of(found.task for _, found in compared)} of what is named first in "
        "'compared'; against: of what it is compared with. The difference "
        "is in percentage points with its 95 % interval (bootstrap over images); p "
        f"of the paired permutation test, corrected by Holm for {count}. A single training of "
        "each says nothing of other seeds.",
        num_texts=2,
    )
    won = [
        _wins(pair, found)
        for pair, found in compared
        if found.task == "zero_shot" and shown.has_measure(pair.after)
    ]
    return [table, *(grid for grid in won if grid is not None)], notes


def _compare(pair: Pairing, seed: int) -> Comparison:
    first = {pair.before: pair.first.answers[pair.before]}
    if pair.first is pair.second:
        first[pair.after] = pair.first.answers[pair.after]
        return compare_methods([first], against=pair.before.method, seed=seed)[0]
    second = {pair.after: pair.second.answers[pair.after]}
    return compare_models([first], [second], seed=seed)[0]


def _wins(pair: Pairing, found: Comparison) -> Grid | None:
    answers = pair.first.answers[pair.before]
    if not all(answers.labels):
        return None
    after = aligned(pair.second.answers[pair.after], answers.questions, pair.after)
    classes = class_differences(answers.labels, np.array(answers.correct), after)
    won = [one for one in classes if one.value > 0]
    lost = [one for one in reversed(classes) if one.value < 0]
    equal = len(classes) - len(won) - len(lost)
    details = pair.second.answers[pair.after]
    change = after - np.array(answers.correct)
    decided = has_texts(answers) or has_texts(details)
    rows = []
    for word, side in (("won", won), ("lost", lost)):
        for one in side[:EACH_WAY]:
            cells = _class_row(word, one)
            if decided:
                rested_on = deciding_cells(one.name, answers, details, change, won=word == "won")
                cells = (*cells[:2], *texts(*rested_on), *cells[2:])
            rows.append(cells)
    heads = ("", "class", *(("most similar description", "against") if decided else ()), *OF_CLASS)
    if not rows:
        rows = [texts("equal", f"all {equal} classes", *("-" for _ in heads[2:]))]
    shown = [
        f"{min(EACH_WAY, len(side))} of {len(side)} classes {word} are shown."
        for word, side in (("won", won), ("lost", lost))
        if len(side) > EACH_WAY
    ]
    return Grid(
        f"{found.dataset}, {pair.title()}: classes won {len(won)}, lost {len(lost)}, equal {equal}",
        heads,
        tuple(rows),
        " ".join(
            [
                "Won by what is named first. 'More right': images that it gets more right than the "
                "other : less; of tied classes an answer is right in part. p of the sign test on "
                "these, corrected by Holm for the classes; above 0.05 it is not significant.",
                *([MEANING] if decided else []),
                *shown,
            ]
        ),
        num_texts=len(heads) - len(OF_CLASS),
        folded=True,
    )


def _class_row(word: str, one: ClassDifference) -> tuple[Cell, ...]:
    return texts(
        word,
        one.name,
        f"{one.images:,}",
        percent(one.second),
        percent(one.first),
        signed(one.value),
        f"{one.only_second} : {one.only_first}",
        f"{one.adjusted_p_value:.2g}",
    )
