"""`grain_jax.load`: load a model for inference."""

from collections.abc import Callable
from pathlib import Path

from grain_jax.inference.notes import warn_caller
from grain_jax.inference.predictor import BATCH_SIZE, Model
from grain_jax.loading.calibration import AUTO, find_calibration
from grain_jax.loading.load import read_model


def load(
    path: str | Path,
    *,
    step: int | None = None,
    best: bool = False,
    batch_size: int = BATCH_SIZE,
    note: Callable[[str], None] = warn_caller,
    calibration: str | Path = AUTO,
) -> Model:
    """Loads a model for inference on the first device.

    Args:
        path: a run folder (of a bucket too: "gs://bucket/run"), an export, an official .pth, or a
            CLIP or SigLIP of Hugging Face or open_clip: a folder, or a name on the Hugging Face
            hub.
        step: of a run, the step of the checkpoint (default: the newest).
        best: of a run, load the checkpoint with the best metric.
        batch_size: of images and of texts.
        note: called with notes on inputs that may affect results, such as truncated texts.
        calibration: file of `python -m grain_jax.calibrate`, "none", or "auto": the one beside the
            model, if it is there and was fitted to these weights.

    Raises ValueError where there is no such model, or the calibration given is missing, damaged or
    of other weights, and OSError where a bucket cannot be reached.
    """
    loaded = read_model(path, step=step, best=best)
    fitted = find_calibration(path, loaded, calibration, note=note)
    return Model(loaded, batch_size=batch_size, note=note, calibration=fitted)
