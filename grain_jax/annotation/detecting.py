"""Images through a detector: loaded ahead in threads, in batches of one size, one after the other.

    feeder: what to look for -> threads: read, decode, place -> detector: a batch at a time -> taker

Each step works while the next does, and none runs further ahead than a few batches. An image that
fails, alone or in the detector, comes out with an error.
"""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from grain_jax.annotation.backends.detector import ScoredBoxes
from grain_jax.annotation.backends.placement import PreparedImage
from grain_jax.annotation.run import StageStopped
from grain_jax.data.image_files import SkippedSample

BATCHES_AHEAD = 4
MAX_FAILURES = 20  # images one after the other; then it is not the images
_POLL_SECONDS = 0.1  # at which a step that waits for another notices that all is over


@dataclass(frozen=True)
class Loaded:
    """An image on its way; without `prepared` where it failed."""

    image: str
    texts: tuple[str, ...] = ()
    image_hash: str | None = None
    prepared: PreparedImage | None = None
    error: str | None = None


@dataclass(frozen=True)
class Detected:
    """An image with what the detector says; without `scored` where it failed."""

    loaded: Loaded
    scored: ScoredBoxes | None = None
    error: str | None = None


@dataclass
class DetectorTime:
    """How much of the time the detector worked."""

    images: int = 0
    seconds: float = 0.0  # in calls of the detector
    wall_seconds: float = 0.0  # from the beginning of the first to the end of the last


class Detecting:
    """An iteration over `Detected`, in any order; `close` ends its threads early.

    Args:
        images: those to detect in.
        texts: what to look for in an image; called in one thread. `SkippedSample` is its error.
        load: reads and prepares an image; called in `threads` threads. Any Exception is its error.
        detect: boxes of a batch of images of one size.
    """

    def __init__(
        self,
        images: Iterator[str],
        *,
        texts: Callable[[str], Sequence[str]],
        load: Callable[[str], tuple[PreparedImage, str]],
        detect: Callable[[Sequence[Loaded]], Sequence[ScoredBoxes]],
        batch_size: int,
        threads: int,
    ) -> None:
        self.time = DetectorTime()
        self._images, self._texts, self._load, self._detect = images, texts, load, detect
        self._batch_size, self._failures, self._began = batch_size, 0, 0.0
        ahead = BATCHES_AHEAD * batch_size + threads
        self._loading: queue.Queue[Future[Loaded] | None] = queue.Queue(ahead)
        self._detected: queue.Queue[Detected | None] = queue.Queue(ahead)
        self._over, self._closed = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(threads, "load")
        self._steps = [
            threading.Thread(target=self._guarded, args=step, name=step[0].__name__, daemon=True)
            for step in ((self._feed, self._loading), (self._work, self._detected))
        ]

    def __iter__(self) -> Iterator[Detected]:
        """Raises what ended a step: `StageStopped`, or an error that is no image's."""
        for step in self._steps:
            step.start()
        while (detected := self._detected.get()) is not None:
            yield detected
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends all threads; what was not taken is lost."""
        self._closed.set()
        self._over.set()
        for step in self._steps:
            if step.is_alive():
                step.join()
        self._pool.shutdown(cancel_futures=True)

    def _guarded(self, step: Callable[[], None], following: "queue.Queue[Any]") -> None:
        """Runs a step; whatever ends it, the next one is told that nothing follows."""
        try:
            step()
        except BaseException as error:
            self._error = self._error or error
            self._over.set()
        while True:
            try:
                following.put(None, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                # Nobody takes from it any more; else what was detected is still taken.
                if self._closed.is_set() or (following is self._loading and self._over.is_set()):
                    _empty(following)

    def _feed(self) -> None:
        for image in self._images:
            try:
                texts = tuple(self._texts(image))
            except SkippedSample as error:
                future: Future[Loaded] = Future()
                future.set_result(Loaded(image, error=_reason(error)))
            else:
                future = self._pool.submit(self._loaded, image, texts)
            if not self._put(self._loading, future):
                return

    def _loaded(self, image: str, texts: tuple[str, ...]) -> Loaded:
        try:
            prepared, image_hash = self._load(image)
        except Exception as error:  # whatever is wrong with one image, the others follow
            return Loaded(image, texts, error=_reason(error))
        return Loaded(image, texts, image_hash, prepared)

    def _work(self) -> None:
        """Batches of one size; those that are not full wait until there are too many of them."""
        waiting: dict[tuple[int, ...], list[Loaded]] = defaultdict(list)
        while not self._over.is_set() and (future := self._loading.get()) is not None:
            loaded = future.result()
            if loaded.prepared is None:
                self._put(self._detected, Detected(loaded, error=loaded.error))
                continue
            same = waiting[loaded.prepared.pixels.shape]
            same.append(loaded)
            if len(same) >= self._batch_size:
                self._detect_batch(waiting.pop(loaded.prepared.pixels.shape))
            elif sum(map(len, waiting.values())) >= BATCHES_AHEAD * self._batch_size:
                self._detect_batch(waiting.pop(max(waiting, key=lambda size: len(waiting[size]))))
        for batch in waiting.values():
            if not self._over.is_set():
                self._detect_batch(batch)

    def _detect_batch(self, batch: Sequence[Loaded]) -> None:
        started = time.perf_counter()
        try:
            found = self._detect(batch)
        except Exception as error:
            self._detect_parts(batch, error)
            return
        ended = time.perf_counter()
        self._count(started, ended, len(batch))
        self._failures = 0
        for loaded, scored in zip(batch, found, strict=True):
            self._put(self._detected, Detected(loaded, scored))

    def _detect_parts(self, batch: Sequence[Loaded], error: Exception) -> None:
        """A batch that failed, in halves, so that one image does not take others with it."""
        if "CUDA error" in str(error):  # the process cannot use the device any more
            raise StageStopped(
                f"The detector's device failed ({error}). The same command continues."
            ) from error
        if "out of memory" in str(error):
            self._batch_size = max(1, len(batch) // 2)
        if len(batch) > 1:
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                self._detect_batch(part)
            return
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise StageStopped(
                f"The detector failed on {MAX_FAILURES} images one after the other, the last time "
                f"with: {_reason(error)}. The same command continues with the images after these; "
                "with --retry_errors it tries these again."
            ) from error
        self._put(self._detected, Detected(batch[0], error=f"detector failed: {_reason(error)}"))

    def _count(self, started: float, ended: float, images: int) -> None:
        if not self.time.images:
            self._began = started
        self.time.images += images
        self.time.seconds += ended - started
        self.time.wall_seconds = ended - self._began

    def _put(self, into: "queue.Queue[Any]", item: object) -> bool:
        """Whether there was room for it before all was over."""
        while not self._over.is_set():
            try:
                into.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, SkippedSample):
        return f"{error.reason}: {error}"
    return f"{type(error).__name__}: {error}"


def _empty(full: "queue.Queue[Any]") -> None:
    try:
        while True:
            full.get_nowait()
    except queue.Empty:
        return
