"""The training step compiled for devices that need not be there: what it holds and exchanges."""

import dataclasses
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from grain_jax.benchmarking import hlo
from grain_jax.benchmarking.hardware import Peak
from grain_jax.benchmarking.schedule import Schedule, read_schedule
from grain_jax.benchmarking.synthetic_batch import synthetic_batch
from grain_jax.config import TrainConfig
from grain_jax.models.image_text import model_of_run
from grain_jax.parallel import sharding
from grain_jax.training.optimizer import (
    make_optimizer,
    make_schedule,
    num_steps,
    num_warmup_steps,
)
from grain_jax.training.state import TrainState, abstract_state
from grain_jax.training.step import make_train_step

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class OutOfMemoryError(ValueError):
    """The compiler found that the step does not fit; `needed` bytes where it says how many."""

    def __init__(self, needed: int | None, message: str) -> None:
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind over the same mesh axes, of one step."""

    kind: str  # as "all-reduce"
    axes: str  # as "data" or "data+fsdp"
    in_loop: bool
    group: int  # devices that exchange with each other
    count: int  # in the program
    tiny: int  # of these with fewer than `TINY` bytes
    num_bytes: int  # of the whole arrays, once a turn
    step_bytes: int | None  # of all turns; None where the number of turns is not known

    def seconds(self, peak: Peak, *, num_slices: int = 1) -> float:
        """At the rate into and out of each device, round a ring; a loop as one turn if need be.

        Between slices, which only "data" crosses, each device exchanges its part of what its slice
        has, after and before the exchange within (hierarchical). Without a published rate that
        takes no time here.
        """
        num_bytes = self.num_bytes if self.step_bytes is None else self.step_bytes
        crossed = num_slices if "data" in self.axes.split("+") else 1
        inside = self.group // crossed
        # A permutation goes one way round a TPU's axis, whose rate is of both.
        one_way = 2 if self.kind == "collective-permute" and peak.is_tpu else 1
        seconds = _ring(self.kind, inside) * num_bytes * one_way / peak.network_rate
        if crossed > 1 and peak.between_rate:
            # A permutation's whole array goes through the device at the edge of its slice.
            part = 1 if self.kind == "collective-permute" else inside
            seconds += _ring(self.kind, crossed) * num_bytes / part / peak.between_rate
        return seconds


def _ring(kind: str, devices: int) -> float:
    """What goes through a device in a ring of so many, in multiples of the whole array."""
    part = (devices - 1) / devices
    if kind == "collective-permute":
        return 1.0 if devices > 1 else 0.0
    return 2 * part if kind == "all-reduce" else part


@dataclass(frozen=True)
class CompiledStep:
    """What a device holds, in bytes, and what the devices exchange."""

    seconds: float  # of compilation
    state: int  # parameters, optimizer, averages, counters
    optimizer: int  # of it the moments of Adam
    batch: int
    arguments: int  # both, as the compiler lays them out
    temporary: int
    peak: int  # as the compiler plans it
    schedule: Schedule  # what runs one after the other
    exchanges: tuple[Exchange, ...]
    largest: tuple[hlo.Instruction, ...]  # collectives

    @property
    def memory(self) -> int:
        """As of `program_memory`."""
        return program_memory(self.arguments, self.temporary, self.peak)


def program_memory(arguments: int, temporary: int, peak: int) -> int:
    """Bytes of a device that a compiled program takes, of what the compiler says of it: arguments
    and temporaries together, or the peak where that is more, the safe figure.
    """
    return max(arguments + temporary, peak)


TINY = 64 * 2**10  # bytes: a collective of fewer takes as long as an empty one


def compile_step(
    config: TrainConfig,
    mesh: Mesh,
    *,
    num_images: int = 0,
    text_file: Path | None = None,
    compiler_options: Mapping[str, bool | int] | None = None,
) -> CompiledStep:
    """Compiles the step as training does.

    `num_images` of the data set, where the length of the run follows from it; 0: some length, which
    changes constants only. The text of the program goes into `text_file`.

    Raises `OutOfMemoryError` where the compiler refuses it for its memory, and ValueError where it
    refuses it for something else.
    """
    model, optimizer = model_of_run(config), make_optimizer(config.optim)
    steps, warmup_steps = run_length(config, num_images) or (1_000, 10)
    schedule = make_schedule(config.optim, steps=steps, warmup_steps=warmup_steps)
    abstract = abstract_state(model, optimizer, config, mesh)
    step: Any = make_train_step(model, optimizer, schedule, config, mesh=mesh, abstract=abstract)
    batch = abstract_batch(config, mesh)
    started = time.perf_counter()
    with sharding.use_mesh(mesh):
        lowered = step.lower(abstract, batch)
        try:
            compiled = lowered.compile(compiler_options=dict(compiler_options or {}) or None)
        except jax.errors.JaxRuntimeError as error:
            raise refusal(str(error)) from error
    seconds = time.perf_counter() - started
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if text_file is not None:
        text_file.write_text(text, encoding="utf-8")
    found = collectives(text, repeated=mesh.devices.flat[0].platform == "tpu")
    return CompiledStep(
        seconds=seconds,
        state=_device_bytes(abstract),
        optimizer=_device_bytes(abstract.opt_state),
        batch=_device_bytes(batch),
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        schedule=read_schedule(text),
        exchanges=tuple(_exchanges(found, mesh)),
        largest=tuple(sorted(found, key=whole_bytes, reverse=True)[:5]),
    )


def run_length(config: TrainConfig, num_images: int) -> tuple[int, int] | None:
    """Steps of the run and of its warm-up; None where they follow from an unknown `num_images`."""
    in_steps = config.steps and (config.optim.warmup_steps or not config.optim.warmup_epochs)
    if not num_images and not in_steps:
        return None
    return num_steps(config, num_images), num_warmup_steps(config, num_images)


def refusal(text: str) -> ValueError:
    """The error of a compiler that ends with `text`: of its memory, or another."""
    # Of a TPU the memory of the chip, and not that of its core, which no setting changes.
    if "RESOURCE_EXHAUSTED" not in text or "vmem" in text.partition("\n")[0].lower():
        return ValueError(f"The compiler refuses the step: {text.splitlines()[0]}")
    sizes = re.search(r"([\d.]+)([KMGT])\)? (?:of|exceeds)", text)
    needed = None if sizes is None else int(float(sizes[1]) * UNITS[sizes[2]])
    return OutOfMemoryError(needed, text.splitlines()[0])


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Any:
    """Shapes, types and shardings of a batch."""
    one = synthetic_batch(dataclasses.replace(config, batch_size=1))
    rows = sharding.batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (config.batch_size, *leaf.shape[1:]), leaf.dtype, sharding=rows
        ),
        one,
    )


def _device_bytes(tree: TrainState | Any) -> int:
    """Of the part of each array that a device has."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def collectives(text: str, *, repeated: bool = True) -> list[hlo.Instruction]:
    """Those of a compiled program, each once. `repeated`: it is of the TPU compiler.

    The TPU compiler writes one that runs beside other work several times: in the fusions that
    begin it, continue it and end it, under one channel number. Where they begin outside of a loop
    and continue in it, it is still done once. Permutes are written once, and those of `shard_map`
    all have the same number. Other compilers write each once, and give all collectives of
    `shard_map` the same number.
    """
    unique: dict[tuple[str, str], hlo.Instruction] = {}
    for place, one in enumerate(hlo.instructions(text)):
        if not one.collective:
            continue
        channel = re.search(r"channel_id=(\d+)", one.text)
        if not repeated or one.collective == "collective-permute":
            channel = None
        key = one.collective, channel[1] if channel else f"at {place}"
        if key not in unique or not one.in_loop:
            unique[key] = one
    return list(unique.values())


def axes_of(instruction: hlo.Instruction, mesh: Mesh) -> str:
    """Mesh axes that a collective goes over, as "data+fsdp"."""
    varying = set()
    for group in hlo.groups(instruction):
        places = np.stack(np.unravel_index(group, mesh.devices.shape))
        varying |= set(np.flatnonzero((places != places[:, :1]).any(1)).tolist())
    return "+".join(mesh.axis_names[axis] for axis in sorted(varying)) or "nothing"


def whole_bytes(instruction: hlo.Instruction) -> int:
    """Of the whole array that the devices of a group share."""
    if instruction.collective == "reduce-scatter":
        return instruction.num_bytes * len(hlo.groups(instruction)[0])
    return instruction.num_bytes


def _exchanges(found: Iterable[hlo.Instruction], mesh: Mesh) -> list[Exchange]:
    rows = defaultdict(list)
    for one in found:
        rows[one.collective, axes_of(one, mesh), one.in_loop].append(one)
    return [
        Exchange(
            kind=kind,
            axes=axes,
            in_loop=in_loop,
            group=_group(several[0], axes, mesh),
            count=len(several),
            tiny=sum(whole_bytes(one) < TINY for one in several),
            num_bytes=sum(map(whole_bytes, several)),
            step_bytes=_over_turns(several),
        )
        for (kind, axes, in_loop), several in sorted(rows.items())
    ]


def _group(one: hlo.Instruction, axes: str, mesh: Mesh) -> int:
    """Devices that exchange with each other; of a permutation all along its axes."""
    if one.collective == "collective-permute":
        return math.prod(mesh.shape[axis] for axis in axes.split("+") if axis in mesh.shape)
    return len(hlo.groups(one)[0])


def _over_turns(several: list[hlo.Instruction]) -> int | None:
    total = 0
    for one in several:
        if one.turns is None:
            return None
        total += whole_bytes(one) * one.turns
    return total
