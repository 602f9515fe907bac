"""One training at a time in a run folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TextIO

from grain_jax.buckets import in_bucket
from grain_jax.parallel.processes import HeldByAnother
from grain_jax.paths import AnyPath
from grain_jax.training.bucket_lock import leased

FILE = ".lock"  # in the run folder; it stays there, and only holding it means anything


class Held(Protocol):
    """The lock of a run folder, while it is held."""

    def check(self) -> None:
        """Raises OSError where another process is known to have it now."""

    def confirm(self) -> None:
        """As `check`; where that is not certain, it is found out, or OSError raised."""


class Kept:
    """A lock that nobody can take away, or none."""

    def check(self) -> None:
        """Returns."""

    def confirm(self) -> None:
        """Returns."""


def locked(
    workdir: AnyPath, *, note: Callable[[str], None]
) -> contextlib.AbstractContextManager[Held]:
    """Holds the lock of a run folder, which is made where it does not exist.

    Raises `HeldByAnother` where another process holds it. On a disk the kernel releases it when the
    process ends, however it does, and on a file system without locks `note` is called, and nothing
    is held. In a bucket it is a lease (`bucket_lock`), which can be lost.
    """
    return leased(workdir, note=note) if in_bucket(workdir) else _flocked(workdir, note=note)


@contextlib.contextmanager
def _flocked(workdir: Path, *, note: Callable[[str], None]) -> Iterator[Held]:
    new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / FILE
    with path.open("a+", encoding="utf-8") as file:  # not "w": another's name is in it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldByAnother(
                f"Another process{_holder(file)} trains in {workdir}. Let it finish or stop it, or "
                "give another --workdir."
            ) from None
        except OSError as error:
            note(
                f"{workdir} is on a file system without locks ({error.strerror}): nothing will "
                "stop a second training there, which would damage both"
            )
        else:
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # just been removed
                raise HeldByAnother(f"Another process has just left {workdir}; try again.")
            _write_holder(file)
        try:
            yield Kept()
        finally:
            if new and os.listdir(workdir) == [FILE]:  # a start that was refused leaves nothing
                path.unlink()
                with contextlib.suppress(OSError):
                    workdir.rmdir()


def _holder(file: TextIO) -> str:
    """ " (4711 on node3)", of the one who holds the lock; "" where it has not said so."""
    with contextlib.suppress(OSError, ValueError):
        file.seek(0)
        if name := file.read(200).strip():
            return f" ({name})"
    return ""


def _write_holder(file: TextIO) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock holds without the name
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
