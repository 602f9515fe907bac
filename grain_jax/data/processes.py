"""Loader processes: how they start, how they end, and the error when one dies.

Each loader process imports this module, so it imports nothing else that they do not use.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

_SECONDS_TO_START = 10  # of all processes, after the first element
_SECONDS_TO_STOP = 20  # of a process that was asked to stop
_EXIT_CODE = re.compile(r"exit code (-?\d+)")
_REASONS = {
    signal.SIGKILL: (
        "was killed, as Linux does when memory runs out: lower data.num_workers or "
        "data.prefetch_batches, or give the container or job more memory"
    ),
    signal.SIGBUS: (
        "ended by a bus error, as happens when the shared memory in /dev/shm is full: make it "
        "larger (docker run --shm-size=8g), or lower data.prefetch_batches or data.num_workers"
    ),
    signal.SIGSEGV: (
        "ended by a segmentation fault, which a damaged image or file can cause in a library that "
        "reads it: data.num_workers=0 shows which"
    ),
}


class LoaderProcessDied(ValueError):
    """A loader process died; the message names the reason and what to change.

    A ValueError, because callers handle ValueError for unreadable data already.
    """


def died(error: Exception) -> LoaderProcessDied | None:
    """The error for grain's message about a process that died; None for any other error."""
    found = _EXIT_CODE.search(str(error))
    if not isinstance(error, RuntimeError) or found is None:
        return None
    code = int(found[1])
    reason = f"ended with exit code {code}; its own message is above"
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code)
            reason = _REASONS.get(name, f"ended by {name.name}")
    return LoaderProcessDied(f"A process of the data loader {reason}.")


def start_worker(index: int, count: int) -> None:
    """Initializes a loader process, number `index` of `count`."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # sent to the whole process group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def first_element(elements: Iterator[Any], num_workers: int) -> Any:
    """The first of `elements`, for which `num_workers` processes are started.

    A spawned process imports the main module of the program again; grain_jax.train would import
    all training code, which makes no batches. So the main module is hidden while processes start.
    What the script of a user defines still reaches the processes, pickled by value.
    """
    if not num_workers:
        return next(elements)
    others = set(multiprocessing.active_children())
    with _without_main_module():
        element = next(elements)
        deadline = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < deadline:
            if len(set(multiprocessing.active_children()) - others) >= num_workers:
                break
            time.sleep(0.01)
    return element


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent() -> None:
    """Makes this worker process end when its parent ends."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # A loader process of grain that is asked to stop unlinks the shared memory of unread batches,
    # which would otherwise stay allocated until the machine restarts.
    stop = vars(multiprocessing.current_process()).get("_kwargs", {}).get("should_stop")
    if stop is not None:
        stop.set()
        time.sleep(_SECONDS_TO_STOP)
    os._exit(1)
