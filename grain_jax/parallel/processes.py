"""Several processes: when this one is one of them, how they agree, and how they stop together.

`jax.distributed.initialize` raises on a single machine, so it is called only on request or when
the environment says that this process is one of several.

What decides whether something collective runs (a save, an evaluation, a restore) must be the same
in every process, and files, clocks and the last bit of a float are not. Such a decision is that of
process 0 (`from_first`); an error that one process alone may meet is raised in all
(`errors_in_all`). Where neither holds, the process that fails leaves at once (`leave`), which ends
the others too: waiting for them would be waiting for ever.
"""

import dataclasses
import json
import os
import re
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, TypeVar

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils

from grain_jax.buckets import Unreachable

AGAIN = 75  # exit status of a process that no mistake has ended: the same command resumes
# Silence of a process after which JAX ends the others: a machine that died or stands still closes
# no connection. Not JAX's 100, so that all have ended within a minute; not much less, as a machine
# may be suspended or without a network for a while.
HEARTBEAT_TIMEOUT_SECONDS = 45
_MESSAGE_BYTES = 4096  # of what one process tells all; one size, so that one program is compiled
_OF_OTHERS = re.compile(
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b|(?i:\bgloo\b|\bnccl)"
)
# What JAX raises of a collective of Gloo or NCCL where it is not a JaxRuntimeError: with 0.10,
# reading a result that has failed is a ValueError.
_COLLECTIVE_FAILED = re.compile(r"[A-Z_]+: (?i:gloo|nccl) ")
_in_agreement = False  # within `errors_in_all`, whose outermost block alone talks to the others

Value = TypeVar("Value")


def is_one_of_many(environment: Mapping[str, str]) -> bool:
    """True inside a Slurm or Open MPI step of several tasks, or on a TPU slice of several hosts."""
    tasks = (
        environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    multi_slice = bool(environment.get("MEGASCALE_COORDINATOR_ADDRESS"))
    return any(int(count) > 1 for count in tasks) or len(hosts) > 1 or multi_slice


_Number = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """How a command joins other processes; Slurm steps and TPU pods on GKE join without any."""

    distributed: bool = False  # join the processes that JAX detects
    # of process 0; with num_processes and process_id
    coordinator: Annotated[str, tyro.conf.arg(metavar="HOST:PORT")] = ""
    num_processes: _Number = None  # how many processes there are; with coordinator
    process_id: _Number = None  # of this one, from 0; with coordinator


def join_processes(options: ProcessOptions) -> None:
    """Joins the other processes, if there are any. Must run before anything uses a device.

    Raises ValueError for an incomplete set of `--coordinator`, `--num_processes`, `--process_id`.
    """
    coordinator, num_processes = options.coordinator, options.num_processes
    process_id, distributed = options.process_id, options.distributed
    explicit = {
        "--coordinator": coordinator or None,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    given = [name for name, value in explicit.items() if value is not None]
    if given and len(given) < len(explicit):
        missing = ", ".join(name for name in explicit if name not in given)
        raise ValueError(f"{', '.join(given)} given without {missing}; give all three or none.")
    if not given and not distributed and not is_one_of_many(os.environ):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if given:
            jax.distributed.initialize(
                coordinator_address=coordinator,
                num_processes=num_processes,
                process_id=process_id,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
            )
        else:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS)
    except (RuntimeError, ValueError) as error:
        how = "" if given else " Outside of Slurm, Open MPI and TPU, give --coordinator, "
        raise ValueError(
            f"This process could not join the others ({error})."
            + (how and f"{how}--num_processes and --process_id.")
        ) from error


def are_many() -> bool:
    """Whether there are other processes. Touches no device where this one has joined none."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def from_first(value: Value) -> Value:
    """What process 0 was given: a number, text, list or None, as JSON; every process calls it."""
    if not are_many():
        return value
    text = json.dumps(value).encode()
    if len(text) > _MESSAGE_BYTES:
        raise AssertionError(f"{len(text)} bytes to tell all, more than {_MESSAGE_BYTES}")
    received = multihost_utils.broadcast_one_to_all(_padded(text))
    return json.loads(bytes(received).rstrip(b"\0"))


def same_in_all(value: str) -> bool:
    """Whether every process was given the same text; every process calls it."""
    if not are_many():
        return True
    received = multihost_utils.process_allgather(_padded(value.encode()))
    return bool((received == received[:1]).all())


class FailedInAll(ValueError):
    """An error that one process met and every process raises.

    Args:
        message: what is wrong.
        elsewhere: another process than this met it.
        passes: the same command may do without it later (`may_pass`).
    """

    def __init__(self, message: str, *, elsewhere: bool, passes: bool = False) -> None:
        super().__init__(message)
        self.elsewhere, self.passes = elsewhere, passes


class HeldByAnother(ValueError):
    """Another process has what this one needs: by a mistake, or it is a former start's."""


def is_unattended(environment: Mapping[str, str]) -> bool:
    """True in a job of Slurm or an indexed job of Kubernetes, which start a command again."""
    return any(name in environment for name in ("SLURM_JOB_ID", "JOB_COMPLETION_INDEX"))


def may_pass(error: BaseException) -> bool:
    """Whether the same command may succeed later, so that launchers repeat it.

    So it is where storage cannot be reached. What another process holds is a mistake where a person
    starts one process, and else most likely held by a former start.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Unreachable) or (isinstance(cause, FailedInAll) and cause.passes):
            return True
        if isinstance(cause, HeldByAnother) and (are_many() or is_unattended(os.environ)):
            return True
        cause = cause.__cause__
    return False


@contextmanager
def errors_in_all() -> Iterator[None]:
    """Raises in every process the ValueError or OSError that one of them meets within.

    Every process enters it, and nothing collective may run within, as a process that fails stops
    taking part. It may be nested; the outermost counts. With other processes it raises
    `FailedInAll`, alone the error itself. Also a decorator.
    """
    global _in_agreement
    if _in_agreement or not are_many():
        yield
        return
    _in_agreement = True
    failure: ValueError | OSError | None = None
    try:
        yield
    except (ValueError, OSError) as error:
        failure = error
    finally:
        _in_agreement = False
    raise_in_all(failure)


def raise_in_all(failure: ValueError | OSError | None) -> None:
    """Raises this process's failure, or that of another; every process calls it, most with None.

    With other processes it raises `FailedInAll`, alone the failure itself.
    """
    if not are_many():
        if failure is not None:
            raise failure
        return
    text, passes = b"", failure is not None and may_pass(failure)
    if failure is not None:  # the first letter says whether it may pass
        text = b"+" if passes else b"-"
        text += str(failure).encode() or type(failure).__name__.encode()
    received = multihost_utils.process_allgather(_padded(text))
    if failure is not None:
        raise FailedInAll(str(failure), elsewhere=False, passes=passes) from failure
    for number, row in enumerate(received):
        if message := bytes(row).rstrip(b"\0").decode(errors="replace"):
            said = f"process {number}: {message[1:]}"
            raise FailedInAll(said, elsewhere=True, passes=message.startswith("+"))


def number() -> int:
    """Of this process, from 0."""
    return jax.process_index() if are_many() else 0


def speaks() -> bool:
    """Whether this process prints and writes: the first of all."""
    return not are_many() or jax.process_index() == 0


def refused(error: Exception, *, status: int = 2, say: Callable[[str], None] | None = None) -> int:
    """Says what the user must change, by `say` or to stderr; returns the exit status.

    That is `AGAIN` where the error may pass, else `status`. Of an error that is raised in all, the
    process that met it and the first one speak. One that the others do not know of ends this
    process at once; where it says that they have left, as `leave_over` does.
    """
    if is_of_others(error):
        leave_over(error)
    status = AGAIN if may_pass(error) else status
    in_all = isinstance(error, FailedInAll)
    if not (isinstance(error, FailedInAll) and error.elsewhere) or speaks():
        if say is None:
            print(f"Error: {error}", file=sys.stderr)
        else:
            say(str(error))
    if jax.distributed.is_initialized() and not in_all:
        leave(status)
    return status


def device_error(error: BaseException) -> BaseException | None:
    """The error of XLA or JAX's runtime that an error is, or has as its cause; else None."""
    cause: BaseException | None = error
    while cause is not None and not _of_runtime(cause):
        cause = cause.__cause__
    return cause


def _of_runtime(error: BaseException) -> bool:
    if isinstance(error, jax.errors.JaxRuntimeError):
        return True
    return isinstance(error, ValueError) and _COLLECTIVE_FAILED.match(str(error)) is not None


def is_of_others(error: BaseException) -> bool:
    """Whether an error says that another process has left or cannot be reached.

    The statuses of gRPC and the texts of Gloo and NCCL say so. Not a compilation that fails, a
    program that is wrong, or memory that is full: those would be the same again.
    """
    found = device_error(error)
    return found is not None and _OF_OTHERS.search(_first_line(found)) is not None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]


def leave_over(error: Exception) -> None:
    """Ends this process at once over an error that nobody expected, if there are others.

    Those may wait for it in something collective, and end as soon as it is gone. Alone it returns.
    The exit status is `AGAIN` where it is another process that has left, else 1.
    """
    if not jax.distributed.is_initialized():
        return
    traceback.print_exception(error)
    if not is_of_others(error):
        leave(1)
    reason = _first_line(device_error(error) or error)
    print(f"Stopped: another process has left or cannot be reached ({reason}).", file=sys.stderr)
    leave(AGAIN)


def interrupted() -> int:
    """The exit status of Ctrl-C; at once where there are other processes to wait for."""
    if jax.distributed.is_initialized():
        leave(128 + signal.SIGINT)
    return 128 + signal.SIGINT


def leave(status: int) -> NoReturn:
    """Ends this process alone and at once, after what it had to say; the others end over it.

    Without a goodbye: the orderly end of `jax.distributed` waits for processes that are waiting for
    this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _padded(text: bytes) -> np.ndarray:
    if len(text) > _MESSAGE_BYTES:
        text = text[:_MESSAGE_BYTES]
    return np.frombuffer(text.ljust(_MESSAGE_BYTES, b"\0"), np.uint8)


class StopRequested(Exception):
    """Raised where work may be dropped (evaluation) because the run is stopping."""


class StopSignals:
    """SIGINT and SIGTERM looked at once a step; a second Ctrl-C aborts at once.

    With several processes SIGTERM belongs to JAX's coordination service, which makes all of them
    answer yes at the same step, whichever got the signal; Ctrl-C is passed on to it.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None  # with other processes: agreed on by all
        self._asked: signal.Signals | None = None  # of this process alone
        self._may_interrupt = False
        self._many = jax.process_count() > 1
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        handled = [signal.SIGINT] if self._many else [signal.SIGINT, signal.SIGTERM]
        self._before = {name: signal.signal(name, self._receive) for name in handled}
        return self

    def __exit__(self, *exception: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer in every process."""
        if self._many:
            if multihost_utils.reached_preemption_sync_point(step):
                self._received = self._asked or signal.SIGTERM
                return True
            return False
        return self._received is not None

    def ask(self) -> None:
        """Asks all processes to stop, in one of several whose data has failed."""
        os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within it a signal raises `StopRequested`; not with other processes, who would wait."""
        if self._received is not None and not self._many:
            raise StopRequested
        self._may_interrupt = not self._many
        try:
            yield
        finally:
            self._may_interrupt = False

    @property
    def name(self) -> str:
        """Of the signal that was received."""
        return self._received.name if self._received else ""

    @property
    def exit_status(self) -> int:
        """128 + signal, as shells report it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self._received if self._received else 0

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C aborts
        self._asked = signal.Signals(number)
        if self._many:  # JAX tells all of them; until they agree on a step, nothing has changed
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._received = self._asked
        if self._may_interrupt:
            raise StopRequested
