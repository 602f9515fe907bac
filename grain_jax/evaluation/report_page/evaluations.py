"""What a report is made of: result files of `evaluate`, and the predictions that belong to them."""

import functools
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.evaluation.comparison import Answers, Measure, read_lines
from grain_jax.evaluation.kept_predictions import answers_of
from grain_jax.evaluation.predictions import SUFFIXES
from grain_jax.paths import no_file
from grain_jax.results import Result, from_json

MOST = len(string.ascii_uppercase)  # result files of one report, a letter each
MAX_BYTES = 256 << 20  # of a result file
TO_CHANGE = (
    "Give --predictions in the order of the result files, or =none; of an evaluation without "
    "--predictions evaluate again with --overwrite."
)
TOLERANCE = 1e-4  # predictions are written with six digits


@dataclass
class AnswerDetails(Answers):
    """Answers of one measure with what each line says beside them; None where it says nothing."""

    predicted: list[str | None] = field(default_factory=list)
    probability: list[float | None] = field(default_factory=list)  # of the predicted class
    iou: list[float | None] = field(default_factory=list)
    # description of the true and of the predicted class that is most similar, and its cosine
    label_text: list[tuple[str, float] | None] = field(default_factory=list)
    predicted_text: list[tuple[str, float] | None] = field(default_factory=list)
    box_xyxy: list[list[float] | None] = field(default_factory=list)
    true_xyxy: list[list[list[float]] | None] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """The true class of each answer; "" for captions and phrases."""
        return [label for _, _, label in self.questions]


@dataclass(frozen=True)
class Evaluation:
    """One result file."""

    letter: str  # "A", "B", ...: how the page calls it
    file: Path
    report: Mapping[str, Any]  # as it was written, by any version
    results: tuple[Result, ...]
    predictions: Path | None = None
    answers: Mapping[Measure, AnswerDetails] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of the checkpoint's path, and its step."""
        checkpoint = Path(str(self.report.get("checkpoint") or self.file.stem)).name
        step = self.report.get("step")
        return checkpoint if step is None else f"{checkpoint}, step {step}"

    def get(
        self, dataset: str, method: str, metric: str, alpha: float | None = None
    ) -> Result | None:
        """The record of one metric."""
        return self._index.get((dataset, method, alpha, metric))

    def cost(self, dataset: str, method: str, what: str) -> int | None:
        """Of a method on a set, its "texts" or "passes"; None where the file does not say."""
        found: Any = self.entries("costs")
        for key in (dataset, method, what):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    @functools.cached_property
    def _index(self) -> dict[tuple[str, str, float | None, str], Result]:
        return {result.identity: result for result in self.results}

    def entries(self, key: str) -> Mapping[str, Any]:
        """A mapping of the result file; empty where the version that wrote it had none."""
        found = self.report.get(key)
        return found if isinstance(found, Mapping) else {}


def read_evaluations(files: Sequence[Path], predictions: Sequence[Path | None]) -> list[Evaluation]:
    """Result files in order, each with its predictions where there are any.

    `predictions` are those of the result files in their order; there may be fewer. Raises
    ValueError for a file that is something else, for one given twice, and where the accuracies of
    predictions are not those of the result file; OSError where a file cannot be read.
    """
    if not files:
        raise ValueError("Give one or more result files of evaluate (.json).")
    if len(files) > MOST:
        raise ValueError(f"{len(files)} result files were given; a report takes up to {MOST}.")
    given = [*files, *(path for path in predictions if path is not None)]
    if len({path.resolve() for path in given}) < len(given):
        raise ValueError("A file is given twice; give each once.")
    if len(predictions) > len(files):
        raise ValueError(
            f"--predictions names {len(predictions)} files for {len(files)} result files; give "
            "those of each result file, in the same order."
        )
    found = []
    for number, path in enumerate(files):
        report, results = read_result_file(path)
        own = predictions[number] if number < len(predictions) else None
        answers = {} if own is None else read_answers(own)
        evaluation = Evaluation(string.ascii_uppercase[number], path, report, results, own, answers)
        _check_belongs(evaluation)
        found.append(evaluation)
    return found


def read_result_file(path: Path) -> tuple[Mapping[str, Any], tuple[Result, ...]]:
    """What `evaluate` wrote as JSON, of this or another version, and its records.

    Raises ValueError for another file, OSError where it cannot be read.
    """
    if path.name.endswith(SUFFIXES):
        raise ValueError(
            f"{str(path)!r} has single answers or a table; give the .json of results that evaluate "
            f"wrote, and predictions as --predictions={path}."
        )
    if not path.is_file():
        raise ValueError(f"{no_file(path)}; give a result file of evaluate (.json).")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{str(path)!r} is larger than {MAX_BYTES >> 20} MiB: not a result file.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}); give a result file.") from None
    if not isinstance(report, Mapping) or "results" not in report:
        raise ValueError(
            f"{str(path)!r} has no 'results'; give a .json that `python -m grain_jax.evaluate` "
            "wrote."
        )
    try:
        results = tuple(from_json(report["results"]))
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None
    if not results:
        raise ValueError(f"{str(path)!r} holds no results to report.")
    return report, results


def read_answers(path: Path) -> dict[Measure, AnswerDetails]:
    """What `evaluate --predictions` wrote, or keeps beside a file of results.

    Raises ValueError for another file, with its line.
    """
    path = answers_of(path)
    found: dict[Measure, AnswerDetails] = {}
    for number, (measure, question, correct, line) in enumerate(read_lines(path), start=1):
        answers = found.setdefault(measure, AnswerDetails())
        answers.questions.append(question)
        answers.correct.append(correct)
        if chosen_from := line.get("choices"):
            answers.choices.add(str(chosen_from))
        predicted = line.get("predicted")
        try:
            answers.predicted.append(None if predicted in (None, "") else str(predicted))
            answers.probability.append(_number(line.get("probability")))
            answers.iou.append(_number(line.get("iou")))
            answers.box_xyxy.append(_box(line.get("box_xyxy")))
            answers.label_text.append(_text(line.get("label_text")))
            answers.predicted_text.append(_text(line.get("predicted_text")))
            boxes = _parsed(line.get("true_xyxy"))
            answers.true_xyxy.append(None if boxes is None else [*_boxes(boxes)])
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}, answer {number}: probability and iou should be numbers, box_xyxy 4 of "
                "them, true_xyxy a list of boxes, and texts a text and a number, as --predictions "
                "of evaluate writes them."
            ) from None
    return found


def _check_belongs(evaluation: Evaluation) -> None:
    """Raises ValueError where the mean of the answers is not the accuracy of the results."""
    if evaluation.predictions is None:
        return
    stored = {
        (r.dataset, r.method if r.alpha is None else f"{r.method}/alpha{r.alpha:g}"): r.value
        for r in evaluation.results
        if r.metric == "top1"
    }
    common = 0
    for measure, answers in evaluation.answers.items():
        if measure.task != "zero_shot":
            common += measure.dataset in {r.dataset for r in evaluation.results}
            continue
        value = stored.get((measure.dataset, measure.method))
        if value is None:
            continue
        common += 1
        mean = float(np.mean(answers.correct))
        if not abs(mean - value) <= TOLERANCE:
            raise ValueError(
                f"{evaluation.predictions} does not belong to {evaluation.file}: {measure.method} "
                f"on {measure.dataset!r} is right in {100 * mean:.2f} % of its answers and in "
                f"{100 * value:.2f} % of the results. {TO_CHANGE}"
            )
    if not common:
        raise ValueError(
            f"{evaluation.predictions} and {evaluation.file} have no set and method in common. "
            f"{TO_CHANGE}"
        )


def _parsed(value: Any) -> Any:
    """Of a .csv, JSON in its cell."""
    if isinstance(value, str):
        return json.loads(value) if value else None
    return value


def _number(value: Any) -> float | None:
    return None if value in (None, "") else float(value)


def _text(value: Any) -> tuple[str, float] | None:
    value = _parsed(value)
    if value is None:
        return None
    text, cosine = value
    return str(text), float(cosine)


def _box(value: Any) -> list[float] | None:
    value = _parsed(value)
    return None if value is None else next(_boxes([value]))


def _boxes(values: Any) -> Iterator[list[float]]:
    for value in values:
        left, top, right, bottom = (float(number) for number in value)
        yield [left, top, right, bottom]
