"""The single answers that every evaluation keeps beside its results, without being asked."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from grain_jax.disk import sync, whole_file
from grain_jax.paths import no_file

NOT_KEPT = Path("none")  # what --predictions says for it
ENDING = ".predictions.jsonl.gz"


def beside(results: Path) -> Path:
    """Where the answers behind a file of results are: of "r.json", "r.predictions.jsonl.gz"."""
    return results.with_name(results.stem + ENDING)


@contextlib.contextmanager
def nameless_file(folder: Path) -> Iterator[BinaryIO]:
    """A file of the disk of `folder` that is gone at the end, also of a process that is killed."""
    with tempfile.TemporaryFile(dir=folder) as file:
        yield file


def keep(predictions: BinaryIO, results: Path, *, replace: bool) -> Path:
    """Gives what `PredictionsFile` wrote its name beside `results`; returns it. Raises OSError.

    Answers that are there stay, as those of the same results, unless these `replace` them.
    """
    path = beside(results)
    if replace or not path.exists():
        with whole_file(path) as partial, partial.open("wb") as file:
            predictions.seek(0)
            shutil.copyfileobj(predictions, file)
            sync(file)
    return path


def answers_of(path: Path) -> Path:
    """The file of answers that `path` names: itself, or of results (.json) those beside them.

    Raises ValueError where there is none.
    """
    if path.suffix != ".json":
        if path.is_file():
            return path
        raise ValueError(f"{no_file(path)}; give what evaluate --predictions=FILE wrote.")
    if not path.is_file():
        raise ValueError(f"{no_file(path)}; give a file of results (.json) or of predictions.")
    if not (found := beside(path)).is_file():
        raise ValueError(
            f"{str(path)!r} has results, and the answers behind them are not beside it as "
            f"{found.name!r}. Evaluate again without --predictions=none, or give the file of "
            "predictions."
        )
    return found
