"""What `python -m grain_jax.evaluate` measures on prepared records."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from grain_jax.config import TrainConfig
from grain_jax.data.records import EvaluationSet
from grain_jax.data.source import open_source
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.suite import TASKS, TrainingBoxes, evaluate_set
from grain_jax.inference.encoder import Encoder
from grain_jax.results import Result


def chosen_tasks(given: str | None) -> tuple[str, ...]:
    """Those of `--tasks`, all without it. Raises ValueError for an unknown one."""
    tasks = tuple(given.split(",")) if given else TASKS
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(
            f"Prepared records can be asked for {' and '.join(TASKS)}, not {unknown[0]!r}; "
            "zero-shot classification takes labelled images."
        )
    return tasks


def evaluate_records(
    encoder: Encoder,
    config: TrainConfig,
    folder: Path,
    split: str,
    *,
    tasks: Sequence[str],
    details: ResultDetails,
) -> list[Result]:
    """Retrieval and grounding on a split, with the baseline of constant boxes.

    Raises ValueError where the split or the model has nothing to compare.
    """
    data = dataclasses.replace(config.data, dataset="tfds", data_dir=str(folder))
    size = encoder.preprocessing.image_size
    held_out = EvaluationSet(split, f"Split {split!r}", open_source(data, split, image_size=size))
    try:
        training = open_source(data, data.train_split, image_size=size)
        boxes = TrainingBoxes(lambda: training, encoder)
    except ValueError:  # a folder of test data only: no boxes to fit the baseline to
        boxes = None
    results = evaluate_set(
        encoder, held_out, config, final=True, tasks=tasks, training=boxes, details=details
    )
    if not results:
        raise ValueError(
            f"Split {split!r} of {str(folder)!r} and this model have nothing to compare for "
            f"{' and '.join(tasks)}: retrieval needs captions, grounding boxes and a GRAIN model "
            "whose boxes were trained."
        )
    return results
