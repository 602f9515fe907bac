"""What the compiled training step computes, holds and exchanges; nothing is run.

    python tests/benchmarks/compiled_step.py [--devices=8] --config=FILE [--SETTING=VALUE ...]
    python tests/benchmarks/compiled_step.py --topology=v5e:4x4 --config=FILE

Every setting of `python -m grain_jax.train` can be given; no data is read. The first form makes
host devices and uses XLA's compiler for CPUs. The second needs `jax[tpu]` and no TPU: its compiler
compiles for a topology of that name.

Printed, of one device: memory; floating-point operations, as XLA counts them, a loop as one turn;
collectives by kind, by mesh axes that they go over, and by whether they are in a loop. Their size
is that of the whole array: what a reduce-scatter is given, and what the others make.
"""

import collections
import dataclasses
import operator
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

sys.path.append(str(Path(__file__).resolve().parents[1] / "helpers"))
import hlo

import grain_jax
from grain_jax.benchmarking.synthetic_batch import synthetic_batch
from grain_jax.command_line import parse
from grain_jax.config import TrainConfig, validate
from grain_jax.config.cli import SettingsOptions, read_settings
from grain_jax.models.image_text import build_model
from grain_jax.parallel import sharding
from grain_jax.training.optimizer import make_optimizer, make_schedule
from grain_jax.training.state import abstract_state
from grain_jax.training.step import make_train_step

MIB = 2**20
TINY = 64 * 2**10  # bytes: a collective of fewer takes as long as an empty one


def open_devices(topology: str, count: int) -> list[Any]:
    """Devices of a TPU topology, or `count` of the host."""
    jax.config.update("jax_platforms", "cpu")
    if not topology:
        jax.config.update("jax_num_cpu_devices", count)
        return jax.devices()
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # this machine is asked nothing about its own TPU
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    return list(topologies.get_topology_desc(topology, "tpu", **one_chip).devices)


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


def compile_step(config: TrainConfig, mesh: Mesh) -> Any:
    """The step as training compiles it."""
    model, optimizer = build_model(config.model), make_optimizer(config.optim)
    schedule = make_schedule(config.optim, steps=1_000, warmup_steps=10)
    abstract = abstract_state(model, optimizer, config, mesh)
    step: Any = make_train_step(model, optimizer, schedule, config, mesh=mesh, abstract=abstract)
    with sharding.use_mesh(mesh):
        return step.lower(abstract, abstract_batch(config, mesh)).compile()


def axes_of(instruction: hlo.Instruction, mesh: Mesh) -> str:
    """Mesh axes that a collective goes over, as "data+fsdp"."""
    shape = mesh.devices.shape
    varying = set()
    for group in hlo.groups(instruction):
        places = np.stack(np.unravel_index(group, shape))
        varying |= set(np.flatnonzero((places != places[:, :1]).any(1)).tolist())
    names = mesh.axis_names
    return "+".join(names[axis] for axis in sorted(varying)) or "nothing"


def num_bytes(instruction: hlo.Instruction) -> int:
    """Of the whole array that the devices of a group share."""
    if instruction.collective == "reduce-scatter":
        return instruction.num_bytes * len(hlo.groups(instruction)[0])
    return instruction.num_bytes


def collectives(text: str) -> list[hlo.Instruction]:
    """Those of a compiled program, each once.

    The TPU compiler writes one that runs beside other work several times: in the fusions that
    begin it, continue it and end it, under one channel number.
    """
    unique = {}
    for place, one in enumerate(hlo.instructions(text)):
        channel = re.search(r"channel_id=(\d+)", one.text)
        if one.collective:
            unique[one.collective, one.in_loop, channel[1] if channel else f"at {place}"] = one
    return list(unique.values())


def print_collectives(found: Iterable[hlo.Instruction], mesh: Mesh) -> None:
    """One line a kind, axes and place, and one for each of the five largest."""
    rows = collections.defaultdict(list)
    for one in found:
        place = "in loops" if one.in_loop else "outside"
        rows[one.collective, axes_of(one, mesh), place].append(one)
    print(
        f"  {'collective':<19}{'over':<12}{'where':<10}{'count':>7}{'tiny':>7}{'MiB':>11}"
        f"{'MiB a step':>12}"
    )
    for (kind, axes, place), several in sorted(rows.items()):
        sizes = [num_bytes(one) for one in several]
        turns = [one.turns for one in several]
        step = "?"
        if None not in turns:
            step = f"{sum(map(operator.mul, sizes, turns)) / MIB:.2f}"
        print(
            f"  {kind:<19}{axes:<12}{place:<10}{len(several):>7}"
            f"{sum(size < TINY for size in sizes):>7}{sum(sizes) / MIB:>11.2f}{step:>12}"
        )
    print("  largest:")
    everything = [one for several in rows.values() for one in several]
    for one in sorted(everything, key=num_bytes, reverse=True)[:5]:
        name = re.search(r'op_name="(?:jit\(step\)/)?([^"]{,80})', one.text)
        shapes = [f"{kind}{list(shape)}" for kind, shape in one.shapes]
        more = f" and {len(shapes) - 2} more" if len(shapes) > 2 else ""
        place = "in loops" if one.in_loop else "outside"
        print(
            f"    {num_bytes(one) / MIB:.2f} MiB {one.opcode} over {axes_of(one, mesh)}, {place}: "
            f"{' '.join(shapes[:2])}{more} {name[1] if name else ''}"
        )


@dataclasses.dataclass
class Options:
    """What to compile for."""

    devices: int = 8  # host devices
    topology: str = ""  # TPU topology, as v5e:4x4
    text: str = ""  # file for the text of the compiled program
    config: SettingsOptions = dataclasses.field(default_factory=TrainConfig)


def main() -> None:
    """Prints what one step computes, holds and exchanges."""
    base, words = read_settings(sys.argv[1:])
    options = parse(
        Options, words, command="compiled_step", description=__doc__, default=Options(config=base)
    )
    config = options.config
    validate(config)
    devices = open_devices(options.topology, options.devices)
    mesh = sharding.make_mesh(config.mesh, devices)
    started = time.perf_counter()
    compiled = compile_step(config, mesh)
    seconds = time.perf_counter() - started
    text = compiled.as_text()
    if options.text:
        Path(options.text).write_text(text, encoding="utf-8")
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(
        f"{len(devices)} x {devices[0].device_kind}, mesh {sizes}, batch {config.batch_size}, "
        f"{config.optim.grad_cache_chunks} micro-batches; jax {jax.__version__}, "
        f"grain_jax {grain_jax.__version__}, compiled in {seconds:.0f} s"
    )
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    print(
        f"  MiB of a device: temporary {memory.temp_size_in_bytes / MIB:.1f}, "
        f"arguments {memory.argument_size_in_bytes / MIB:.1f}, "
        f"peak {memory.peak_memory_in_bytes / MIB:.1f}; "
        f"GFLOP of a device {cost['flops'] / 1e9:.2f}"
    )
    print_collectives(collectives(text), mesh)


if __name__ == "__main__":
    main()
