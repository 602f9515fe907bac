"""Which checkpoints a run folder holds, without what it takes to read their arrays."""

import json
from pathlib import Path
from typing import Any

FOLDER = "checkpoints"
METADATA = "metadata"


def is_run(path: Path) -> bool:
    """Whether it is a run folder, or the folder of its checkpoints."""
    return (path / FOLDER).is_dir() or bool(complete_steps(path))


def read_metadata(folder: Path, step: int) -> dict[str, Any]:
    """The metadata stored with a step of a `checkpoints/` folder.

    Raises ValueError where it is damaged.
    """
    path = folder / str(step) / METADATA / METADATA
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def complete_steps(folder: Path) -> list[int]:
    """Steps whose checkpoint was written to the end, in order."""
    return sorted(
        int(entry.name)
        for entry in folder.glob("*")
        if entry.name.isdigit() and (entry / "_CHECKPOINT_METADATA").exists()
    )
