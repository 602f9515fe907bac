"""The small files of a run: logs, settings, report, figures, event files, traces.

On a disk they are written where they belong. A bucket appends to no object, so a run that lives in
one writes them to a folder of this machine, and each that has changed is written whole to the
bucket: in the background while the run trains, and before each checkpoint, so that a log line is in
the bucket before the checkpoint that makes it final.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from grain_jax import buckets
from grain_jax.paths import AnyPath
from grain_jax.training.bucket_lock import FILE as LOCK

INTERVAL_SECONDS = 30.0  # from one writing in the background to the next
NOT_PUBLISHED = ("wandb",)  # it has a service of its own


def nobody_else() -> None:
    """Of a folder that no other process can take over."""


class RunFiles:
    """The folder that a run writes its small files to, and their way into its bucket.

    Each process has one, and writes what it has. `fetch` brings the files of an earlier start.
    Raises OSError or ValueError where the bucket cannot be read.

    Args:
        run: the run folder.
        check: raises OSError where nothing may be written any more, as far as is known.
        confirm: likewise, and finds out; called before each write, in the thread that writes.
        fetch: this process continues the files of an earlier start.
    """

    def __init__(
        self,
        run: AnyPath,
        *,
        check: Callable[[], None] = nobody_else,
        confirm: Callable[[], None] = nobody_else,
        fetch: bool = True,
    ) -> None:
        self.folder, self._run, self._check, self._confirm = run, run, check, confirm
        self._local: tempfile.TemporaryDirectory[str] | None = None
        if not buckets.in_bucket(run):
            return
        self._local = tempfile.TemporaryDirectory(prefix="grain_jax_run_")
        self.folder = Path(self._local.name)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="run files")
        self._running: Future[None] | None = None
        self._next = time.monotonic() + INTERVAL_SECONDS
        if fetch:
            for name in buckets.files(run):
                if name != LOCK:
                    (self.folder / name).write_bytes(buckets.read(run / name))
        self._written = self._marks()

    def publish(self, *, wait: bool = False) -> None:
        """Writes what has changed to the bucket, where `INTERVAL_SECONDS` have passed, or now.

        `wait`: returns when it is there, and raises OSError or ValueError where it cannot be
        written; else that is tried again later. Always raises OSError where nothing may be written.
        """
        self._check()
        if self._local is None:
            return
        if wait:
            if self._running is not None:
                with contextlib.suppress(OSError, ValueError):  # everything is tried again
                    self._running.result()
            self._write(*self._changes())
            self._running = None
        elif time.monotonic() >= self._next and (self._running is None or self._running.done()):
            self._running = self._thread.submit(self._write, *self._changes())
        else:
            return
        self._next = time.monotonic() + INTERVAL_SECONDS

    def address(self, path: Path) -> AnyPath:
        """Where a file of `folder` is to be found by others."""
        return self._run / path.relative_to(self.folder).as_posix()

    def close(self) -> None:
        """Writes what is left, if it may and can be, and removes the folder of this machine."""
        if self._local is None:
            return
        with contextlib.suppress(OSError, ValueError):  # it was said before
            self.publish(wait=True)
        self._thread.shutdown()
        self._local.cleanup()
        self._local = None

    def _marks(self) -> dict[str, tuple[int, int]]:
        """Each file with what changes when it is written to."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if name.parts[0] not in NOT_PUBLISHED and path.is_file():
                stat = path.stat()
                found[name.as_posix()] = (stat.st_mtime_ns, stat.st_size)
        return found

    def _changes(self) -> tuple[dict[str, bytes], list[str], dict[str, tuple[int, int]]]:
        """Bytes of the files that have changed, names of those that have gone, and all marks.

        Read here, between the lines of the training loop: no line is cut.
        """
        marks = self._marks()
        changed = {
            name: (self.folder / name).read_bytes()
            for name, mark in marks.items()
            if self._written.get(name) != mark
        }
        return changed, sorted(self._written.keys() - marks.keys()), marks

    def _write(
        self, changed: dict[str, bytes], gone: list[str], marks: dict[str, tuple[int, int]]
    ) -> None:
        self._confirm()  # a checkpoint may follow, also where no file has changed
        for name, data in changed.items():
            self._confirm()
            buckets.write(self._run / name, data)
            self._written[name] = marks[name]
        for name in gone:
            self._confirm()
            buckets.remove(self._run / name)
            del self._written[name]
