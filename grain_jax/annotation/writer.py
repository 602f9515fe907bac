"""Write the rows of a stage, so that none that was made is lost and none is half written.

A row is appended to a journal and with the operating system before `append` returns: killing the
process loses nothing, and a power failure the last second. A full journal becomes a Parquet part:
written beside its place, synced, renamed, listed in the manifest, and only then is the journal
removed. After an interruption anywhere in between, the next writer finishes that.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grain_jax.annotation.shards import WHOLE, Shard
from grain_jax.data.annotation_layout import (
    FORMAT,
    MARKER,
    VERSION,
    check_marker,
    journal_name,
    numbered,
    part_name,
    read_journal,
    read_manifest,
)
from grain_jax.data.annotation_rows import (
    Row,
    columns,
    import_pyarrow,
    journal_line,
    row_values,
    schema,
    values_of_line,
)
from grain_jax.disk import disk_trouble, is_partial, whole_file

ROWS_PER_PART = 2048
SYNC_SECONDS = 1.0  # between two syncs of the journal
_LOCK = ".lock-"


class AnnotationWriter:
    """Appends rows of one stage to a folder of annotations; a context manager.

    Args:
        folder: made where it does not exist. Another folder than one of annotations is refused.
        stage: key of `STAGES`.
        shard: the part of the images that this process annotates. Writers of other parts of the
            same division may write at the same time; every other writer is refused.
        note: called with a text where nothing stops another process.

    Entering it raises ValueError where another process writes, or for a folder that is not one of
    annotations; a disk that refuses to be written to raises OSError, after which the writer is
    closed, and all rows that `append` returned for are kept.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        *,
        shard: Shard = WHOLE,
        note: Callable[[str], None] = lambda text: None,
        rows_per_part: int = ROWS_PER_PART,
    ) -> None:
        self._root, self._folder, self._stage = folder, folder / stage, stage
        self._shard, self._note, self._rows_per_part = shard, note, rows_per_part
        self._schema = schema(stage)
        self._columns = set(columns(stage))
        self._rows = 0  # in the journal
        self._journal = -1
        self._synced = 0.0
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "AnnotationWriter":
        _make_folder(self._root)
        self._folder.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            locks = stack.enter_context(_locked(self._folder, self._shard, self._note))
            for shard in locks:
                _finish_journals(self._folder, shard, self._schema)
            self._start_journal()
            self._held = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._held:
            try:
                if self._journal >= 0 and (error is None or disk_trouble(error) is None):
                    self._commit()
            finally:
                self._close_journal()

    def append(self, row: Row) -> None:
        """Keeps a row for good. Raises ValueError for outputs that the stage does not have."""
        values = row_values(row)
        if unknown := set(values) - self._columns:
            raise ValueError(
                f"The stage {self._stage!r} has no column {sorted(unknown)[0]!r}; add it to STAGES."
            )
        line = journal_line(values)
        whole = values_of_line(line)
        assert whole is not None
        # A value of the wrong type is found here, and not when the journal becomes a part.
        import_pyarrow().RecordBatch.from_pylist([whole], schema=self._schema)
        self._write(line)
        self._rows += 1
        if self._rows >= self._rows_per_part:
            self._commit()
            self._start_journal()

    def _commit(self) -> None:
        """Makes a part of the rows in the journal, if there are any."""
        self._close_journal()
        _finish_journals(self._folder, self._shard.name, self._schema)

    def _write(self, line: bytes) -> None:
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._journal, left) :]
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fsync(self._journal)
                self._synced = time.monotonic()
        except OSError:
            self._close_journal()  # nothing may follow a line that is not whole
            raise

    def _start_journal(self) -> None:
        numbers = [found[0] for name in os.listdir(self._folder) if (found := numbered(name))]
        path = self._folder / journal_name(max(numbers, default=0) + 1, self._shard.name)
        self._journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
        self._rows, self._synced = 0, time.monotonic()

    def _close_journal(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1


def _make_folder(folder: Path) -> None:
    """Marks a new or empty folder. Raises ValueError for one with something else in it."""
    marker = folder / MARKER
    if not marker.exists():
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give a new one for the annotations.")
        # A killed process may have left a file that is not whole.
        if folder.is_dir() and any(not name.startswith(".") for name in os.listdir(folder)):
            raise ValueError(
                f"{folder} has files and no {MARKER}, so it does not hold annotations; give a new "
                "folder, or one of earlier annotations."
            )
        folder.mkdir(parents=True, exist_ok=True)
        _write_synced(marker, json.dumps({"format": FORMAT, "version": VERSION}) + "\n")
    check_marker(folder)


@contextlib.contextmanager
def _locked(folder: Path, shard: Shard, note: Callable[[str], None]) -> Iterator[list[str]]:
    """Holds the lock of a shard; the shards whose interrupted journals may be finished.

    The kernel releases locks when the process ends, however it does. Raises ValueError where a
    process writes the same shard, or one of another division of the images.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_lock(folder, shard.name, keep=True))
            free = [shard.name]
            for name in sorted(os.listdir(folder)):
                other = name.removeprefix(_LOCK)
                if name.startswith(_LOCK) and not other.endswith(f"-of-{shard.count}"):
                    stack.enter_context(_lock(folder, other, keep=False))
                    free.append(other)
            yield free
        except _NoLocks as error:
            note(
                f"{folder} is on a file system without locks ({error}): nothing will stop another "
                "process there, which would annotate the same images"
            )
            yield [shard.name]


class _NoLocks(Exception):
    """The file system has no locks."""


@contextlib.contextmanager
def _lock(folder: Path, shard: str, *, keep: bool) -> Iterator[None]:
    with (folder / f"{_LOCK}{shard}").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "which has not said who it is"
            raise ValueError(
                f"Another process ({holder}) writes to {folder}, shard {shard}. Let it finish or "
                "stop it; to share the images among processes, give each of them --shard=i/n with "
                "the same n."
            ) from None
        except OSError as error:
            raise _NoLocks(error.strerror) from None
        if keep:
            with contextlib.suppress(OSError):  # a full disk: the lock holds without the name
                file.truncate(0)
                file.write(f"{os.getpid()} on {socket.gethostname()}\n")
                file.flush()
        yield


def _finish_journals(folder: Path, shard: str, wanted: Any) -> None:
    """Makes parts of the journals of a shard, also where an earlier process was on the way."""
    manifest = folder / f"manifest-{shard}.json"
    parts = read_manifest(manifest) if manifest.exists() else {}
    for file in sorted(os.listdir(folder)):
        if is_partial(Path(file).with_suffix("")) and f"-{shard}." in file:
            (folder / file).unlink()  # a killed process left it
        found = numbered(file)
        if found is None or not found[2] or found[1] != shard:
            continue
        part = part_name(found[0], shard)
        if part not in parts:
            rows, _ = read_journal(folder / file)
            if rows:
                parts[part] = _write_part(folder / part, rows, wanted)
                _write_synced(manifest, json.dumps({"parts": parts}, indent=1) + "\n")
        (folder / file).unlink()


def _write_part(path: Path, rows: list[dict[str, Any]], wanted: Any) -> dict[str, int]:
    """What the manifest says of a part that is on the disk for good."""
    pa = import_pyarrow()
    import pyarrow.parquet

    with whole_file(path) as partial:
        table = pa.Table.from_pylist(rows, schema=wanted)
        sink = pa.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        partial.write_bytes(data)
        _sync(partial)
    _sync(path.parent)
    return {"rows": len(rows), "bytes": len(data), "crc32": zlib.crc32(data)}


def _write_synced(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
        _sync(partial)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
