"""What the commands of `python -m grain_jax.evaluate` say in the same words."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from grain_jax.command_line import ExitStatus, status_of
from grain_jax.config import TrainConfig
from grain_jax.evaluation.grounding_protocol import Protocol
from grain_jax.evaluation.side_by_side import column_titles, side_by_side
from grain_jax.evaluation.suite import best_metric_name
from grain_jax.evaluation.suite_sets import OpenedSuite
from grain_jax.evaluation.tables import print_table
from grain_jax.paths import absolute, user_path
from grain_jax.results import Result


def same_place(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file or folder."""
    return first.resolve() == second.resolve()


def named(path: Path) -> str:
    """In full, so that it can be found from elsewhere; a name on the hub as it is."""
    return str(absolute(path)) if path.exists() else str(path)


def note_choice(
    config: TrainConfig,
    *,
    data: Path | None,
    split: str | None,
    labelled: Mapping[str, str],
    note: Callable[[str], None],
) -> None:
    """Says so where the figures are of the very data that the best checkpoint was chosen on."""
    metric = best_metric_name(config)
    chosen_on = next(
        (name for name in labelled if metric.startswith(f"{name}/")), metric.partition("/")[0]
    )
    same = data is None
    if data is None:
        pass
    elif chosen_on in labelled:
        same = same_place(data, user_path(labelled[chosen_on]))
    elif split is not None and config.data.dataset == "tfds":
        folder = user_path(config.data.data_dir).resolve()
        same = data.resolve() == folder and split.partition("[")[0] == chosen_on.partition("[")[0]
    if metric and same:
        note(
            f"--best is the checkpoint with the highest {metric}, so figures of {chosen_on!r} "
            "flatter it; compare models on data that chose none of them."
        )


def say_note(messages: Console, text: str) -> None:
    """A sentence that a reader of the metrics should know."""
    print_line(messages, f"Note: {text}")


def say_error(messages: Console, text: str) -> None:
    """What ends the command, or what it could not write."""
    messages.print(f"Error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)


def say_end(error: ValueError | OSError | KeyboardInterrupt, messages: Console) -> int:
    """Says what ended a command that writes at its end; returns the exit status."""
    if isinstance(error, KeyboardInterrupt):
        messages.print("Stopped; nothing was written.")
        return ExitStatus.INTERRUPTED
    say_error(messages, str(error))
    return status_of(error)


def print_line(output: Console, text: str) -> None:
    """As it is, never broken."""
    output.print(text, markup=False, highlight=False, soft_wrap=True)


def print_side_by_side(
    models: Sequence[Path],
    results: Sequence[Sequence[Result]],
    suite: OpenedSuite | None,
    output: Console,
) -> None:
    """One table of several models, or of a suite."""
    titles = column_titles(models)
    metrics, note = (None, "") if suite is None else (suite.metrics, suite.note)
    by_model = dict(zip(titles, results, strict=True))
    print_table(side_by_side(by_model, metrics=metrics, note=note), output)


def print_protocols(splits: Sequence[Mapping[str, Any]], output: Console) -> None:
    """By which protocol each grounding test was measured; a line for those of one protocol.

    `splits`: of each model, what `ResultDetails` has of its splits.
    """
    sets: dict[str, dict[str, None]] = {}
    for of_model in splits:
        for name, split in of_model.items():
            for protocol in split.get("protocols", {}).values():
                sets.setdefault(Protocol(**protocol).sentence, {})[name] = None
    for sentence, names in sets.items():
        print_line(output, f"{', '.join(names)}: {sentence}")
