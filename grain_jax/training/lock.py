"""One training at a time in a run folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

FILE = ".lock"  # in the run folder; it stays there, and only holding it means anything


@contextlib.contextmanager
def locked(workdir: Path, *, note: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a run folder, which is made where it does not exist.

    The kernel releases it when the process ends, however it does. Raises ValueError where another
    process holds it. On a file system without locks `note` is called, and nothing is held.
    """
    new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / FILE
    with path.open("a+", encoding="utf-8") as file:  # not "w": another's name is in it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
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
                raise ValueError(f"Another process has just left {workdir}; try again.")
            _write_holder(file)
        try:
            yield
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
