"""`grain_jax.load`: a model from wherever it is, ready for images and texts."""

import warnings
from collections.abc import Callable
from pathlib import Path

from grain_jax.inference.predictor import BATCH_SIZE, Model
from grain_jax.loading.load import read_model


def load(
    path: str | Path,
    *,
    step: int | None = None,
    best: bool = False,
    batch_size: int = BATCH_SIZE,
    note: Callable[[str], None] = warnings.warn,
) -> Model:
    """The model of a run folder, ready for images and texts, on the first device.

    `path` may also be an export, an official .pth, or a CLIP or SigLIP of Hugging Face or
    open_clip: a folder, or a name on the Hugging Face hub. Of a run's checkpoints the newest is
    taken, that of `step`, or the `best` that keep_best kept. `note` is told what does not stop a
    call but may spoil its answer, such as texts that were cut. Raises ValueError where there is no
    such model.
    """
    return Model(read_model(path, step=step, best=best), batch_size=batch_size, note=note)
