"""Notices that a run stands still, says where, and ends the process for a launcher to repeat."""

import faulthandler
import os
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import TextIO

from grain_jax.config import LoggingConfig
from grain_jax.parallel import processes

# Times the limit, where a step is compiled, everything is evaluated, or a save is waited for: that
# takes minutes where a step takes seconds (ViT-B/16 compiles in 11 minutes for a TPU).
SLOW_FACTOR = 4


class Watchdog:
    """A thread that looks at how long the loop has been where it is. A context manager.

    The loop says with `at` where it is. Where that does not change for `limit` seconds, the step,
    the time and the stacks of all threads are written to `stream`; then the process ends with
    status 75, or it goes on and is reported again after twice the time. A `limit` of 0 watches
    nothing.

    A thread of Python stands still too while something in C holds the interpreter's lock. Then
    `faulthandler` alone, which needs no lock, writes the stacks, after twice the longest limit;
    only one such object may be in use in a process.
    """

    def __init__(
        self, limit: float, *, end: bool, name: str = "", stream: TextIO | None = None
    ) -> None:
        """`end`: whether to end the process; `name`: of the process, for the report."""
        self._limit, self._end, self._name = limit, end, name
        self._stream = stream or _stderr()
        # Since when, step, where, limit, and whether to end the process after it.
        self._place: tuple[float, int, str, float, bool] | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, step: int, where: str, *, slow: bool = False, endless: bool = False) -> None:
        """The loop is now at `step`, doing what `where` says: "waiting for its batch".

        `slow`: it may take longer than a step; `endless`: nobody knows how long, so that it is
        reported and not ended.
        """
        limit = self._limit * (SLOW_FACTOR if slow else 1)
        self._place = (time.monotonic(), step, where, limit, self._end and not endless)

    def __enter__(self) -> "Watchdog":
        if self._limit > 0:
            self._watch_the_lock()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        reported, again_after = self._place, 0.0  # what was reported, and when to report it again
        pause = min(self._limit / 10, 5.0)
        while not self._stopped.wait(pause):
            self._watch_the_lock()
            place = self._place
            if place is None:
                continue
            since, step, where, limit, end = place
            waited = time.monotonic() - since
            if place is not reported:
                if reported is not None and again_after:
                    self._say(f"it moves again, at step {step}.")
                reported, again_after = place, 0.0
            if waited < max(limit, again_after):
                continue
            again_after = 2 * waited
            self._say(
                f"no progress for {waited:,.0f} seconds, in step {step}, {where}. "
                "Where each thread is:"
            )
            self._stacks()
            if end and not self._stopped.is_set():
                self._say(
                    f"ends with exit status {processes.AGAIN}; the same command resumes from the "
                    "newest checkpoint (logging.hang_action=report goes on waiting)."
                )
                # Not `processes.leave`: the thread that hangs may hold the lock of stdout.
                os._exit(processes.AGAIN)

    def _watch_the_lock(self) -> None:
        """Stacks, should this not be called again in time."""
        if (number := self._descriptor()) is not None:
            faulthandler.dump_traceback_later(2 * self._limit * SLOW_FACTOR, file=number)

    def _stacks(self) -> None:
        if (number := self._descriptor()) is not None:
            faulthandler.dump_traceback(file=number, all_threads=True)
            return
        for thread, frame in sys._current_frames().items():
            print(f"Thread {thread}:", file=self._stream)
            print("".join(traceback.format_stack(frame)), file=self._stream, flush=True)

    def _descriptor(self) -> int | None:
        """What `faulthandler` writes to; None of a stream without a file, as of a notebook."""
        try:
            return self._stream.fileno()
        except (OSError, ValueError, AttributeError):
            return None

    def _say(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        print(f"{stamp} Watchdog{self._name}: {text}", file=self._stream, flush=True)


def _stderr() -> TextIO:
    """That of the system where what stands for it is no file, which `faulthandler` needs."""
    try:
        sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return sys.__stderr__ or sys.stderr
    return sys.stderr


def watchdog(config: LoggingConfig) -> Watchdog:
    """As `logging.hang_timeout_seconds` and `logging.hang_action` say, to stderr."""
    many = processes.are_many()
    return Watchdog(
        config.hang_timeout_seconds,
        end=many if config.hang_action == "auto" else config.hang_action == "exit",
        name=f" of process {processes.number()}" if many else "",
    )
