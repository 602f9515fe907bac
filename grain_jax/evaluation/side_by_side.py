"""Several models on the same sets as one table: a row a set and method, a column a model."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from grain_jax.evaluation.grounding_tables import TITLES as BOXES_BY
from grain_jax.evaluation.suite_results import AVERAGE, EXPECTED
from grain_jax.evaluation.tables import (
    PREDICTORS,
    RETRIEVED,
    UNDESCRIBED,
    ResultIndex,
    Table,
    described,
    draws_sentence,
    method_title,
    with_draws,
)
from grain_jax.results import Result

SHOWN = ("top1", "mean_R@1", "phrase_accuracy")  # of sets that no suite says a metric of
TITLES = {
    "top1": "top-1",
    "per_class": "mean per class",
    "mean_R@1": "mean R@1",
    "phrase_accuracy": "Acc@0.5",
    "box_recall": "recall@0.5",
    "R@1": "R@1 (Acc@0.5)",
    "caption_top1": "caption top-1",
    "mean_over_groups": "mean over groups",
}
OTHER_METHODS = {"retrieval": "retrieval: both ways", **PREDICTORS, **BOXES_BY, "random": "random"}
RANDOM_METRICS = (
    "top1",
    "accuracy",
)  # what the random baseline has of other metrics of the same answers


def column_titles(models: Sequence[Path]) -> list[str]:
    """The last part of each path; the whole of those that share it."""
    names = Counter(model.name for model in models)
    return [model.name if names[model.name] == 1 else str(model) for model in models]


def side_by_side(
    models: Mapping[str, Sequence[Result]],
    *,
    metrics: Mapping[str, str] | None = None,
    note: str = "",
) -> Table:
    """The table of the models' results, in percent.

    `metrics`: set -> the metric that is shown of it (default: `SHOWN`); `note` ends what the table
    says of itself.
    """
    rows: dict[tuple[str, str, float | None, str], dict[str, Result]] = {}
    expected: dict[tuple[str, str, float | None], int] = {}
    for title, results in models.items():
        for result in results:
            if result.metric == EXPECTED:
                expected[result.dataset, result.method, result.alpha] = int(result.value)
            elif _is_shown(result, metrics):
                rows.setdefault(result.identity, {})[title] = result
    indices = {title: ResultIndex(results) for title, results in models.items()}
    ordered = [key for key in rows if key[3] != AVERAGE] + [k for k in rows if k[3] == AVERAGE]
    lines = []
    for key in ordered:
        dataset, method, alpha, metric = key
        found = rows[key]
        what = TITLES.get(metric, metric)
        if metric == AVERAGE:
            counted = {result.n for result in found.values()}
            sets = "/".join(str(count) for count in sorted(counted, key=lambda count: count or 0))
            what = f"average over {sets} of {expected[key[:3]]} sets"
        lines.append(
            (
                dataset,
                _method(method, alpha) + _described(indices.values(), dataset, method),
                what,
                *(with_draws(index.get, found.get(title)) for title, index in indices.items()),
            )
        )
    meaning = (
        "In percent; in brackets the 95 % interval over images. -: the model or the set lacks "
        "what the method needs."
        + (UNDESCRIBED if any("described)" in line[1] for line in lines) else "")
        + draws_sentence((indices[title].get, results) for title, results in models.items())
        + (f" {note}" if note else "")
    )
    columns = ("set", "method", "metric", *models)
    return Table("Models side by side", columns, tuple(lines), meaning)


def _described(indices: Iterable[ResultIndex], dataset: str, method: str) -> str:
    """Of all models alike, as they have the same texts, or of those that say it."""
    found = {described(index.get, dataset, method) for index in indices} - {""}
    return " or".join(sorted(found))


def _is_shown(result: Result, metrics: Mapping[str, str] | None) -> bool:
    if result.method in RETRIEVED:  # the mean of both is shown
        return False
    if result.metric == AVERAGE:
        return True
    if metrics is None:
        return result.metric in SHOWN
    if result.method == "random" and result.metric in RANDOM_METRICS:
        return result.dataset in metrics
    return metrics.get(result.dataset) == result.metric


def _method(method: str, alpha: float | None) -> str:
    title = OTHER_METHODS.get(method) or method_title(method)
    return title if alpha is None else f"{title}, alpha {alpha:g}"
