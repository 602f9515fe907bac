"""Load records as batches: a batch is a pure function of (seed, step), on any number of hosts.

Global position p = step * batch_size + row. The record at p comes from a shuffle that differs in
each epoch, of a mixture by weight (`mixture.training_order`), and the random choices at p (caption,
crop, flip) come from a generator seeded with (seed, p). So a run resumes from the step alone, and
each process makes its own rows of the same global batch on any number of processes.
"""

import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grain
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from grain_jax.config import DataConfig
from grain_jax.config.validation import loader_problems
from grain_jax.data import processes
from grain_jax.data.batch import Batch
from grain_jax.data.collate import Collator, ImageCollator, row_dtype
from grain_jax.data.loader_plan import (
    PER_QUEUE,
    LoaderPlan,
    check_shared_memory,
    most_workers,
    plan_loader,
)
from grain_jax.data.mixture import training_order
from grain_jax.data.records import Source
from grain_jax.data.tokenizer import Tokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.runtime import processes_on_this_machine, usable_cpus

_ENDLESS = 2**50  # parts of batches, more than any run has; grain expects a length

_EVALUATION_PREFETCH = 2  # batches of images made ahead
_IMAGES_PER_WORKER = (
    1_000  # of an evaluation; with fewer, threads finish before a process has started
)

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
    """Endless training batches; close the iterator when done.

    Args:
        seed: of the shuffle and of every random choice.
        start_step: the step of the first batch.
        rows: rows of each global batch that this process makes (default: all).

    Raises ValueError where the source has fewer records than a batch, for an invalid setting, and
    where shared memory does not suffice.
    """
    rows = range(batch_size) if rows is None else rows
    _check(source, config, batch_size, rows)
    dtype = row_dtype(config, image_size)
    plan = plan_loader(config, rows=len(rows), row_bytes=dtype.itemsize)
    check_shared_memory(plan, num_processes=processes_on_this_machine(os.environ))
    collator = Collator(
        source=source,
        order=training_order(source, seed),
        config=config,
        tokenizer=tokenizer,
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        rows=rows,
        parts=plan.parts,
        packed=plan.num_workers > 0,
    )
    first = start_step * plan.parts
    elements = _elements(grain.MapDataset.range(first, first + _ENDLESS).map(collator), plan)
    return BatchIterator(elements, plan)


def _elements(parts: Any, plan: LoaderPlan) -> Any:
    """Iterator over a MapDataset whose elements are prefetched according to `plan`."""
    dataset = parts.to_iter_dataset(
        grain.ReadOptions(num_threads=plan.num_threads, prefetch_buffer_size=plan.buffer)
    )
    if plan.num_workers:
        if not flags.FLAGS.is_parsed():  # grain reads absl flags, which only an absl app parses
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=plan.num_workers, per_worker_buffer_size=PER_QUEUE
            ),
            worker_init_fn=processes.start_worker,
        )
    return iter(dataset)


def _following(elements: Any, plan: LoaderPlan, *, started: bool) -> Any:
    """The next element.

    Raises ValueError where the data cannot be read, and `LoaderProcessDied` where a process died.
    """
    try:
        if started:
            return next(elements)
        return processes.first_element(elements, plan.num_workers)
    except (RuntimeError, OSError, KeyError) as error:
        if plan.num_workers and (death := processes.died(error)) is not None:
            raise death from error
        # A damaged or missing file: array_record and TFDS have no common error type for it.
        raise ValueError(
            f"The data could not be read ({type(error).__name__}: {error}). Check the disk or "
            "network that holds it, or prepare it again."
        ) from error


class BatchIterator(Iterator[Batch]):
    """Iterator over batches; `close()` (or a `with` block) ends its threads and processes.

    `next` raises ValueError where the data cannot be read or collated, and `LoaderProcessDied`
    where a loader process died.
    """

    def __init__(self, elements: Any, plan: LoaderPlan) -> None:
        self.plan = plan
        self._elements = elements
        self._started = False
        self._closed = False

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        if self.plan.parts == 1 and not self.plan.num_workers:
            return Batch(**self._part())  # the part is the batch
        out: dict[str, np.ndarray] = {}
        row = 0
        for _ in range(self.plan.parts):
            part = self._part()
            names = part.dtype.names if isinstance(part, np.ndarray) else part
            for name in names:
                values = part[name]
                if name not in out:
                    out[name] = np.empty((self.plan.rows, *values.shape[1:]), values.dtype)
                out[name][row : row + len(values)] = values
            row += len(values)
            # Parts made by processes are in shared memory, which is freed when nothing refers to
            # it.
            del part, values
        return Batch(**out)

    def _part(self) -> Any:
        part = _following(self._elements, self.plan, started=self._started)
        self._started = True
        return part

    def close(self) -> None:
        """Ends threads and processes. Safe to call twice."""
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
    check_batch_fits(source, batch_size)
    if found := loader_problems(config):
        raise ValueError("\n".join(found))


def check_batch_fits(source: Source, batch_size: int) -> None:
    """Raises ValueError where the source has fewer records than a batch."""
    if len(source) < batch_size:
        raise ValueError(
            f"The data set has {len(source)} images, fewer than one batch of {batch_size}; "
            "lower batch_size or add images."
        )


def void_batch(config: DataConfig, image_size: int, num_rows: int) -> Batch:
    """A batch of rows without a record (index -1), on which a training step changes nothing."""
    dtype = row_dtype(config, image_size)
    rows = {
        name: np.zeros((num_rows, *dtype[name].shape), dtype[name].base)
        for name in dtype.names or ()
    }
    rows["index"] -= 1
    return Batch(**rows)


class DevicePrefetch(Iterator[DeviceBatch], Generic[DeviceBatch]):
    """Iterator that prefetches batches to the device.

    `put` starts the transfer (`jax.device_put` returns at once), so that the copy of the next batch
    overlaps with the step on this one. Ends when `batches` ends; `close` also closes `batches`.
    `wait_seconds` is the total time spent waiting for `batches` and starting transfers.
    """

    def __init__(
        self, batches: BatchIterator, put: Callable[[Batch], DeviceBatch], *, size: int
    ) -> None:
        self.wait_seconds = 0.0
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
        """Discards prefetched batches and closes the loader. Safe to call twice."""
        self._ready.clear()
        self._batches.close()

    def __enter__(self) -> "DevicePrefetch[DeviceBatch]":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def prefetch_to_device(
    batches: BatchIterator, put: Callable[[Batch], DeviceBatch], *, size: int = 2
) -> DevicePrefetch[DeviceBatch]:
    """Prefetches `size` batches to the device; see `DevicePrefetch`."""
    return DevicePrefetch(batches, put, size=size)


def evaluation_batches(
    source: Source,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    indices: Sequence[int] | None = None,
    num_threads: int = 2,
    num_workers: int = 0,
) -> Iterator[tuple[UInt8[np.ndarray, "N S S 3"], Int[np.ndarray, "N"]]]:
    """Batches (images, indices of their records) in order; the last may be smaller.

    Args:
        preprocessing: size and crop of the images.
        indices: records of `source` to load (default: all).
        num_workers: at most this many processes, fewer for small sets and none for a source that is
            `in_memory`, of which each process would get a copy.

    Raises ValueError for an image that cannot be decoded, so that no metric silently leaves one
    out, and `LoaderProcessDied` where a loader process died.
    """
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    count = min(batch_size, len(chosen))
    if not count:
        return
    plan = evaluation_plan(
        DataConfig(num_threads=num_threads, prefetch_batches=_EVALUATION_PREFETCH),
        workers=0 if getattr(source, "in_memory", False) else num_workers,
        images=len(chosen),
        rows=count,
        row_bytes=preprocessing.image_size**2 * 3,
    )
    bounds = np.arange(0, len(chosen), count)
    make = ImageCollator(source, preprocessing, chosen, batch_size=count, parts=plan.parts)
    elements = _elements(grain.MapDataset.range(len(bounds) * plan.parts).map(make), plan)
    started = False
    try:
        for start in bounds:
            rows = chosen[start : start + count]
            size = preprocessing.image_size
            images = np.empty((len(rows), size, size, 3), np.uint8)
            row = 0
            for _ in range(plan.parts):
                part = _following(elements, plan, started=started)
                started = True
                images[row : row + len(part)] = part
                row += len(part)
                del part
            yield images, rows
    finally:
        elements.close()


def evaluation_plan(
    config: DataConfig, *, workers: int, images: int, rows: int, row_bytes: int
) -> LoaderPlan:
    """A plan with at most `workers` processes, fewer for a small set, few CPUs or little shared
    memory: they were chosen for training.
    """
    workers = min(workers, images // _IMAGES_PER_WORKER, most_workers(config, rows), usable_cpus())
    config = dataclasses.replace(config, num_workers=workers)
    plan = plan_loader(config, rows=rows, row_bytes=row_bytes)
    try:
        check_shared_memory(plan, num_processes=processes_on_this_machine(os.environ))
    except ValueError:
        config = dataclasses.replace(config, num_workers=0)
        plan = plan_loader(config, rows=rows, row_bytes=row_bytes)
    return plan
