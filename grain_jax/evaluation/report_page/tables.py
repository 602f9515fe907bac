"""What was measured, and its results: methods by sets, grounding, retrieval, and the rest."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.evaluation.comparison import Measure, image_numbers
from grain_jax.evaluation.percentages import interval_text
from grain_jax.evaluation.report_page.content import (
    Cell,
    Grid,
    accuracy_cell,
    texts,
)
from grain_jax.evaluation.report_page.evaluations import Evaluation
from grain_jax.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from grain_jax.evaluation.statistics import mean_interval
from grain_jax.evaluation.tables import PREDICTORS, draws_sentence, spread_of_draws
from grain_jax.evaluation.tables import method_title as title_of_method
from grain_jax.results import HEADLINE, OF_BOXES, OF_DATASET, STARTS, Result, is_of_draws
from grain_jax.zero_shot.methods import METHODS
from grain_jax.zero_shot.text_kinds import OF_DESCRIPTIONS

SHORT = 8  # digits of a SHA-256
NOT_RECORDED, NONE = "not recorded", "none"
GROUPS = ("settings", "preprocessing", "versions", "hardware")
FACTS = ("checkpoint", "step", "data", "split", "inputs_sha256")
ACCURACIES = {
    "top1": "Top-1 accuracy, %",
    "per_class": "Mean accuracy per class, %",
    "top5": "Top-5 accuracy, %",
    "top1_unseen": "Top-1 accuracy of classes that no training caption names, %",
    "top1_rare": "Top-1 accuracy of rare classes, %",
    "top1_frequent": "Top-1 accuracy of frequent classes, %",
}
WILSON = "With the 95 % interval (Wilson, over {}), which says nothing of other seeds."
OF_CLASSES = "images within their classes"  # what the interval of a mean over classes draws
COSTS = ("texts", "passes")
OF_COSTS = (
    " Texts: different ones that were encoded for the method; passes: how often an image goes "
    "through the encoder; where sets differ, from the least to the most."
)
BY_NAME = (
    " A cell with '{}' has so many classes without descriptions, which were scored by their name."
)
GROUNDING = {
    "box_iou": "mean IoU",
    "box_recall": "recall@0.5",
    "box_recall_upper_bound": "recall upper bound",
    "phrase_accuracy": "Acc@0.5",
}
DIRECTIONS = {IMAGE_TO_TEXT: IMAGE_TO_TEXT, TEXT_TO_IMAGE: TEXT_TO_IMAGE}
BOOTSTRAP = (
    " Intervals are of the bootstrap over images (95 %): boxes, phrases and captions of an image "
    "stay together. Files of older versions have them of R@1 and Acc@0.5, where predictions were "
    "given."
)
Method = tuple[str, float | None]


def method_title(method: str, alpha: float | None) -> str:
    """ "description, alpha = 0.5"."""
    title = title_of_method(method)
    return title if alpha is None else f"{title}, alpha = {alpha:g}"


def measured_title(measure: Measure) -> str:
    """`method_title` of a measure of predictions."""
    method, _, alpha = measure.method.partition("/alpha")
    return method_title(method, float(alpha) if alpha else None)


def named(evaluations: Sequence[Evaluation], one: Evaluation) -> str:
    """The letter of an evaluation; "" where there is only one."""
    return one.letter if len(evaluations) > 1 else ""


def facts_tables(evaluations: Sequence[Evaluation]) -> tuple[Grid, Grid]:
    """What was measured, and how, a column for each result file; "≠" where they differ."""
    columns = [dict(_facts(one)) for one in evaluations]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    how = [key for key in keys if ": " in key]
    how.sort(key=lambda key: GROUPS.index(key.partition(": ")[0]))
    what = [key for key in keys if key not in how]
    return (
        _facts_grid("Models and data", evaluations, columns, what),
        replace(
            _facts_grid("Settings, versions and hardware", evaluations, columns, how), folded=True
        ),
    )


def _facts_grid(
    title: str,
    evaluations: Sequence[Evaluation],
    columns: Sequence[Mapping[str, str]],
    keys: Sequence[str],
) -> Grid:
    rows = []
    for key in keys:
        values = [column.get(key, NOT_RECORDED) for column in columns]
        differs = "≠ " if len(set(values)) > 1 else ""
        rows.append(texts(f"{differs}{key}", *values))
    return Grid(
        title,
        ("", *(f"{one.letter}: {one.name}" for one in evaluations)),
        tuple(rows),
        "≠ marks what differs." if len(evaluations) > 1 else "",
        num_texts=1 + len(evaluations),
    )


def _facts(one: Evaluation) -> Iterator[tuple[str, str]]:
    yield "result file", str(one.file)
    if one.predictions is not None:
        yield "predictions", str(one.predictions)
    for key in FACTS:
        if key in one.report:
            yield key, _shown(one.report[key])
    for group in GROUPS:
        for key, value in one.entries(group).items():
            yield f"{group}: {key}", _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def texts_table(evaluations: Sequence[Evaluation]) -> Grid | None:
    """Images and class texts of each set, with their hashes."""
    rows = []
    for one in evaluations:
        for name, described in one.entries("zero_shot_sets").items():
            if isinstance(described, Mapping):
                parts = ("images", "classes", "templates", "descriptions")
                cells = [_part(described.get(part)) for part in parts]
                rows.append((Cell(str(name)), Cell(one.letter), *cells))
        for name, described in one.entries("splits").items():
            count = described.get("images") if isinstance(described, Mapping) else None
            rows.append((*texts(str(name), one.letter, _shown(count)), *texts("-", "-", "-")))
    if not rows:
        return None
    return Grid(
        "Images and texts",
        ("set", "of", "images", "classes", "templates", "descriptions"),
        tuple(rows),
        "Numbers, the files they came from, and the first digits of the SHA-256 of the images' "
        "bytes and labels, or of the texts.",
        num_texts=6,
    )


def _part(described: Any) -> Cell:
    if not isinstance(described, Mapping):
        return Cell(NOT_RECORDED)
    count, file = described.get("count"), described.get("file")
    found = [f"{count:,}" if isinstance(count, int) else NOT_RECORDED]
    if described.get("classes_with_any") is not None:
        found.append(f"for {described['classes_with_any']} classes")
    if file:
        found.append(f"from {Path(str(file)).name}")
    template = described.get("template")
    if template and template != "{}":
        found.append(f"as {template!r}")
    sha256 = described.get("sha256")
    return Cell(" ".join(found), str(sha256)[:SHORT] if sha256 else "")


def is_zero_shot(result: Result) -> bool:
    """Whether a record is an accuracy of zero-shot classification that a table here has."""
    return result.method not in STARTS and result.metric in ACCURACIES


def set_columns(evaluations: Sequence[Evaluation]) -> dict[str, list[tuple[str, Evaluation]]]:
    """Title -> the data sets of zero-shot results, and whose they are.

    Sets of one name with other images or classes have a title each.
    """
    found: dict[str, dict[tuple, list[Evaluation]]] = {}
    for one in evaluations:
        for name in dict.fromkeys(r.dataset for r in one.results if is_zero_shot(r)):
            found.setdefault(name, {}).setdefault(_identity(one, name), []).append(one)
    columns = {}
    for name, kinds in found.items():
        for having in kinds.values():
            letters = f" ({', '.join(one.letter for one in having)})" if len(kinds) > 1 else ""
            columns[f"{name}{letters}"] = [(name, one) for one in having]
    return columns


def _identity(one: Evaluation, name: str) -> tuple:
    """Of the images and classes, as far as the file says."""
    described = one.entries("zero_shot_sets").get(name)
    described = described if isinstance(described, Mapping) else {}
    images, classes = (
        part if isinstance(part, Mapping) else {}
        for part in (described.get("images"), described.get("classes"))
    )
    keys = (images.get("count"), images.get("sha256"), classes.get("sha256"))
    counts = (one.get(name, "dataset", metric) for metric in ("images", "classes"))
    values = (count and count.value for count in counts)
    return (*map(str, keys), *values)


def zero_shot_methods(evaluations: Sequence[Evaluation]) -> list[Method]:
    """In the order of the rows: known methods, others, and last a random choice."""
    found = dict.fromkeys(
        (r.method, r.alpha) for one in evaluations for r in one.results if is_zero_shot(r)
    )
    known = [*METHODS]

    def place(method: Method) -> tuple:
        name, alpha = method
        rank = known.index(name) if name in known else len(known)
        return name == "random", rank, name if rank == len(known) else "", -(alpha or 0.0)

    return sorted(found, key=place)


def zero_shot_grids(evaluations: Sequence[Evaluation]) -> list[Grid]:
    """A table of methods by sets for each kind of accuracy; folded but for the first."""
    grids: list[Grid] = []
    for metric, title in ACCURACIES.items():
        grid = _methods_by_sets(evaluations, metric, title)
        if grid is not None:
            grids.append(replace(grid, folded=bool(grids)))
    return grids


def _methods_by_sets(evaluations: Sequence[Evaluation], metric: str, title: str) -> Grid | None:
    columns = {
        column: [
            (name, one) for name, one in of if any(_is_of(r, name, metric) for r in one.results)
        ]
        for column, of in set_columns(evaluations).items()
    }
    columns = {column: of for column, of in columns.items() if of}
    several = len(evaluations) > 1
    flat = [each for of in columns.values() for each in of]
    known_costs = [
        what
        for what in COSTS
        if metric == "top1"
        and any(one.cost(r.dataset, r.method, what) for one in evaluations for r in one.results)
    ]
    rows, example = [], ""
    for method, alpha in zero_shot_methods(evaluations):
        cells = []
        for name, one in flat:
            mark = fallback(one, name, method)
            example = example or mark
            result = one.get(name, method, metric, alpha)
            mark = "" if result is None else mark
            spread = spread_of_draws(one.get, result)
            cells.append(accuracy_cell(result, mark=mark, spread=spread))
        if any(cell.text != "-" for cell in cells):
            costs = [_cost_range(flat, method, what) for what in known_costs]
            rows.append((Cell(method_title(method, alpha)), *texts(*costs), *cells))
    if not rows:
        return None
    known = any(cell.interval for row in rows for cell in row)
    wilson = WILSON.format(OF_CLASSES if metric == "per_class" else "images")
    meaning = f"{wilson if known else ''}{BY_NAME.format(example) if example else ''}"
    if metric == "top1":
        meaning += draws_sentence((one.get, one.results) for one in evaluations)
    meaning += OF_COSTS if known_costs else ""
    titles = [one.letter if several else column for column, of in columns.items() for _, one in of]
    return Grid(
        title,
        ("method", *known_costs, *titles),
        tuple(rows),
        meaning.strip(),
        groups=tuple((column, len(of)) for column, of in columns.items()) if several else (),
    )


def _cost_range(sets: Sequence[tuple[str, Evaluation]], method: str, what: str) -> str:
    """ "80", or "80-1,200" where sets differ; "-" where no result file says it."""
    every = (one.cost(name, method, what) for name, one in sets)
    found = {cost for cost in every if cost is not None}
    return "-".join(f"{value:,}" for value in sorted({min(found), max(found)})) if found else "-"


def _is_of(result: Result, name: str, metric: str) -> bool:
    return is_zero_shot(result) and result.dataset == name and result.metric == metric


def fallback(one: Evaluation, name: str, method: str) -> str:
    """ "12 of 100 by name" where a method that needs descriptions lacks those of some classes."""
    if method in ("name", "random"):
        return ""
    if method in METHODS and not METHODS[method].texts & OF_DESCRIPTIONS:
        return ""
    without, classes = (
        one.get(name, "dataset", metric) for metric in ("undescribed_classes", "classes")
    )
    if without is None or classes is None or not without.value:
        return ""
    return f"{without.value:g} of {classes.value:g} by name"


def grounding_grid(evaluations: Sequence[Evaluation]) -> Grid | None:
    """Predictors by the metrics of boxes and phrases."""
    rows, used = [], [metric for metric in GROUNDING if _measured(evaluations, metric)]
    for name in dict.fromkeys(r.dataset for one in evaluations for r in one.results):
        for one in evaluations:
            for method, title in PREDICTORS.items():
                found = {metric: one.get(name, method, metric) for metric in used}
                if not any(found.values()):
                    continue
                if method == "model":
                    measure = Measure("grounding", name, "phrase")
                    found["phrase_accuracy"] = _with_interval(
                        found.get("phrase_accuracy"), one, measure
                    )
                counts = (found.get(metric) for metric in ("box_iou", "phrase_accuracy"))
                numbers = [_count(result) for result in counts]
                cells = [accuracy_cell(found[metric]) for metric in used]
                rows.append((*texts(name, title, one.letter), *cells, *texts(*numbers)))
    if not rows:
        return None
    return Grid(
        "Grounding, %",
        ("split", "predictor", "of", *(GROUNDING[metric] for metric in used), "boxes", "phrases"),
        tuple(rows),
        "True boxes are matched one-to-one with predicted ones. Acc@0.5: the query most similar to "
        "a phrase has a box that overlaps one of the phrase's with IoU of at least 0.5. Constant "
        f"boxes see no image.{BOOTSTRAP}",
        num_texts=3,
    )


def _measured(evaluations: Sequence[Evaluation], metric: str) -> bool:
    return any(
        r.metric == metric and r.method in PREDICTORS for one in evaluations for r in one.results
    )


def _count(result: Result | None) -> str:
    return "-" if result is None or result.n is None else f"{result.n:,}"


def _with_interval(result: Result | None, one: Evaluation, measure: Measure) -> Result | None:
    """With the bootstrap's interval, where a file of an older version has none and the answers
    are there and are those of the record.
    """
    answers = one.answers.get(measure)
    if result is None or answers is None or result.low is not None:
        return result
    correct = np.array(answers.correct)
    if not abs(correct.mean() - result.value) <= 1e-4:
        return result
    interval = mean_interval(correct, image_numbers(answers.questions))
    return result if interval is None else replace(result, low=interval[0], high=interval[1])


def retrieval_grid(evaluations: Sequence[Evaluation]) -> Grid | None:
    """Recall both ways."""
    every = [r for one in evaluations for r in one.results if r.method in DIRECTIONS]
    recalls = sorted(
        {r.metric for r in every if r.metric.startswith("R@") and r.metric[2:].isdigit()},
        key=lambda metric: int(metric[2:]),
    )
    rows = []
    for name in dict.fromkeys(r.dataset for r in every):
        for method, title in DIRECTIONS.items():
            for one in evaluations:
                found = [one.get(name, method, metric) for metric in recalls]
                if not any(found):
                    continue
                measure = Measure("retrieval", name, method)
                found = [
                    _with_interval(result, one, measure) if metric == "R@1" else result
                    for metric, result in zip(recalls, found, strict=True)
                ]
                random = one.get(name, method, "random_R@1")
                queries = next((_count(result) for result in found if result), "-")
                cells = [accuracy_cell(result) for result in (*found, random)]
                rows.append((*texts(name, title, one.letter), *cells, Cell(queries)))
    if not rows:
        return None
    return Grid(
        "Retrieval: recall, %",
        ("split", "direction", "of", *recalls, "random R@1", "queries"),
        tuple(rows),
        "An image has found its text when any of its captions is among the k best; a text its "
        f"image, when an image that carries it is.{BOOTSTRAP}",
        num_texts=3,
    )


def other_grid(
    evaluations: Sequence[Evaluation], *, elsewhere: Callable[[Evaluation, Result], bool]
) -> Grid | None:
    """Records that no table here and none `elsewhere` has, as they are."""
    rows = [
        (
            *texts(result.dataset, method_title(result.method, result.alpha), result.metric),
            Cell(one.letter),
            Cell(f"{result.value:.6g}", _plain_interval(result)),
            Cell(_count(result)),
        )
        for one in evaluations
        for result in one.results
        if not (_in_another_table(one, result) or elsewhere(one, result))
    ]
    if not rows:
        return None
    return Grid(
        "Other results",
        ("set", "method", "metric", "of", "value", "n"),
        tuple(rows),
        "Values as the result files have them: not in percent.",
        num_texts=4,
    )


def _in_another_table(one: Evaluation, result: Result) -> bool:
    if result.metric == "passes" and one.cost(result.dataset, result.method, "passes"):
        return True
    if is_zero_shot(result) or (result.method not in STARTS and is_of_draws(result.metric)):
        return True
    if result.method == "dataset" and result.metric in OF_DATASET:
        return True
    if result.dataset == HEADLINE:
        return False
    if result.method in PREDICTORS and result.metric in OF_BOXES:
        return True
    if result.method == "retrieval" and result.metric in ("images", "texts"):
        return True
    return result.method in DIRECTIONS and (
        result.metric == "random_R@1"
        or (result.metric.startswith("R@") and result.metric[2:].isdigit())
    )


def _plain_interval(result: Result) -> str:
    """ "-1e-05 to 0.25": a hyphen would run into signs and exponents."""
    if not interval_text(result.low, result.high):
        return ""
    return f"{result.low:.6g} to {result.high:.6g}"
