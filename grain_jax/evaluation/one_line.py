"""The metrics of a checkpoint that are looked at first, in one line."""

from collections.abc import Sequence

from grain_jax.evaluation.percentages import result_text
from grain_jax.results import HEADLINE, Result

FIRST = ("name", "description")  # of the methods of a set, where they were measured
MIXED = 0.5  # the alpha that is shown, where it was measured
OTHERS = {"mean_R@1": "mean R@1", "phrase_accuracy": "Acc@0.5"}
MAX_METHODS = 2  # of a set


def one_line(results: Sequence[Result]) -> str:
    """ "birds: name 74.9 (72.7-77.0), description at alpha 0.5 80.1 (...); dev: mean R@1 1.5".

    Of classification top-1 by `FIRST`, or by the first two methods that were measured; the same
    ones for every checkpoint, not the best of each.
    """
    sets: dict[str, list[str]] = {}
    for dataset in dict.fromkeys(result.dataset for result in results):
        own = [result for result in results if result.dataset == dataset != HEADLINE]
        accuracies = [one for one in own if one.metric == "top1" and one.method != "random"]
        methods = dict.fromkeys(one.method for one in accuracies)
        chosen = [name for name in FIRST if name in methods] or list(methods)[:MAX_METHODS]
        parts = [_shown(accuracies, method) for method in chosen]
        parts += [
            f"{title} {result_text(one)}"
            for one in own
            for metric, title in OTHERS.items()
            if one.metric == metric and one.method in ("model", "retrieval")
        ]
        if parts:
            sets[dataset] = parts
    return "; ".join(f"{dataset}: {', '.join(parts)}" for dataset, parts in sets.items())


def _shown(accuracies: Sequence[Result], method: str) -> str:
    own = [one for one in accuracies if one.method == method]
    one = next((one for one in own if one.alpha == MIXED), own[0])
    alpha = "" if one.alpha is None else f" at alpha {one.alpha:g}"
    return f"{method}{alpha} {result_text(one)}"
