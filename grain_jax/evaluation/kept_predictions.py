"""The single answers of an evaluation: in a file that was asked for, else beside its results."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from grain_jax.disk import sync, whole_file
from grain_jax.evaluation.predictions import SUFFIXES, PredictionsFile
from grain_jax.paths import no_file

NOT_KEPT = Path("none")  # what --predictions says for it
ENDING = ".predictions.jsonl.gz"
STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd", "/proc")  # and what is below


def beside(results: Path) -> Path:
    """Where the answers behind a file of results are: of "r.json", "r.predictions.jsonl.gz"."""
    return results.with_name(results.name.removesuffix(".json") + ENDING)


class Answers:
    """What `keeping_answers` gives: where one evaluation writes its answers.

    `named`: the file that was asked for. `failure`: why they could not be written, None if they
    could.
    """

    def __init__(self, named: Path | None, nameless: BinaryIO | None):
        self.named = named
        self.failure: OSError | None = None
        self._nameless = nameless

    @contextlib.contextmanager
    def lines(self) -> Iterator[PredictionsFile | None]:
        """The file to write to, None where no answers are kept."""
        target = self.named or self._nameless
        if target is None:
            yield None
            return
        with PredictionsFile(target) as file:
            yield file
        self.failure = file.failure
        if self.failure is not None and self._nameless is not None:
            with contextlib.suppress(OSError):  # what it held may be what the results need
                os.ftruncate(self._nameless.fileno(), 0)

    def keep(self, results: Path, *, replaced: bool) -> Path | None:
        """Gives answers without a name theirs, beside `results`; returns the file that has the
        answers. None, and a `failure`, where it could not be written.

        Answers that are there stay, as those of the same results, unless these were `replaced`.
        """
        path = beside(results)
        if replaced and path != self.named:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        if self.named is not None or self._nameless is None or self.failure is not None:
            return self.named if self.failure is None else None
        try:
            if not path.exists():
                with whole_file(path) as partial, partial.open("wb") as file:
                    self._nameless.seek(0)
                    shutil.copyfileobj(self._nameless, file)
                    sync(file)
        except OSError as failure:
            self.failure = failure
            return None
        return path


@contextlib.contextmanager
def keeping_answers(given: Path | None, results: Path) -> Iterator[Answers]:
    """Of one evaluation, whose `results` are a file or the folder that they go to.

    `given` is a file, `NOT_KEPT` or None. Without a file answers are in one without a name, on the
    disk of the results, which is gone at the end, also of a process that is killed. Nothing is kept
    beside results that go to a device or a pipe. Raises OSError.
    """
    if given is not None or _is_stream(results):
        yield Answers(None if given == NOT_KEPT else given, None)
        return
    there = next(one for one in (results, *results.absolute().parents) if one.is_dir())
    file = tempfile.TemporaryFile(dir=there)  # noqa: SIM115
    try:
        yield Answers(None, file)
    finally:
        with contextlib.suppress(OSError):  # which was said, of what is still in its buffer
            file.close()


def _is_stream(path: Path) -> bool:
    full = path.absolute()
    named = any(full == Path(name) or full.is_relative_to(name) for name in STREAMS)
    return named or (path.exists() and not path.is_file() and not path.is_dir())


def answers_of(path: Path) -> Path:
    """The file of answers that `path` names: itself, or of results those beside them.

    Raises ValueError where there is none.
    """
    if not path.is_file():
        raise ValueError(f"{no_file(path)}; give a file of results (.json) or of predictions.")
    if path.name.endswith(SUFFIXES):
        return path
    if not (found := beside(path)).is_file():
        raise ValueError(
            f"{str(path)!r} is no file of predictions ({', '.join(SUFFIXES)}), and there is none "
            f"beside it as of results, {found.name!r}. Evaluate again without --predictions=none, "
            "or give the file of predictions."
        )
    return found
