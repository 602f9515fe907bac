"""What `python -m grain_jax.evaluate` says about the places that it was given."""

from collections.abc import Callable, Mapping
from pathlib import Path

from grain_jax.config import TrainConfig
from grain_jax.evaluation.suite import best_metric_name
from grain_jax.paths import absolute, user_path


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
