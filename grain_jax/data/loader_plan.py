"""Plan the memory of a loader: the parts that a batch is made in, and how many exist at once.

grain passes elements from threads and processes through several queues, each with a size of its
own, so elements of a whole batch would mean many batches in memory. Here an element is a part of a
batch, small enough that all elements that may exist at once make up `data.prefetch_batches`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from grain_jax.config import DataConfig

SHARED_MEMORY = Path("/dev/shm")
# Elements of a process besides those that its threads are making, all in shared memory: one waiting
# for the queue to the parent and one in it, one in the parent waiting for a buffer and one in it.
_QUEUED = 4
PER_QUEUE = 1  # size of each of those queues


@dataclass(frozen=True)
class LoaderPlan:
    """Parts, threads, processes and memory of a loader."""

    rows: int  # of a batch that this process makes
    row_bytes: int
    num_workers: int
    num_threads: int  # of each process
    parts: int  # elements that a batch is made in
    buffer: int  # elements that the threads of one process prefetch

    @property
    def part_rows(self) -> int:
        """Rows of the largest part."""
        return -(-self.rows // self.parts)

    @property
    def elements(self) -> int:
        """The largest number of elements that exist before a batch is returned."""
        if self.num_workers:
            return self.num_workers * (self.num_threads + _QUEUED)
        return self.buffer

    @property
    def bytes_ahead(self) -> int:
        """Bytes of all `elements`."""
        return self.elements * self.part_rows * self.row_bytes

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory among them, including the element being copied."""
        if not self.num_workers:
            return 0
        return (self.num_workers * _QUEUED + 1) * self.part_rows * self.row_bytes

    @property
    def sentence(self) -> str:
        """Threads, processes and memory in words, to print at the start of a run."""
        who = f"{self.num_threads} threads"
        if self.num_workers:
            who = f"{self.num_workers} processes with {who} each"
        held = f"{size(self.bytes_ahead)} of batches ahead"
        shared = f", {size(self.shared_bytes)} in shared memory" if self.num_workers else ""
        return f"{who}, {held}{shared}"


def plan_loader(config: DataConfig, *, rows: int, row_bytes: int) -> LoaderPlan:
    """The plan that prefetches `config.prefetch_batches` batches of `rows` rows.

    Raises ValueError where `config.num_workers` exceeds `most_workers`.
    """
    workers, threads, ahead = config.num_workers, config.num_threads, config.prefetch_batches
    at_once = workers * (threads + _QUEUED) if workers else threads
    if workers > (most := most_workers(config, rows)):
        raise ValueError(
            f"data.num_workers = {workers} processes hold {at_once} parts of a batch, and "
            f"data.prefetch_batches = {ahead} batches of {rows} images (of this process) have only "
            f"{ahead * rows} images; set data.num_workers to at most {most}."
        )
    parts = min(-(-at_once // ahead), rows)
    return LoaderPlan(
        rows=rows,
        row_bytes=row_bytes,
        num_workers=workers,
        num_threads=threads,
        parts=parts,
        buffer=threads if workers else max(parts * ahead, threads),
    )


def most_workers(config: DataConfig, rows: int) -> int:
    """The most processes that `config.prefetch_batches` batches of `rows` rows allow."""
    return config.prefetch_batches * rows // (config.num_threads + _QUEUED)


def check_shared_memory(
    plan: LoaderPlan, folder: Path = SHARED_MEMORY, *, num_processes: int = 1
) -> None:
    """Raises ValueError where `folder` has less free shared memory than the plan takes.

    `num_processes`: training processes of this machine, which share the folder. Without the check a
    process would be ended by a bus error without a message. Systems without `folder` (macOS) have
    no such limit.
    """
    if not plan.num_workers or not folder.is_dir():
        return
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    needed = plan.shared_bytes * num_processes
    if needed > free:
        each = f" in each of {num_processes} processes of this machine" if num_processes > 1 else ""
        raise ValueError(
            f"The data loader needs {size(needed)} of shared memory for "
            f"data.num_workers = {plan.num_workers}{each} and data.prefetch_batches, and {folder} "
            f"has {size(free)} free. Make it larger (docker run --shm-size="
            f"{-(-2 * needed // 2**30)}g; Kubernetes: an emptyDir of medium Memory "
            f"mounted at {folder}), lower data.prefetch_batches, or set data.num_workers=0, which "
            "takes no shared memory."
        )


def size(count: int) -> str:
    """A number of bytes in words, as MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
