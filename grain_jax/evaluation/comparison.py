"""Two evaluations of the same data side by side, by the answers that each kept."""

import contextlib
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import Float, Int

from grain_jax.evaluation.grounding_protocol import unlike
from grain_jax.evaluation.predictions import PACKED, check_suffix, is_table
from grain_jax.evaluation.statistics import Difference, holm, paired_difference

MAX_LINE = 1 << 20  # characters of a line of predictions
Answer = tuple[str, str, str]  # image, text, label: which question it is the answer to


@dataclass(frozen=True)
class Task:
    """How tables name what was measured."""

    title: str  # behind the name of a set
    metric: str  # what the mean of "correct" is


TASKS: Mapping[str, Task] = {
    "zero_shot": Task("", "accuracy"),
    "retrieval": Task(", retrieval", "R@1"),
    "grounding": Task(", grounding", "Acc@0.5"),
    "compositional": Task(", captions", "accuracy"),
    "vocabulary_free": Task(", semantic IoU of free answers", "semantic IoU"),
}


def metrics_of(tasks: Iterable[str]) -> str:
    """What a table of these tasks has, as "accuracy, R@1 or semantic IoU"."""
    *others, last = dict.fromkeys(TASKS[task].metric for task in tasks)
    return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True, order=True)
class Measure:
    """What was measured, on what."""

    task: str
    dataset: str
    method: str  # with its alpha, as "description/alpha0.5", or its score, as "model/group"

    @property
    def on(self) -> tuple[str, str]:
        return self.task, self.dataset


@dataclass
class Answers:
    """How right each answer is, in [0, 1], in the order of the file."""

    questions: list[Answer] = field(default_factory=list)
    correct: list[float] = field(default_factory=list)
    choices: set[str] = field(default_factory=set)  # hashes of what they were chosen from, if known
    protocols: set[str] = field(default_factory=set)  # of grounding, if known
    # how right by each draw of the method's random texts, where there were several
    by_draw: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def num_draws(self) -> int:
        """1 of a method without random texts, or with a single draw."""
        return len(self.by_draw[0]) if self.by_draw else 1


Predictions = Mapping[Measure, Answers]


@dataclass(frozen=True)
class Comparison:
    """One method on one set in A and in B, or two methods in one file."""

    task: str
    dataset: str
    first: str  # method of A
    second: str  # method of B
    images: int
    answers: int  # as many as images but for captions and phrases
    seeds: tuple[int, int]  # trainings of A and of B
    difference: Difference
    adjusted_p_value: float  # by Holm, over all comparisons of the table
    draws: tuple[int, int] = (1, 1)  # of random texts of A and of B
    # standard deviation of B - A over draws, where the draws of both are equally many or one has 1
    draws_sd: float | None = None


def read_predictions(path: Path) -> Predictions:
    """What `evaluate --predictions` wrote. Raises ValueError for another file, with its line."""
    found: dict[Measure, Answers] = {}
    for measure, question, correct, line in read_lines(path):
        answers = found.setdefault(measure, Answers())
        answers.questions.append(question)
        answers.correct.append(correct)
        if chosen_from := line.get("choices"):
            answers.choices.add(str(chosen_from))
        if protocol := line.get("protocol"):
            answers.protocols.add(str(protocol))
        if by_draw := line.get("correct_by_draw"):
            answers.by_draw.append(_draws(by_draw, f"{path}: {question[0]!r}"))
    return found


def _draws(stored: Any, where: str) -> tuple[float, ...]:
    """A list of numbers, of a .csv as JSON. Raises ValueError for anything else."""
    try:
        found = tuple(map(float, json.loads(stored) if isinstance(stored, str) else stored))
    except (TypeError, ValueError):
        found = ()
    if not found:
        raise ValueError(f"{where} has correct_by_draw {stored!r}; expected a list of numbers.")
    return found


def read_lines(path: Path) -> Iterator[tuple[Measure, Answer, float, Mapping[str, Any]]]:
    """What was measured, the question, how right the answer is, and all of the line.

    Raises ValueError for another file, with its line, and for one without any.
    """
    check_suffix(path)
    number = 0
    for number, line in _lines(path):
        try:
            measure = Measure(str(line["task"]), str(line["set"]), _method(line))
            question = str(line["image"]), str(line.get("text", "")), str(line.get("label", ""))
            correct = float(line["correct"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}:{number} is not a line of predictions; expected task, set, method, image "
                "and correct, as --predictions of evaluate writes them."
            ) from None
        if measure.task not in TASKS or not 0 <= correct <= 1:
            raise ValueError(
                f"{path}:{number} has task {measure.task!r} and correct {correct:g}; expected one "
                f"of {', '.join(TASKS)} and 0 to 1."
            )
        yield measure, question, correct, line
    if not number:
        raise ValueError(f"{path} holds no predictions.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The text of a file, unpacked as it is read. Raises ValueError where it is not whole."""
    errors, newline = "backslashreplace", ""
    if path.suffix != PACKED:
        with path.open(encoding="utf-8", errors=errors, newline=newline) as file:
            yield file
        return
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors=errors, newline=newline) as file:
            assert isinstance(file, io.TextIOWrapper)
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be unpacked ({error}): it is damaged or no gzip file. Evaluate again."
        ) from None


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with _opened(path) as file:
        if is_table(path):
            table = csv.DictReader(file)
            try:
                yield from ((table.line_num, row) for row in table)
            except csv.Error as error:
                raise ValueError(f"{path}:{table.line_num} cannot be read: {error}.") from None
            return
        for number in itertools.count(1):
            if not (text := file.readline(MAX_LINE)):
                return
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            yield number, line if isinstance(line, dict) else {}


def _method(line: Mapping[str, Any]) -> str:
    alpha = line.get("alpha")
    method = str(line["method"])
    if metric := line.get("metric"):
        return f"{method}/{metric}"
    return method if alpha in (None, "") else f"{method}/alpha{float(alpha):g}"


def compare_models(
    first: Sequence[Predictions], second: Sequence[Predictions], *, seed: int = 0
) -> list[Comparison]:
    """B against A, each of one or several trainings, by every method and set that all have.

    Raises ValueError where nothing is in all, or where answers are to other questions.
    """
    everywhere = set.intersection(*(set(one) for one in (*first, *second)))
    if not everywhere:
        raise ValueError(
            f"The files have no set and method in common: {_named(first[0])} in one and "
            f"{_named(second[0])} in another; compare evaluations of the same data."
        )
    measures = [measure for measure in first[0] if measure in everywhere]
    pairs = [(measure, measure) for measure in measures]
    return _compared(pairs, first, second, same_trainings=False, seed=seed)


def left_out(first: Sequence[Predictions], second: Sequence[Predictions]) -> list[str]:
    """A sentence for the methods on a set that the same files lack, sorted."""
    files = {
        side if len(models) == 1 else f"file {i} of {side}": one
        for side, models in (("A", first), ("B", second))
        for i, one in enumerate(models, start=1)
    }
    known = {measure for one in files.values() for measure in one}
    methods: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for measure in sorted(known):
        if lacking := tuple(name for name, one in files.items() if measure not in one):
            methods.setdefault((measure.dataset, lacking), []).append(measure.method)
    sentences = []
    for (dataset, lacking), names in methods.items():
        few, them = ("is", "it") if len(names) == 1 else ("are", "them")
        lack = "lacks" if len(lacking) == 1 else "lack"
        sentences.append(
            f"{', '.join(names)} on {dataset!r} {few} left out: {', '.join(lacking)} {lack} {them}"
        )
    return sentences


def compare_methods(
    predictions: Sequence[Predictions], *, against: str, seed: int = 0
) -> list[Comparison]:
    """Every other method against one, on the same images, of one or several trainings.

    `against` is "METHOD/alpha0.5", or "METHOD" alone: a method that was measured at several alphas
    is then compared with others at the same alpha.
    """
    everywhere = set.intersection(*(set(one) for one in predictions))
    measures = [measure for measure in predictions[0] if measure in everywhere]
    exact = any(measure.method == against for measure in measures)
    pairs = []
    for baseline in measures:
        name, slash, alpha = baseline.method.partition("/")
        if (baseline.method if exact else name) != against:
            continue
        for measure in measures:
            alike = exact or measure.method.endswith(slash + alpha)
            if measure.on == baseline.on and measure != baseline and alike:
                pairs.append((baseline, measure))
    if not pairs:
        methods = sorted({measure.method for measure in everywhere})
        raise ValueError(
            f"No method can be compared with {against!r}; the file has {', '.join(methods)}."
        )
    return _compared(pairs, predictions, predictions, same_trainings=True, seed=seed)


def compare_with_method(
    first: Sequence[Predictions], second: Sequence[Predictions], *, against: str, seed: int = 0
) -> list[Comparison]:
    """Every method of B against one method of A on the same images, as GRAIN's with regions against
    CLIP's by description; each of one or several trainings.

    `against` is "METHOD/alpha1", or "METHOD" where A has it at one alpha. Raises ValueError where A
    has no such method, or several, and where B has nothing of the same set.
    """
    baselines = set.intersection(*map(set, first))
    named = [one for one in baselines if against in (one.method, one.method.partition("/")[0])]
    exact = [one for one in named if one.method == against] or named
    if len({one.method for one in exact}) != 1:
        known = ", ".join(sorted({one.method for one in named or baselines}))
        raise ValueError(f"--against={against} should be one method of A, which has {known}.")
    offered = set.intersection(*map(set, second))
    pairs = [
        (baseline, measure)
        for baseline in first[0]
        if baseline in exact
        for measure in second[0]
        if measure in offered and measure.on == baseline.on
    ]
    if not pairs:
        raise ValueError(
            f"The files have no set in common on which A has {against}: {_named(first[0])} in A "
            f"and {_named(second[0])} in B; compare evaluations of the same data."
        )
    return _compared(pairs, first, second, same_trainings=False, seed=seed)


def _compared(
    pairs: Sequence[tuple[Measure, Measure]],
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    *,
    same_trainings: bool,
    seed: int,
) -> list[Comparison]:
    found = []
    for one, other in pairs:
        answers = [*(p[one] for p in first), *(p[other] for p in second)]
        _check_choices(one, answers)
        _check_protocols(one, other, answers)
        questions = first[0][one].questions
        before, after = (
            np.stack([aligned(predictions[measure], questions, measure) for predictions in side])
            for side, measure in ((first, one), (second, other))
        )
        groups = image_numbers(questions)
        difference = paired_difference(
            before, after, groups, same_trainings=same_trainings, seed=seed
        )
        drawn = [_draw_means([p[m] for p in side]) for side, m in ((first, one), (second, other))]
        found.append((one, other, groups, difference, drawn))
    adjusted = holm([difference.p_value for *_, difference, _ in found])
    return [
        Comparison(
            task=one.task,
            dataset=one.dataset,
            first=one.method,
            second=other.method,
            images=int(groups.max()) + 1,
            answers=len(groups),
            seeds=(len(first), len(second)),
            difference=difference,
            adjusted_p_value=p_value,
            draws=(len(drawn[0]), len(drawn[1])),
            draws_sd=draws_sd(*drawn),
        )
        for (one, other, groups, difference, drawn), p_value in zip(found, adjusted, strict=True)
    ]


def _draw_means(answers: Sequence[Answers]) -> Float[np.ndarray, "D"]:
    """The accuracy by each draw of random texts, the mean over trainings; one without draws."""
    counts = {one.num_draws for one in answers}
    if len(counts) > 1 or 1 in counts:
        return np.array([np.mean([np.mean(one.correct) for one in answers])])
    if any(len(one.by_draw) != len(one.correct) for one in answers):
        raise ValueError("correct_by_draw is in some lines of a method and not in others.")
    return np.mean([np.array(one.by_draw, float).mean(axis=0) for one in answers], axis=0)


def draws_sd(first: Float[np.ndarray, "D"], second: Float[np.ndarray, "C"]) -> float | None:
    """Standard deviation of second - first over draws of random texts, of which one side may have
    none (a single value); with as many on both sides, the d-th of one goes with the d-th of the
    other, as they are drawn by the same seed. None without draws, or with unlike numbers.
    """
    if len(first) == len(second) == 1 or (
        len(first) != len(second) and 1 not in (len(first), len(second))
    ):
        return None
    return float(np.std(second - first, ddof=1))


def _check_choices(measure: Measure, answers: Sequence[Answers]) -> None:
    """Raises ValueError where classes, texts or images to choose from are not the same ones."""
    if len(set.union(*(one.choices for one in answers))) > 1:
        raise ValueError(
            f"The answers on {measure.dataset!r} ({measure.method}) were chosen from different "
            "classes, texts or images, so their accuracies mean different things. Compare "
            "evaluations with the same ones."
        )


def _check_protocols(one: Measure, other: Measure, answers: Sequence[Answers]) -> None:
    """Raises ValueError where grounding was measured by protocols that differ in more than what two
    methods are compared for.
    """
    protocols = set.union(*(found.protocols for found in answers))
    differing = unlike(protocols, but=() if one == other else ("feature",))
    if differing:
        raise ValueError(
            f"The answers on {one.dataset!r} ({one.method}) are by unlike protocols of grounding, "
            f"so their accuracies mean different things: {differing}. Evaluate both by the same."
        )


def aligned(
    answers: Answers, questions: Sequence[Answer], measure: Measure
) -> Float[np.ndarray, "N"]:
    """How right the answers are, in the order of `questions`. Raises ValueError for others."""
    correct = np.array(answers.correct, np.float64)
    if answers.questions == questions:
        return correct
    wanted, given = sorted(questions), sorted(answers.questions)
    if wanted != given:
        other = next(
            iter(set(wanted) ^ set(given)),
            next((one for one, two in itertools.pairwise(given) if one == two), given[0]),
        )
        image, text, label = other
        about = "".join(
            f", {name} {value!r}" for name, value in (("text", text), ("label", label)) if value
        )
        raise ValueError(
            f"The answers on {measure.dataset!r} ({measure.method}) are to other questions: image "
            f"{image!r}{about} is {questions.count(other)} times in the first file and "
            f"{answers.questions.count(other)} times in another. Compare evaluations of the same "
            "images, texts and class names."
        )
    order = sorted(range(len(given)), key=answers.questions.__getitem__)
    place = sorted(range(len(wanted)), key=questions.__getitem__)
    aligned = np.empty_like(correct)
    aligned[place] = correct[order]
    return aligned


def image_numbers(questions: Sequence[Answer]) -> Int[np.ndarray, "N"]:
    """A number for the image of each answer."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(image, len(number)) for image, *_ in questions], int)


def _named(predictions: Predictions) -> str:
    measure = next(iter(predictions))
    return f"{measure.method} on {measure.dataset!r}"
