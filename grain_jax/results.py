"""Results of an evaluation: one record for each value, and the keys that logs know them by."""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TextIO

from grain_jax.config.migration import migrate_metrics
from grain_jax.paths import AnyPath

FILE = "results.jsonl"  # in a run folder: the records of every evaluation, one a line
METRICS_FILE = "metrics.jsonl"  # likewise: what training logged, and results by their keys
# Beside the top-1 accuracy of a method: those by how often classes occur in training captions too.
BY_FREQUENCY = ("top1_unseen", "top1_rare", "top1_frequent")
# Of a method whose texts or crops are random, where they were drawn several times: the standard
# deviation over draws, and with a number behind it the accuracy by that draw.
SPREAD_OF_DRAWS, DRAW = "top1_draws_sd", "top1_draw"
DETAILS = ("top5", "per_class", "expected_distance", "passes", *BY_FREQUENCY)
# What the keys of a method's metrics begin with, after the data set; others begin with the method.
STARTS = {
    "model": "",
    "constant_boxes": "constant_",
    "part_boxes": "part_",
    "retrieval": "retrieval/",
    "image_to_text": "retrieval/image_to_text/",
    "text_to_image": "retrieval/text_to_image/",
    "dataset": "",
}
OF_DATASET = ("images", "classes", "undescribed_classes")
OF_BOXES = ("box_iou", "box_recall", "box_recall_upper_bound", "phrase_accuracy")
HEADLINE = "headline"  # data set of what a data source sums up


@dataclass(frozen=True)
class Result:
    """One measured value.

    Args:
        dataset: the evaluation set, which is a split or is named after a folder of images.
        method: of classification a zero-shot method, or "random"; of retrieval "image_to_text",
            "text_to_image" or, for both, "retrieval"; of grounding the predictor, "model",
            "constant_boxes" or "part_boxes"; of `evaluate grounding` the feature of a box, "region"
            or "crop", a baseline, or "decoder"; "dataset" for counts.
        alpha: weight of the global score against the region score; None where regions have no part.
        metric: "top1", "top5", "per_class", "top1_unseen", "top1_draw0", "R@1", "box_iou",
            "phrase_accuracy", "classes", ...
        value: a fraction in [0, 1], a count, or the squared distance of names in [0, 4]
            ("expected_distance"), or how often an image goes through the encoder ("passes").
        low: lower bound of the 95 % interval; None where there is none.
        high: its upper bound.
        n: how many images, captions, boxes or phrases the value is a mean over; None for counts,
            random baselines, and what is put together from other results.
    """

    dataset: str
    method: str
    alpha: float | None
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def key(self) -> str:
        """The name in logs, see `result_key`."""
        return result_key(self.dataset, self.method, self.alpha, self.metric)

    @property
    def identity(self) -> tuple[str, str, float | None, str]:
        """What is measured, exactly: two alphas may be the same in `key`, which is rounded."""
        return self.dataset, self.method, self.alpha, self.metric


def result_key(dataset: str, method: str, alpha: float | None, metric: str = "top1") -> str:
    """The name in logs and of `evaluation.best_metric`: "unseen/description/alpha0.5"."""
    if method in STARTS:
        return f"{dataset}/{STARTS[method]}{metric}"
    key = f"{dataset}/{method}" + ("" if alpha is None else f"/alpha{alpha:g}")
    return key if metric == "top1" else f"{key}/{metric}"


def keyed(key: str, title: str) -> str:
    """What tables call a method: its key, by which files and --methods know it, and its title,
    "waffle: WaffleCLIP"; the key alone where the title is the same words.
    """
    words = re.sub(r"[^a-z0-9]", "", title.lower().replace("+", "and"))
    return key if words == key.replace("_", "") else f"{key}: {title}"


def is_of_draws(metric: str) -> bool:
    """Whether it is the accuracy by one draw of random texts, or their spread."""
    return metric == SPREAD_OF_DRAWS or re.fullmatch(rf"{DRAW}\d+", metric) is not None


FIELDS = tuple(field.name for field in fields(Result))


def logged(results: Iterable[Result]) -> dict[str, float]:
    """Key -> value, as metrics.jsonl, TensorBoard and W&B have them; intervals as /low, /high."""
    values = {}
    for result in results:
        values[result.key] = result.value
        if result.low is not None and result.high is not None:
            values |= {f"{result.key}/low": result.low, f"{result.key}/high": result.high}
    return values


def from_logged(values: Mapping[str, Any]) -> list[Result]:
    """The records of logged values, also under older keys; what is no result is left out.

    For runs and result files made before there were records.
    """
    numbers = {name: float(value) for name, value in values.items() if _is_number(value)}
    numbers = migrate_metrics(numbers)
    found = []
    for key, value in numbers.items():
        of, _, last = key.rpartition("/")
        result = None if last in ("low", "high") and of in numbers else _from_key(key, value)
        if result is None:
            continue
        low, high = numbers.get(f"{key}/low"), numbers.get(f"{key}/high")
        result = replace(result, low=low, high=high)
        if result.metric in ("top1", *DETAILS) and result.method != "random":
            images = numbers.get(f"{result.dataset}/images")
            count = int(images) if images is not None and math.isfinite(images) else None
            result = replace(result, n=count)
        found.append(result)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _from_key(key: str, value: float) -> Result | None:
    dataset, slash, rest = key.partition("/")
    if not slash:
        return None
    if dataset == HEADLINE:
        return Result(dataset, "model", None, rest, value)
    if rest in OF_DATASET:
        return Result(dataset, "dataset", None, rest, value)
    for method in ("image_to_text", "text_to_image", "retrieval"):
        if rest.startswith(STARTS[method]):
            return Result(dataset, method, None, rest.removeprefix(STARTS[method]), value)
    for method in ("constant_boxes", "part_boxes", "model"):
        metric = rest.removeprefix(STARTS[method])
        if rest.startswith(STARTS[method]) and metric in OF_BOXES:
            return Result(dataset, method, None, metric, value)
    named = re.fullmatch(r"(\w+)(?:/alpha([\d.e+-]+))?(?:/(\w+))?", rest)
    if named is None or not (named[3] in (None, *DETAILS) or is_of_draws(named[3])):
        return None
    alpha = None if named[2] is None else float(named[2])
    return Result(dataset, named[1], alpha, named[3] or "top1", value)


def from_json(stored: Any) -> list[Result]:
    """Records as JSON has them, with fields of later versions left out, or keys and values.

    Raises ValueError for anything else.
    """
    if isinstance(stored, Mapping):
        return from_logged(stored)
    if not isinstance(stored, Sequence) or isinstance(stored, str):
        raise ValueError(f"Results are a list of records, not a {type(stored).__name__}.")
    return [_record(one) for one in stored]


def _record(stored: Any) -> Result:
    given: dict[str, Any] = {}
    if isinstance(stored, Mapping):
        given = {name: stored.get(name) for name in FIELDS}
    numbers = (given.get(name) for name in ("alpha", "low", "high", "n"))
    if (
        not all(isinstance(given.get(name), str) for name in ("dataset", "method", "metric"))
        or not _is_number(given.get("value"))
        or not all(number is None or _is_number(number) for number in numbers)
    ):
        raise ValueError(f"{stored!r} is not a result; expected {', '.join(FIELDS)}.")
    return Result(**given)


def append_results(file: TextIO, step: int, results: Iterable[Result]) -> None:
    """Appends lines to an open results.jsonl."""
    for result in results:
        file.write(json.dumps({"step": step} | asdict(result)) + "\n")
    file.flush()


def read_json_lines(path: AnyPath) -> Iterator[dict[str, Any]]:
    """The objects of a file with a "step" in each; none without the file.

    A line that was cut off by a kill is skipped, and so is one of other bytes than text, which a
    machine that lost power may leave.
    """
    if not path.exists():
        return
    for line in path.read_bytes().decode("utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            yield entry


def read_results(run: AnyPath) -> dict[int, list[Result]]:
    """Step -> results of a run folder, the steps in order.

    What was measured twice at a step (in training and at its end) counts as measured last. What
    only metrics.jsonl has, of runs made before there were records, is read from there.
    """
    steps: dict[int, dict[tuple, Result]] = {}
    for entry in read_json_lines(run / FILE):
        with contextlib.suppress(ValueError):  # not of this version: it does not end a run
            result = _record(entry)
            steps.setdefault(entry["step"], {})[result.identity] = result
    found = {step: list(results.values()) for step, results in steps.items()}
    logged_by_step: dict[int, dict[str, Any]] = {}
    for entry in read_json_lines(run / METRICS_FILE):
        logged_by_step.setdefault(entry["step"], {}).update(entry)
    for step, values in logged_by_step.items():
        known = {result.key for result in found.get(step, [])}
        more = [result for result in from_logged(values) if result.key not in known]
        found.setdefault(step, []).extend(more)
    return {step: found[step] for step in sorted(found) if found[step]}
