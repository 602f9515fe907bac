"""The calibration beside a model: `calibration.json` in a run folder or an export, or beside a
file of weights.
"""

import json
from collections.abc import Callable
from pathlib import Path

from grain_jax.inference.calibrated import check_weights
from grain_jax.inference.fingerprints import params_sha256
from grain_jax.models.bundle import ModelBundle
from grain_jax.paths import AnyPath, run_path, user_path
from grain_jax.training import run_folder
from grain_jax.training.run_folder import is_run
from grain_jax.zero_shot.calibration import FILE, MAX_BYTES, Calibration, read_calibration

AUTO, NONE = "auto", "none"  # the file beside the model, if there is one; no file at all


def calibration_place(model: str | AnyPath) -> AnyPath | None:
    """Where the calibration of a model is looked for; None for a name on the hub."""
    path = run_path(model)
    if is_run(path):
        in_checkpoints = path.name == run_folder.FOLDER and not (path / run_folder.FOLDER).is_dir()
        return (path.parent if in_checkpoints else path) / FILE
    if path.is_dir():
        return path / FILE
    return path.with_name(FILE) if path.is_file() else None


def find_calibration(
    model: str | AnyPath,
    loaded: ModelBundle,
    given: str | Path = AUTO,
    *,
    note: Callable[[str], None],
) -> Calibration | None:
    """The calibration of a model, if it has one.

    Args:
        model: what `loaded` was read from.
        given: "auto" for the file beside the model, "none", or a file.
        note: called where the file beside the model is of other weights, and so is not used.

    Raises ValueError where the `given` file is not there or of other weights, and for any that is
    damaged.
    """
    if given == NONE:
        return None
    place: AnyPath | None
    if given == AUTO:
        place = calibration_place(model)
        if place is None or not place.is_file():
            return None
    elif not (place := user_path(given)).is_file():
        raise ValueError(
            f"There is no calibration {str(place)!r}; write one with python -m "
            "grain_jax.calibrate, or leave it out."
        )
    with place.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{place} is not a calibration: it is larger than {MAX_BYTES} bytes.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not a calibration: not UTF-8 ({error}).") from error
    calibration = read_calibration(text, str(place))
    try:
        check_weights(calibration, loaded)
    except ValueError as error:
        if given != AUTO:
            raise ValueError(f"{place}: {error}.") from error
        note(f"{place} is not used: {error}.")
        return None
    return calibration


def calibration_of_copy(
    model: str | AnyPath, loaded: ModelBundle, copy: ModelBundle, note: Callable[[str], None]
) -> str | None:
    """The file beside `model` for a copy of it in another format; None where there is none.

    A copy may name its parameters otherwise and round them, so the file names its weights.
    """
    if find_calibration(model, loaded, note=note) is None:
        return None
    place = calibration_place(model)
    assert place is not None
    content = json.loads(place.read_text(encoding="utf-8"))
    content["fitted_for"]["weights_sha256"] = params_sha256(copy.params)
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
