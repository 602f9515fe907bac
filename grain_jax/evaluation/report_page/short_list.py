"""The methods of which a report shows plots and tables of classes, where there are many."""

import math
from collections.abc import Collection, Sequence

from grain_jax.evaluation.comparison import Measure
from grain_jax.evaluation.report_page.evaluations import Evaluation
from grain_jax.evaluation.report_page.tables import Method, is_zero_shot

BEST = 3  # methods with the highest accuracy on a set
ALWAYS = ("name", "description", "name_and_regions")  # CLIP's, and GRAIN's own


class ShortList:
    """Of each set: by name, GRAIN's own, and the `BEST` by top-1 of any evaluation; or all."""

    def __init__(self, evaluations: Sequence[Evaluation], *, every: bool = False):
        self._every = every
        values: dict[str, dict[Method, float]] = {}
        for one in evaluations:
            for r in one.results:
                if is_zero_shot(r) and r.metric == "top1" and r.method != "random":
                    own, key = values.setdefault(r.dataset, {}), (r.method, r.alpha)
                    own[key] = max(own.get(key, -math.inf), r.value)
        self._chosen = {name: _chosen(own) for name, own in values.items()}
        self._measured = {name: len(own) for name, own in values.items()}

    def has(self, dataset: str, method: Method) -> bool:
        """Whether a method is shown of a set; of one without accuracies all are."""
        return self._every or method in self._chosen.get(dataset, {method})

    def has_measure(self, measure: Measure) -> bool:
        """`has` of a measure of predictions."""
        method, _, alpha = measure.method.partition("/alpha")
        return self.has(measure.dataset, (method, float(alpha) if alpha else None))

    @property
    def notes(self) -> list[str]:
        """A sentence for the sets of which some methods are not shown, as many of each."""
        if self._every:
            return []
        sets: dict[tuple[int, int], list[str]] = {}
        for name, chosen in self._chosen.items():
            if len(chosen) < self._measured[name]:
                sets.setdefault((len(chosen), self._measured[name]), []).append(name)
        return [
            f"Of {', '.join(names)} plots and tables of classes are of {shown} of {measured} "
            f"methods: by name, GRAIN's own, and the {BEST} with the highest accuracy, which were "
            "chosen on these images. --all_methods shows all."
            for (shown, measured), names in sets.items()
        ]


def _chosen(values: dict[Method, float]) -> Collection[Method]:
    finite = [method for method, value in values.items() if math.isfinite(value)]
    best = sorted(finite, key=lambda method: -values[method])[:BEST]
    return {method for method in values if method[0] in ALWAYS or method in best}
