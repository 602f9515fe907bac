"""One training at a time in a run folder of a bucket, which knows no locks: a lease.

The holder creates an object that must not exist yet, and rewrites it every few seconds. Who finds
one waits for it to change: if it does, somebody trains there; if it does not for `LEASE_SECONDS`,
its holder is gone, and the object is taken over. Each write names the generation that it replaces,
so that of two processes one wins. No clock of another machine is read.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grain_jax import buckets
from grain_jax.parallel.processes import HeldByAnother
from grain_jax.paths import AnyPath

FILE = ".lock"
RENEW_SECONDS = 10.0
LEASE_SECONDS = 35.0  # of silence, after which a holder counts as gone: three renewals and more
FRESH_SECONDS = 25.0  # after a renewal, in which nobody else can have taken over: less than those


class LockLost(OSError):
    """Another process has taken the run folder over; nothing may be written to it any more."""


class Lease:
    """The lock of a run folder in a bucket, renewed by a thread until `release`."""

    def __init__(self, workdir: AnyPath, generation: int, *, written: float):
        """`generation` of the lock, which this process began to write at `written` of `clock`."""
        self._workdir, self._generation, self._renewed = workdir, generation, written
        self._blob = buckets.blob(workdir / FILE)
        self._lost = ""
        self._renewing = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(
            target=self._keep_renewing, name="run folder lock", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raises `LockLost` where another process is known to have the run folder now."""
        if self._lost:
            raise LockLost(
                f"another process{self._lost} has taken {self._workdir} over: this one could not "
                f"write there for more than {LEASE_SECONDS:.0f} s, or its lock was removed. It "
                "begins no other write"
            )

    def confirm(self) -> None:
        """As `check`, and asks the bucket where the last renewal is `FRESH_SECONDS` ago or more.

        So it is after a suspension or a loss of the network: another process may have taken over,
        and this one have heard nothing of it. Raises OSError where the bucket cannot be reached.
        """
        if not self._lost and clock() - self._renewed >= FRESH_SECONDS:
            with buckets.explained(self._workdir):
                self._renew(buckets.RETRY_SECONDS)
        self.check()

    def release(self) -> None:
        """Removes the lock, if it is still this process's."""
        self._end.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(Exception):  # the next start waits for the lease instead
                self._blob.delete(if_generation_match=self._generation, timeout=10)

    def _keep_renewing(self) -> None:
        while not self._lost and not self._end.wait(RENEW_SECONDS):
            # The network: tried again, until somebody else has taken over.
            with contextlib.suppress(Exception):
                self._renew(RENEW_SECONDS)

    def _renew(self, seconds: float) -> None:
        """Renews the lease or finds it lost; raises what Google's client does after `seconds`."""
        import google.api_core.exceptions

        with self._renewing:
            while not self._lost:
                begun = clock()
                try:
                    self._generation = _write(self._blob, self._generation, seconds=seconds)
                except google.api_core.exceptions.PreconditionFailed:
                    holder = _read(self._blob, seconds=seconds)
                    if holder is None or holder[1] != _identity():
                        self._lost = _named(holder) or " or person"
                    else:  # a request that came through, some time ago, and whose answer did not
                        self._generation = holder[0]
                else:
                    self._renewed = begun
                    return


@contextlib.contextmanager
def leased(workdir: AnyPath, *, note: Callable[[str], None]) -> Iterator[Lease]:
    """Holds the lock of a run folder in a bucket.

    Raises `HeldByAnother` where another process trains there, ValueError where the bucket does not
    exist or may not be written to; OSError where it cannot be reached.
    """
    with buckets.explained(workdir):
        generation, written = _acquire(workdir, note)
        lease = Lease(workdir, generation, written=written)
    try:
        yield lease
    finally:
        lease.release()


def clock() -> float:
    """Seconds, also those in which the machine was suspended, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _acquire(workdir: AnyPath, note: Callable[[str], None]) -> tuple[int, float]:
    """The generation of the lock object that this process has written, and when it began to."""
    import google.api_core.exceptions

    blob = buckets.blob(workdir / FILE)
    holder = _read(blob, seconds=buckets.FIRST_SECONDS)
    if holder is not None and not _is_dead(holder[1]):
        note(
            f"{workdir} has the lock of another process{_named(holder)}; waiting up to "
            f"{LEASE_SECONDS:.0f} s to see whether it is alive"
        )
        holder = _watched(blob, holder, workdir)
    begun = clock()
    try:
        generation = _write(blob, 0 if holder is None else holder[0], seconds=buckets.FIRST_SECONDS)
        return generation, begun
    except google.api_core.exceptions.PreconditionFailed:
        holder = _read(blob)
        if holder is not None and holder[1] == _identity():  # the answer to a first try was lost
            return holder[0], begun
        raise HeldByAnother(_refusal(workdir, holder)) from None


def _watched(blob: Any, holder: tuple[int, Any], workdir: AnyPath) -> tuple[int, Any] | None:
    """The holder that was silent for the lease; None where the lock has gone.

    Raises `HeldByAnother` for one that is alive.
    """
    end = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, RENEW_SECONDS / 4))
        now = _read(blob)
        if now is None:
            return None
        if now[0] != holder[0]:
            raise HeldByAnother(_refusal(workdir, now))
    return holder


def _refusal(workdir: AnyPath, holder: tuple[int, Any] | None) -> str:
    return (
        f"Another process{_named(holder)} trains in {workdir}. Let it finish or stop it, or give "
        "another --workdir."
    )


def _read(blob: Any, *, seconds: float = RENEW_SECONDS) -> tuple[int, Any] | None:
    """Generation and holder of the lock; None without one."""
    import google.api_core.exceptions

    try:
        data = blob.download_as_bytes(timeout=10, retry=buckets.retry(seconds))
    except google.api_core.exceptions.NotFound as error:
        if "bucket does not exist" in str(error):
            raise
        return None
    try:
        return int(blob.generation), json.loads(data)
    except ValueError:
        return int(blob.generation), None


def _write(blob: Any, generation: int, *, seconds: float = RENEW_SECONDS) -> int:
    """Replaces the lock of `generation` (0: there is none) by this process's."""
    blob.upload_from_string(
        json.dumps(_identity()),
        content_type="application/json",
        if_generation_match=generation,
        timeout=10,
        retry=buckets.retry(seconds),
    )
    return int(blob.generation)


def _named(holder: tuple[int, Any] | None) -> str:
    """ " (4711 on node3)"; "" where it cannot be read."""
    if holder is None or not isinstance(holder[1], dict):
        return ""
    return f" ({holder[1].get('pid')} on {holder[1].get('host')})"


def _identity() -> dict[str, Any]:
    """Of this process, so that another one on the same machine can tell that it has ended."""
    return {"pid": os.getpid(), "host": socket.gethostname()} | _machine(os.getpid())


def _machine(pid: int) -> dict[str, Any]:
    """Boot and namespace that a process number belongs to, and when it began; {} outside Linux."""
    try:
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
            "namespace": os.readlink("/proc/self/ns/pid"),
            "started": _started(pid),
        }
    except (OSError, ValueError, IndexError):
        return {}


def _started(pid: int) -> int:
    """In clock ticks since the boot: a number is given again, but not with the same start."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[19])


def _is_dead(holder: Any) -> bool:
    """Whether the holder was a process of this machine and has ended; False where unknown."""
    here = _machine(os.getpid())
    if not here or not isinstance(holder, dict):
        return False
    if any(holder.get(name) != here[name] for name in ("boot", "namespace")):
        return False
    try:
        return _started(int(holder["pid"])) != holder["started"]
    except FileNotFoundError:
        return True
    except (OSError, KeyError, TypeError, ValueError, IndexError):
        return False
