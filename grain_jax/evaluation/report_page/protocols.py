"""Results of `evaluate grounding` and `evaluate compositional` as tables."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grain_jax.evaluation.compositional_suite import (
    ACCURACY,
    MAX_GROUPS_SHOWN,
    MEAN,
    PAIRING_RANDOM,
)
from grain_jax.evaluation.compositional_suite import MODEL as COMPOSITIONAL_MODEL
from grain_jax.evaluation.compositional_suite import TITLES as COMPOSITIONAL_TITLES
from grain_jax.evaluation.grounding_benchmark import MODEL as DECODER
from grain_jax.evaluation.grounding_protocol import Protocol
from grain_jax.evaluation.grounding_tables import TITLES as BOX_TITLES
from grain_jax.evaluation.report_page.content import Cell, Grid, accuracy_cell, texts
from grain_jax.evaluation.report_page.evaluations import Evaluation
from grain_jax.results import Result

POINTING, UPPER_BOUND = "pointing", "upper_bound"
OF_DECODER = {
    "box_iou": "mean IoU, %",
    "box_recall": "recall@0.5, %",
    "box_recall_upper_bound": "recall upper bound, %",
    "region_cosine": "cosine of regions",
    "box_overlap": "IoU of boxes",
}
FRACTIONS = ("box_iou", "box_recall", "box_recall_upper_bound")
OF_CAPTIONS = ("caption_top1", "caption_random_top1", "caption_rank")
OF_QUERIES = ("queries_used", "query_entropy")


def protocol_grids(evaluations: Sequence[Evaluation]) -> list[Grid]:
    """Queries of each set by what chose the box; captions of objects; what the decoder does."""
    found = [_queries(evaluations), _captions(evaluations), _decoder(evaluations)]
    return [grid for grid in found if grid is not None]


def compositional_grid(evaluations: Sequence[Evaluation]) -> Grid | None:
    """Tests of composition, a row a score."""
    rows = []
    for one in evaluations:
        own = [result for result in one.results if _is_compositional_row(one, result)]
        counts: dict[str, int] = {}
        for result in own:
            test, _, group = result.dataset.partition("/")
            counts[test] = counts.get(test, 0) + bool(group)
        for result in own:
            test, _, group = result.dataset.partition("/")
            if group and counts[test] > MAX_GROUPS_SHOWN:
                continue
            metric = ACCURACY if result.metric == MEAN else result.metric
            score = group or COMPOSITIONAL_TITLES.get(result.metric, result.metric)
            random = one.get(test, "random", metric)
            cells = accuracy_cell(result), accuracy_cell(random), Cell(_count(result))
            rows.append((*texts(test, score, one.letter), *cells))
    if not rows:
        return None
    return Grid(
        "Captions that differ in a word or its place, %",
        ("test", "score", "of", "accuracy", "random", "questions"),
        tuple(rows),
        "The true caption is more similar to the image than the other one; of pairs text, image "
        "and group score as Winoground's. With the 95 % interval: Wilson's, which counts images, "
        "of a mean over groups the bootstrap of images. Groups of a test with more than "
        f"{MAX_GROUPS_SHOWN} are in the result file only.",
        num_texts=3,
    )


def is_of_protocol(one: Evaluation, result: Result) -> bool:
    """Whether the tables here have a record, or the baseline of one."""
    if result.method in (*BOX_TITLES, DECODER) and _has_protocol(one, result.dataset):
        return True
    return _is_compositional(one) and result.method in (COMPOSITIONAL_MODEL, "random", "dataset")


def _is_compositional(one: Evaluation) -> bool:
    return any(
        result.method == COMPOSITIONAL_MODEL and result.metric in (ACCURACY, *PAIRING_RANDOM)
        for result in one.results
    )


def _is_compositional_row(one: Evaluation, result: Result) -> bool:
    shown = (ACCURACY, MEAN, *PAIRING_RANDOM)
    return (
        _is_compositional(one) and result.method == COMPOSITIONAL_MODEL and result.metric in shown
    )


def _sets(evaluations: Sequence[Evaluation]) -> Iterable[tuple[str, Evaluation]]:
    """Sets of queries, those of one name together."""
    for name in dict.fromkeys(result.dataset for one in evaluations for result in one.results):
        for one in evaluations:
            if _has_protocol(one, name) and any(r.dataset == name for r in one.results):
                yield name, one


def _queries(evaluations: Sequence[Evaluation]) -> Grid | None:
    every = list(_sets(evaluations))
    recalls = sorted(
        {
            result.metric
            for _, one in every
            for result in one.results
            if result.method in BOX_TITLES and re.fullmatch(r"R@\d+", result.metric)
        },
        key=lambda metric: int(metric[2:]),
    )
    metrics = (*recalls, POINTING)
    rows = []
    for name, one in every:
        for method, title in BOX_TITLES.items():
            found = [one.get(name, method, metric) for metric in metrics]
            if any(found):
                bound = one.get(name, DECODER, UPPER_BOUND)
                count = next((_count(result) for result in found if result), "-")
                cells = [accuracy_cell(result) for result in (*found, bound)]
                row = texts(name, one.letter, _protocol(one, name, method), title)
                rows.append((*row, *cells, Cell(count)))
    if not rows:
        return None
    sentences = _sentences(every)
    return Grid(
        "Grounding of queries by a protocol: Acc@0.5, %",
        ("set", "of", "protocol", "chosen by", *metrics, "upper bound", "queries"),
        tuple(rows),
        "R@1 is Acc@0.5. Pointing: the centre of the chosen box is in a true one. With the 95 % "
        "interval (bootstrap over images). The best constant box is fitted to the answers of the "
        "other half of the images. Upper bound: a right box is among those that may be chosen. "
        "Rows of unlike protocols do not compare. " + sentences,
        num_texts=4,
    )


def _captions(evaluations: Sequence[Evaluation]) -> Grid | None:
    rows = []
    for name, one in _sets(evaluations):
        for method, title in BOX_TITLES.items():
            top1, random, rank = (one.get(name, method, metric) for metric in OF_CAPTIONS)
            if top1 is not None:
                cells = accuracy_cell(top1), accuracy_cell(random), _plain(rank, "{:.2f}")
                rows.append((*texts(name, one.letter, title), *cells, Cell(_count(top1))))
    if not rows:
        return None
    return Grid(
        "True captions against nearly right ones, %",
        ("set", "of", "box by", "top-1", "random", "mean rank", "objects"),
        tuple(rows),
        "Top-1: the box of an object is more similar to its own caption than to all wrong ones.",
        num_texts=3,
    )


def _decoder(evaluations: Sequence[Evaluation]) -> Grid | None:
    rows = []
    for name, one in _sets(evaluations):
        found = {metric: one.get(name, DECODER, metric) for metric in OF_DECODER}
        if any(found.values()):
            cells = [
                accuracy_cell(result) if metric in FRACTIONS else _plain(result, "{:.3f}")
                for metric, result in found.items()
            ]
            used, entropy = (
                next((r for feature in BOX_TITLES if (r := one.get(name, feature, metric))), None)
                for metric in OF_QUERIES
            )
            queries = _plain(used, "{:g}"), _plain(entropy, "{:.3f}")
            rows.append((*texts(name, one.letter), *cells, *queries))
    if not rows:
        return None
    return Grid(
        "The decoder's queries",
        ("set", "of", *OF_DECODER.values(), "queries chosen", "entropy"),
        tuple(rows),
        "Annotated boxes are matched one-to-one with predicted ones. Cosine, IoU and entropy are "
        "in [0, 1]: of two regions and of two boxes of an image, and of the choices over its "
        "maximum. A collapsed decoder has a cosine and an IoU near 1, and few queries that "
        "are chosen. Intervals are of the bootstrap over images (95 %).",
        num_texts=2,
    )


def _has_protocol(one: Evaluation, name: str) -> bool:
    return "protocols" in _asked(one, name)


def _asked(one: Evaluation, name: str) -> Mapping[str, Any]:
    """What has the protocols of a set: its split of a suite, or the settings of
    `evaluate grounding`, which measures one set.
    """
    split = one.entries("splits").get(name)
    if isinstance(split, Mapping) and "protocols" in split:
        return split
    return one.entries("settings")


def _stored(one: Evaluation, name: str) -> Mapping[str, Mapping[str, Any]]:
    protocols = _asked(one, name).get("protocols")
    if not isinstance(protocols, Mapping):
        return {}
    return {method: found for method, found in protocols.items() if isinstance(found, Mapping)}


def _protocol(one: Evaluation, name: str, method: str) -> str:
    """ "boxes predicted, any"; of a baseline that of the first feature."""
    stored = _stored(one, name)
    found = stored.get(method) or next(iter(stored.values()), {})
    return f"boxes {found.get('boxes', '?')}, {found.get('truth', '?')}"


def _sentences(every: Iterable[tuple[str, Evaluation]]) -> str:
    """Each whole protocol, behind the sets that it is of."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, one in every:
        if sentence := _sentence(one, name):
            found.setdefault((one.letter, sentence), []).append(name)
    return " ".join(
        f"{letter}, {', '.join(names)}: {sentence}" for (letter, sentence), names in found.items()
    )


def _sentence(one: Evaluation, name: str) -> str:
    """The whole protocol of a set; "" where another version has other fields."""
    for stored in _stored(one, name).values():
        try:
            return Protocol(**stored).sentence
        except TypeError:
            return ""
    return ""


def _plain(result: Result | None, style: str) -> Cell:
    return Cell("-" if result is None else style.format(result.value))


def _count(result: Result) -> str:
    return "-" if result.n is None else f"{result.n:,}"
