"""Many machines: when this process is one of several, and how they stop together.

`jax.distributed.initialize` raises on a single machine, so it is called only when asked for or when
the environment says that this process is one of several.
"""

import os
import signal
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils


def is_one_of_many(environment: Mapping[str, str]) -> bool:
    """True inside a Slurm or Open MPI step of several tasks, or on a TPU slice of several hosts."""
    tasks = (
        environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    multi_slice = bool(environment.get("MEGASCALE_COORDINATOR_ADDRESS"))
    return any(int(count) > 1 for count in tasks) or len(hosts) > 1 or multi_slice


def join_processes(
    *, distributed: bool, coordinator: str, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the other processes, if there are any. Must run before anything uses a device.

    Raises ValueError for an incomplete set of `--coordinator`, `--num_processes`, `--process_id`.
    """
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
    if given:
        jax.distributed.initialize(
            coordinator_address=coordinator, num_processes=num_processes, process_id=process_id
        )
    else:
        jax.distributed.initialize()


class StopRequested(Exception):
    """Raised where work may be dropped (evaluation) because the run was asked to stop."""


class StopSignals:
    """SIGINT and SIGTERM as a question asked once a step; a second Ctrl-C aborts at once.

    With several processes SIGTERM belongs to JAX's coordination service, which makes all of them
    answer yes at the same step, whichever got the signal; Ctrl-C is passed on to it.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
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
                self._received = self._received or signal.SIGTERM
                return True
            return False
        return self._received is not None

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
        self._received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C aborts
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)
        if self._may_interrupt:
            raise StopRequested
