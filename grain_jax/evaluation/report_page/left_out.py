"""Methods that were asked for and could not be measured, with what they need."""

from collections.abc import Mapping, Sequence

from grain_jax.evaluation.report_page.content import Grid, texts
from grain_jax.evaluation.report_page.evaluations import Evaluation
from grain_jax.evaluation.tables import method_title


def left_out_grid(evaluations: Sequence[Evaluation]) -> Grid | None:
    """A row for a method and what it lacks, with the sets; None where nothing was left out."""
    sets: dict[tuple[str, str, str], list[str]] = {}
    for one in evaluations:
        for name, found in one.entries("left_out").items():
            for method, needs in found.items() if isinstance(found, Mapping) else ():
                lacking = " and ".join(map(str, needs))
                sets.setdefault((method, one.letter, lacking), []).append(str(name))
    if not sets:
        return None
    return Grid(
        "Methods that were left out",
        ("method", "of", "needs", "sets"),
        tuple(
            texts(method_title(method), letter, lacking, ", ".join(names))
            for (method, letter, lacking), names in sets.items()
        ),
        "They were asked for, and the sets or the model lack what they need.",
        num_texts=4,
        folded=True,
    )
