"""Devices to compile for that need not be there, by name: "v5e:4x4", "h100x8", "cpu:8"."""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from grain_jax.benchmarking import gpu_compiler
from grain_jax.benchmarking.hardware import PEAKS, Peak
from grain_jax.extras import how_to_install

TPUS = {  # name -> that of `PEAKS`, and how many sides its grid of chips has
    "v5e": ("TPU v5 lite", 2),
    "v5p": ("TPU v5", 3),
    "v4": ("TPU v4", 3),
    "v6e": ("TPU v6 lite", 2),
}
GPUS = {"h100": "H100", "h200": "H200"}
EXAMPLES = "v5e:4x4, v5p:4x4x4, v6e:16x16, v4:4x4x4, h100x8, h200x1, cpu:8"


@dataclass(frozen=True)
class Topology:
    """Devices, and what is published of each."""

    name: str
    devices: tuple[Any, ...]
    peak: Peak | None  # None for CPUs
    num_slices: int = 1  # or nodes of GPUs, with the network between them
    compiler_options: Mapping[str, bool | int] = field(default_factory=dict)
    no_compiler: str = ""  # why host devices stand for GPUs, and what to do

    @property
    def is_stand_in(self) -> bool:
        """Whether host devices stand for GPUs, as the compiler for these is not installed."""
        return self.peak is not None and self.devices[0].platform == "cpu"

    @property
    def is_gpu(self) -> bool:
        """Whether it is of GPUs, or of host devices that stand for them."""
        return self.peak is not None and not self.peak.is_tpu

    @property
    def compiler(self) -> str:
        """What compiles for its devices."""
        kinds = {"tpu": "TPUs", "cpu": "CPUs"}
        return f"XLA for {kinds.get(self.devices[0].platform, 'GPUs')}"


def open_topology(name: str, num_slices: int = 1) -> Topology:
    """The devices of that name, so many slices or nodes of it, one after the other.

    Starts the JAX backend of the host, and none of an accelerator. Where the compiler for GPUs is
    not installed, devices of the host stand for them. Raises ValueError for another name, a grid
    that does not exist, and a TPU without `libtpu`.
    """
    if num_slices < 1:
        raise ValueError(f"--num_slices={num_slices}: at least one slice or node is needed.")
    jax.config.update("jax_platforms", "cpu")
    if tpu := re.fullmatch(r"(v\d\w*):(\d+(?:x\d+)*)", name):
        return _tpu(name, tpu[1], tpu[2], num_slices)
    if found := re.fullmatch(r"(cpu|h100|h200)[:x](\d{1,4})", name):
        count = int(found[2])
        peak = PEAKS[GPUS[found[1]]] if found[1] in GPUS else None
        if count < 1 or (peak is not None and count > 8):
            raise ValueError(
                f"--topology={name}: given {count} devices, expected 1 to 8 GPUs of one node, or "
                "at least one CPU device. --num_slices has the number of nodes."
            )
        if peak is None:
            return Topology(name, _host_devices(count * num_slices), None, num_slices)
        return _gpus(name, found[1], count, num_slices)
    raise ValueError(f"--topology={name}: expected a name such as {EXAMPLES}.")


def _gpus(name: str, kind: str, count: int, num_nodes: int) -> Topology:
    peak = PEAKS[GPUS[kind]]
    try:
        devices = gpu_compiler.gpu_devices(kind, count, num_nodes)
    except gpu_compiler.NoGpuCompilerError as error:
        devices = _host_devices(count * num_nodes)
        return Topology(name, devices, peak, num_nodes, no_compiler=str(error))
    options = gpu_compiler.compiler_options()
    return Topology(name, devices, peak, num_nodes, compiler_options=options)


def _host_devices(count: int) -> tuple[Any, ...]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # devices exist already, in a program that calls us
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"This process has {len(devices)} CPU devices already, and {count} are needed."
        )
    return tuple(devices[:count])


def _tpu(name: str, kind: str, grid: str, num_slices: int) -> Topology:
    if kind not in TPUS:
        raise ValueError(f"--topology={name}: expected one of {', '.join(TPUS)} before the colon.")
    peak_name, sides = TPUS[kind]
    if grid.count("x") + 1 != sides:
        example = "x".join("4" * sides)
        raise ValueError(
            f"--topology={name}: a {kind} slice has {sides} sides, as {kind}:{example}."
        )
    _say_that_there_is_no_tpu()
    try:
        import libtpu  # noqa: F401
        from jax.experimental import topologies

        more: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
        if kind == "v4":  # else each of a chip's two cores is a device, unlike in a run
            more["chip_config_name"] = "megacore"
        if set(grid) <= set("1x"):
            more["chips_per_host_bounds"] = (1, 1, 1)
        devices = topologies.get_topology_desc(name, "tpu", **more).devices
    except ImportError:
        raise ValueError(
            f"--topology={name} needs the TPU compiler, which needs no TPU: "
            f"{how_to_install('tpu')}, in an environment of its own if this one has jax for GPUs."
        ) from None
    except Exception as error:  # libtpu raises errors of the C++ runtime, of several types
        raise ValueError(f"--topology={name}: the TPU compiler refuses it: {error}") from error
    return Topology(name, tuple(devices), PEAKS[peak_name], num_slices)


def _say_that_there_is_no_tpu() -> None:
    """Else libtpu asks a metadata server for minutes, and refuses to be loaded twice."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
