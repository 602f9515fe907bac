"""The figures of a grounding benchmark as tables that say by which protocol they are."""

from collections.abc import Sequence

from grain_jax.evaluation.grounding_benchmark import CONSTANT, MODEL, RANDOM, WHOLE, Measured
from grain_jax.evaluation.grounding_ranking import KS
from grain_jax.evaluation.percentages import percent, result_text
from grain_jax.evaluation.tables import Table
from grain_jax.results import Result, keyed

TITLES = {
    key: keyed(key, title)
    for key, title in {
        "region": "region feature",
        "crop": "crop, encoded",
        CONSTANT: "best constant box",
        WHOLE: "whole image",
        RANDOM: "random box",
    }.items()
}


def grounding_tables(measured: Measured) -> list[Table]:
    """Accuracies with intervals, what the decoder does, and captions where there are wrong ones."""
    results = {(one.method, one.metric): one for one in measured.results}
    protocol = next(iter(measured.protocols.values()))
    dataset = measured.results[0].dataset
    count = results[MODEL, "upper_bound"].n
    found = [
        Table(
            f"Phrase grounding on {dataset}: Acc@0.5, % of {count:,} queries",
            ("chosen by", *(f"R@{k}" for k in KS), "pointing"),
            tuple(
                _accuracy_row(results, method, title)
                for method, title in TITLES.items()
                if (method, "R@1") in results
            ),
            f"With these boxes at most {percent(results[MODEL, 'upper_bound'].value)} % (a right "
            "one is among them). R@1 is Acc@0.5. Pointing: the centre of the chosen box is in a "
            "true one. In brackets the 95 % interval (bootstrap over images). The best "
            "constant box is fitted to the answers of the other half of the images. "
            + protocol.sentence,
            num_texts=1,
        ),
        _captions(results, dataset),
        _decoder(results, measured, dataset),
    ]
    return [table for table in found if table.rows]


def _accuracy_row(
    results: dict[tuple[str, str], Result], method: str, title: str
) -> tuple[str, ...]:
    metrics = (*(f"R@{k}" for k in KS), "pointing")
    return (title, *(result_text(results.get((method, metric))) for metric in metrics))


def _captions(results: dict[tuple[str, str], Result], dataset: str) -> Table:
    rows = []
    for method, title in TITLES.items():
        if (one := results.get((method, "caption_top1"))) is not None:
            rank = f"{results[method, 'caption_rank'].value:.2f}"
            random = percent(results[method, "caption_random_top1"].value)
            rows.append((title, f"{one.n:,}", result_text(one), rank, random))
    return Table(
        f"True captions against nearly right ones on {dataset}, %",
        ("box by", "objects", "top-1", "mean rank", "random"),
        tuple(rows),
        "Top-1: the box of an object is more similar to its own caption than to all wrong ones. An "
        "object that no box is on has the last rank.",
        num_texts=1,
    )


def _decoder(results: dict[tuple[str, str], Result], measured: Measured, dataset: str) -> Table:
    rows: list[tuple[str, str]] = []

    def add(title: str, metric: str, *, fraction: bool = True) -> None:
        if (one := results.get((MODEL, metric))) is not None:
            rows.append((title, f"{result_text(one)} %" if fraction else f"{one.value:.3f}"))

    add("mean IoU of annotated boxes, matched one-to-one", "box_iou")
    add("box recall at IoU 0.5", "box_recall")
    add("recall upper bound, with so many queries", "box_recall_upper_bound")
    add("cosine of two regions of an image", "region_cosine", fraction=False)
    add("IoU of two predicted boxes of an image", "box_overlap", fraction=False)
    for feature, usage in measured.usage.items():
        title = TITLES[feature]
        rows.append(
            (f"queries that are ever chosen, {title}", f"{usage.used} of {len(usage.counts)}")
        )
        rows.append((f"entropy of the choices over its maximum, {title}", f"{usage.entropy:.3f}"))
    return Table(
        f"The decoder's queries on {dataset}",
        ("figure", "value"),
        tuple(rows),
        "Percentages, in brackets the 95 % interval (bootstrap over images), and cosines, IoU and "
        "entropy in [0, 1]. A collapsed decoder has a cosine and "
        "an IoU near 1, and few queries that are chosen.",
    )


def left_out_notes(left_out: dict[str, int]) -> Sequence[str]:
    """A sentence on texts of the files that are no query; none where there is none."""
    if not left_out:
        return ()
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    return (f"texts that are no query: {reasons}.",)
