"""Records to batches: a batch is a pure function of (seed, step), on any number of hosts.

Global position p = step * batch_size + row. The record at p comes from a shuffle that is new every
epoch, the random choices of p (caption, crop, flip) from a generator seeded with (seed, p). So
nothing but the step is needed to resume, and each process makes its own rows of the same global
batch however many processes there are.
"""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grain
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from grain_jax.config import DataConfig
from grain_jax.config_rules import loader_problems
from grain_jax.data.assemble import BatchMaker
from grain_jax.data.processes import end_with_parent
from grain_jax.data.records import Batch, Source
from grain_jax.data.tokenizer import Tokenizer
from grain_jax.data.transforms import ImageError, Preprocessing

_MAX_STEPS = 2**40  # more than any run; grain wants a length

DeviceBatch = TypeVar("DeviceBatch")


def training_batches(
    source: Source,
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
) -> "BatchIterator":
    """Endless batches from `start_step` on: of each global batch the `rows` (default: all).

    Close it when done. Raises ValueError where the data cannot fill a batch or a setting makes no
    sense.
    """
    rows = range(batch_size) if rows is None else rows
    _check(source, config, batch_size, rows)
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    maker = BatchMaker(
        source=source,
        order=order,
        config=config,
        tokenizer=tokenizer,
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        rows=rows,
    )
    # An element is a whole batch: handing single small samples between threads costs more than
    # making them.
    steps = grain.MapDataset.range(start_step, start_step + _MAX_STEPS).map(maker)
    share = -(-config.prefetch_batches // max(config.num_workers, 1))  # batches, of each process
    batches = steps.to_iter_dataset(
        grain.ReadOptions(
            num_threads=config.num_threads,
            prefetch_buffer_size=max(share, config.num_threads),  # a thread holds what it makes
        )
    )
    if config.num_workers:
        if not flags.FLAGS.is_parsed():  # grain reads its flags, which only an absl app has parsed
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=config.num_workers, per_worker_buffer_size=share
            ),
            worker_init_fn=_start_worker,
        )
    return BatchIterator(iter(batches), copy=config.num_workers > 0)


def _start_worker(index: int, count: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


class BatchIterator(Iterator[Batch]):
    """Iterator over batches; `close()` (or a `with` block) ends its threads and processes."""

    def __init__(self, elements: Any, *, copy: bool) -> None:
        self._elements = elements
        self._copy = copy
        self._closed = False

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        arrays = next(self._elements)
        if self._copy:  # arrays of workers live in shared memory, which a copy releases at once
            arrays = {name: np.array(value) for name, value in arrays.items()}
        return Batch(**arrays)

    def close(self) -> None:
        """Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._elements.close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check(source: Source, config: DataConfig, batch_size: int, rows: Sequence[int]) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    if not rows or not 0 <= min(rows) <= max(rows) < batch_size:
        raise ValueError(f"rows={list(rows)} are not rows of a batch of {batch_size}.")
    if len(source) < batch_size:
        raise ValueError(
            f"The data set has {len(source)} images, fewer than one batch of {batch_size}; "
            "lower batch_size or add images."
        )
    if found := loader_problems(config):
        raise ValueError("\n".join(found))


class DevicePrefetch(Iterator[DeviceBatch], Generic[DeviceBatch]):
    """Batches put on the device ahead of their use; `wait_seconds` is the time spent on the host.

    `put` starts the transfer (`jax.device_put` and the like return at once), so that the copy of
    the next batch overlaps with the step on this one. Ends when `batches` ends; `close` closes it
    too.
    """

    def __init__(
        self, batches: BatchIterator, put: Callable[[Batch], DeviceBatch], *, size: int
    ) -> None:
        self.wait_seconds = 0.0  # in all, waiting for `batches` and handing them to the device
        self._batches = batches
        self._put = put
        self._size = max(size, 1)
        self._ready: deque[DeviceBatch] = deque()

    def __next__(self) -> DeviceBatch:
        start = time.perf_counter()
        while len(self._ready) < self._size:
            try:
                self._ready.append(self._put(next(self._batches)))
            except StopIteration:
                break
        self.wait_seconds += time.perf_counter() - start
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def close(self) -> None:
        """Drops what is waiting. Safe to call twice."""
        self._ready.clear()
        self._batches.close()

    def __enter__(self) -> "DevicePrefetch[DeviceBatch]":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def prefetch_to_device(
    batches: BatchIterator, put: Callable[[Batch], DeviceBatch], *, size: int = 2
) -> DevicePrefetch[DeviceBatch]:
    """Keeps `size` batches on their way to the device; see `DevicePrefetch`."""
    return DevicePrefetch(batches, put, size=size)


def evaluation_batches(
    source: Source,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    indices: Sequence[int] | None = None,
    num_threads: int = 2,
) -> Iterator[tuple[UInt8[np.ndarray, "N S S 3"], Int[np.ndarray, "N"]]]:
    """(images, their indices) in order, all of `source` or the given `indices` of it.

    The last batch may be smaller. Raises ValueError on an image that cannot be decoded: a figure
    should not silently leave one out.
    """
    chosen = list(range(len(source)) if indices is None else indices)

    def make(start: int) -> tuple[np.ndarray, np.ndarray]:
        part = chosen[start : start + batch_size]
        return np.stack([_prepared(source, i, preprocessing) for i in part]), np.array(part)

    batches = grain.MapDataset.range(0, len(chosen), batch_size).map(make)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
    elements = iter(batches.to_iter_dataset(options))
    try:
        yield from elements
    finally:
        elements.close()


def _prepared(source: Source, index: int, preprocessing: Preprocessing) -> np.ndarray:
    record = source[index]
    try:
        return preprocessing(record.image)
    except ImageError as error:
        raise ValueError(
            f"Image {record.id!r} cannot be evaluated on: {error} Take it out of the set, or "
            "prepare the set again, which drops such images."
        ) from error
