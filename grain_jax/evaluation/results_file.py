"""Where the results of `python -m grain_jax.evaluate` go, and how none of them is lost."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grain_jax.buckets import in_bucket
from grain_jax.data.classification.set_names import folder_name
from grain_jax.disk import write_whole
from grain_jax.evaluation.content_digests import without_places
from grain_jax.evaluation.digests import sha256_of
from grain_jax.evaluation.kept_predictions import beside
from grain_jax.results import from_json, logged
from grain_jax.training import run_folder
from grain_jax.training.run_folder import is_run

GIVEN = ("split", "settings", "support", "bank")  # where they were given
SETS = ("zero_shot_sets", "splits")
SHORT = 8  # digits of a SHA-256 in a file's name


def check_place(option: str, path: Path, *, overwrite: bool, made: Path | None = None) -> None:
    """Raises ValueError where a file that the user names cannot be written, or is there already.

    `made`: a folder that is made for it, by `make_folder`, where it is not there.
    """
    if made is not None and path.parent == made and not made.exists():
        above = next(folder for folder in made.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise ValueError(
                f"--{option}={made} cannot be made in {str(above)!r}; give another folder."
            )
        return
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {str(path.parent)!r} for --{option}; make it first.")
    if path.is_dir():
        raise ValueError(f"--{option}={path} is a folder; expected a file.")
    if path.exists() and not overwrite:
        raise ValueError(
            f"--{option}={path} exists; give another file, or --overwrite to replace it."
        )
    special = path.exists() and not path.is_file()  # a device or pipe, written to directly
    if not os.access(path if special else path.resolve().parent, os.W_OK):
        raise ValueError(f"--{option}={path} cannot be written to; give a file in another folder.")


def make_folder(folder: Path) -> None:
    """Makes it and those above it where they are not there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)


def default_folder(model: Path) -> Path:
    """The folder of a run, which gets the results on it; for any other model, and for a run in a
    bucket, the current one.

    Raises ValueError where the current folder is that of the model, or cannot be written to.
    """
    folder = Path()
    if in_bucket(model):
        pass
    elif is_run(model):
        folder = model.parent if model.resolve().name == run_folder.FOLDER else model
    elif model.is_dir() and model.resolve() == folder.resolve():
        raise ValueError(
            f"The current folder is that of the model {str(model)!r}, into which no result is "
            "written; give --output, or run the command in another folder."
        )
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{str(folder.absolute())!r} cannot be written to; give --output.")
    return folder


def default_name(model: Path, report: Mapping[str, Any], *, data: Path | None, tasks: str) -> str:
    """A name that says what was measured; other texts, images or settings have another one."""
    is_named = in_bucket(model) or not is_run(model)  # else by the folder that it is written to
    name = "" if not is_named else model.name if model.is_dir() else model.stem
    if not model.exists():
        name = model.name  # of the hub's, dots and all
    parts = [
        "evaluation",
        name or (model.resolve().name if is_named else ""),
        "" if data is None else folder_name(data),
        report["split"] or "",
        tasks,
        f"step{report['step']}",
        report["inputs_sha256"][:SHORT],
    ]
    return "_".join(re.sub(r"[^\w.+-]+", "-", part).strip("-") for part in parts if part) + ".json"


def inputs_sha256(report: Mapping[str, Any]) -> str:
    """Of everything that was given, in content: two results that differ in it answer other
    questions. Paths, the names of suites and sets, and the order of images do not count. Where
    "model_sha256" is missing, the model goes by its path and step.
    """
    model = ("model_sha256",) if "model_sha256" in report else ("checkpoint", "step")
    sets = {name: sorted(map(sha256_of, without_places(report[name]).values())) for name in SETS}
    given = {name: without_places(report[name]) for name in GIVEN if name in report}
    if suite := (given.get("settings") or {}).get("suite"):
        given["settings"] = given["settings"] | {"suite": {"missing": suite["missing"]}}
    return sha256_of(sets | given | {name: report[name] for name in model})


def write_results(
    report: Mapping[str, Any], path: Path, *, overwrite: bool, answers: Path | None = None
) -> tuple[Path, bool]:
    """Writes the report as JSON, whole or not at all; returns the file, and whether it was written.

    The report's "results" are `Result`s.

    Where `path` has the same inputs and results already, it is left as it is. Where it has others,
    or answers of others are kept beside it, the report goes to "NAME-2.json", unless `overwrite`.
    `answers` is the file of its own, if it has a name already. Raises OSError.
    """

    def is_taken(free: Path) -> bool:
        return free.exists() or (beside(free) != answers and beside(free).exists())

    number, free = 1, path
    while not overwrite and is_taken(free):
        if _same(free, report):
            return free, False
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    text = json.dumps(report, indent=2, ensure_ascii=False, default=asdict) + "\n"
    write_whole(free, text, errors="backslashreplace")
    return free, True


def _same(path: Path, report: Mapping[str, Any]) -> bool:
    """Whether the file holds this report, written earlier; other versions may have made it."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(earlier, dict) or earlier.get("inputs_sha256") != report["inputs_sha256"]:
        return False
    try:
        before, now = logged(from_json(earlier.get("results"))), logged(report["results"])
    except ValueError:
        return False
    return before.keys() == now.keys() and all(
        math.isclose(before[name], value, rel_tol=1e-6) for name, value in now.items()
    )
