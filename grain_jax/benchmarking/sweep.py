"""Images a second and memory by batch size and remat, up to what does not fit."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from grain_jax.benchmarking.candidates import Candidate, cannot_fit
from grain_jax.benchmarking.compiled_step import OutOfMemoryError, program_memory, refusal
from grain_jax.benchmarking.step import StepTiming, open_step, time_open_step
from grain_jax.config import TrainConfig
from grain_jax.config.schema import Remat
from grain_jax.parallel import sharding

FIRST = 8  # images of a device, of a sweep that names no batch sizes
LARGEST = 2**20  # images of the global batch
UNTRIED = "not tried, as one that needs no more memory did not"


@dataclass(frozen=True)
class Variant:
    """One setting of a sweep; `timing` is None where it does not fit."""

    remat: str
    batch_size: int
    timing: StepTiming | None
    needed_bytes: int | None  # of a device, as compiled; None where the compiler does not say
    reason: str = ""  # why it does not fit


def sweep(
    config: TrainConfig,
    *,
    batch_sizes: Sequence[int] | None,
    remats: Sequence[Remat],
    num_steps: int,
    mesh: Mesh,
) -> Iterator[Variant]:
    """Each remat with each batch size, in order, up to the first that does not fit.

    One that needs the memory of another that did not fit (`cannot_fit`) is not tried.
    `batch_sizes`: None for 8 images a device, doubled until that is. Raises ValueError where the
    devices do not divide one.
    """
    refused: list[Candidate] = []
    for remat in remats:
        for size in _doubled(config, mesh) if batch_sizes is None else sorted(set(batch_sizes)):
            setting = Candidate(None, remat, size)
            if cannot_fit(setting, refused):
                yield Variant(remat, size, None, None, UNTRIED)
                break
            variant = setting.config(config)
            sharding.check_batch(variant, mesh.devices.shape)
            found = measure(variant, num_steps=num_steps, mesh=mesh)
            yield found
            if found.timing is None:
                refused.append(setting)
                break


def measure(config: TrainConfig, *, num_steps: int, mesh: Mesh) -> Variant:
    """The timing of one setting, or why it does not fit."""
    needed: int | None = None

    def fits(compiled: Any) -> None:
        nonlocal needed
        memory = compiled.memory_analysis()
        needed = program_memory(
            memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.peak_memory_in_bytes
        )
        limit = _memory_limit(mesh.devices.flat[0])
        if limit is not None and needed > limit:
            raise OutOfMemoryError(
                needed, f"{needed / 2**30:.2f} GiB of {limit / 2**30:.2f} that are there"
            )

    variant = Variant(config.model.remat, config.batch_size, None, None)
    try:
        step = open_step(config, mesh, fits=fits)
        timing = time_open_step(step, num_steps=num_steps)
    except OutOfMemoryError as error:
        known = needed if error.needed is None else error.needed
        return dataclasses.replace(variant, needed_bytes=known, reason=str(error))
    except jax.errors.JaxRuntimeError as error:  # the allocator, while it ran
        found = refusal(str(error))
        if not isinstance(found, OutOfMemoryError):
            raise
        return dataclasses.replace(variant, needed_bytes=needed, reason=str(found))
    # The allocator's peak is that of the process, so also of settings before this one.
    timing = dataclasses.replace(timing, peak_bytes=None)
    return dataclasses.replace(variant, timing=timing, needed_bytes=needed)


def best(variants: Sequence[Variant]) -> Variant | None:
    """The one with most images a second; None where none fits."""
    fitting = [one for one in variants if one.timing is not None]
    return max(fitting, key=images_per_second, default=None)


def images_per_second(variant: Variant) -> float:
    """0 where it does not fit."""
    return 0.0 if variant.timing is None else variant.timing.images_per_second


def _doubled(config: TrainConfig, mesh: Mesh) -> Iterator[int]:
    size = FIRST * mesh.size * config.optim.grad_cache_chunks
    while size <= LARGEST:
        yield size
        size *= 2


def _memory_limit(device: Any) -> int | None:
    """Bytes that a program may take; on a CPU, which swaps or kills, what is free right now."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None or device.platform != "cpu":
        return limit
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // jax.local_device_count()
    return None
