"""The results of `python -m grain_jax.evaluate`, for tests that compare values by their keys."""

import json
from pathlib import Path

from grain_jax.results import from_json, logged


def stored_results(path: Path) -> dict[str, float]:
    """Key -> value of a file of results."""
    return logged(from_json(json.loads(path.read_text(encoding="utf-8"))["results"]))
