"""Which checkpoints a run folder holds, without what it takes to read their arrays."""

import json
from typing import Any

from grain_jax.buckets import in_bucket
from grain_jax.paths import AnyPath, absolute

FOLDER = "checkpoints"
METADATA = "metadata"
STARTED = "_CHECKPOINT_METADATA"  # what Orbax writes first into the folder of a step
ENDED = "commit_success.txt"  # and last; on a disk the folder gets its name then


def is_run(path: AnyPath) -> bool:
    """Whether it is a run folder, or the folder of its checkpoints."""
    return (path / FOLDER).is_dir() or bool(complete_steps(path))


def checkpoints(run: AnyPath) -> AnyPath:
    """The whole path of the checkpoints of a run folder."""
    return absolute(run) / FOLDER


def read_metadata(folder: AnyPath, step: int) -> dict[str, Any]:
    """The metadata stored with a step of a `checkpoints/` folder.

    Raises ValueError where it is damaged.
    """
    path = folder / str(step) / METADATA / METADATA
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def complete_steps(folder: AnyPath) -> list[int]:
    """Steps whose checkpoint was written to the end, in order."""
    marks = (STARTED, ENDED) if in_bucket(folder) else (STARTED,)
    return [
        step
        for step in stored_steps(folder)
        if all((folder / str(step) / mark).exists() for mark in marks)
    ]


def stored_steps(folder: AnyPath) -> list[int]:
    """Steps that anything is stored of, in order."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(entry.name) for entry in entries if entry.name.isdigit())
