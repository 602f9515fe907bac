"""Files that are written whole or not at all, and full disks reported as such.

A full disk, a quota, a limit on the size of files, a read-only file system and missing rights are
`OSError` in Python alone: array_record and torch raise RuntimeError, safetensors an error of its
own, TensorStore ValueError.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

WRITING = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no space: of the disk, the user, one file
    errno.EROFS,
)
TROUBLES = (*WRITING, errno.EACCES, errno.EPERM, errno.EIO)


def disk_trouble(error: BaseException) -> str | None:
    """What the disk refused, where that is why `error` was raised, by any library; else None."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in TROUBLES:
            return str(cause)
    for cause in causes:
        if any(os.strerror(code) in str(cause) for code in TROUBLES):
            return str(cause)
    return None


def cannot_write(error: BaseException, folder: Path) -> bool:
    """Whether `error` says that the disk refused to write to `folder`, rather than to read."""
    if (trouble := disk_trouble(error)) is None:
        return False
    where = folder.absolute()
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in WRITING:
            return True
        if isinstance(cause, OSError) and isinstance(cause.filename, str | bytes):
            path = Path(os.fsdecode(cause.filename)).absolute()
            return path.is_relative_to(where) or where.is_relative_to(
                path
            )  # the latter: to make it
    return str(folder) in str(error) or any(os.strerror(code) in trouble for code in WRITING)


def _causes(error: BaseException) -> list[BaseException]:
    """The exception itself, and those that it was raised from or after."""
    causes: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in causes:
        causes.append(one)
        one = one.__cause__ or one.__context__
    return causes


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `out` at the end; after an exception, nothing is
    left of it. `out` must not be there yet, or be empty. Raises OSError.
    """
    place = out if out.exists() else out.parent  # inside: `out` may be a mount point
    place.mkdir(parents=True, exist_ok=True)
    partial = place / f".{out.name}.{os.getpid()}.partial"
    partial.mkdir()
    try:
        yield partial
        if place == out:
            for entry in sorted(partial.iterdir()):
                entry.rename(out / entry.name)
            partial.rmdir()
        else:
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def is_partial(path: Path) -> bool:
    """Whether `path` is what a killed process has left of a `whole_folder`."""
    return path.name.startswith(".") and path.suffix == ".partial"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write to, of the same suffix, which replaces `path` at the end;
    after an exception `path` is as it was. Devices and pipes are written to directly.
    """
    if path.exists() and not path.is_file():  # /dev/stdout
        yield path
        return
    path = path.resolve() if path.is_symlink() else path
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        if partial.exists():  # nothing may have been worth writing
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync(file: IO[Any]) -> None:
    """Returns when what was written to an open file is on the disk, where losing power leaves it.

    A renamed file could otherwise be empty then. Devices and pipes have no disk.
    """
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise


def write_whole(path: Path, text: str, *, errors: str = "strict") -> None:
    """Writes UTF-8, line ends as given, as `whole_file` does. `errors`: as of `open`.

    Raises OSError.
    """
    with (
        whole_file(path) as partial,
        partial.open("w", encoding="utf-8", errors=errors, newline="") as file,
    ):
        file.write(text)
        sync(file)
