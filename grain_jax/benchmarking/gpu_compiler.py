"""XLA's compiler for GPUs, which is in jax's plugin for CUDA and needs no GPU."""

import importlib.metadata
import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

PLUGINS = ("xla_cuda13", "xla_cuda12")  # modules of `jax_plugins`
# What tries products out on a GPU, which need not be there. Without both, products are cuBLAS's.
OPTIONS: dict[str, bool | int] = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class Target:
    """What differs between GPUs of one architecture, as XLA's descriptions of devices have it.

    Source: openxla/xla, xla/backends/gpu/target_config/specs/{h100_sxm,h200}.txtpb.
    """

    name: str
    memory: int  # bytes
    memory_rate: int  # bytes/s
    num_cores: int = 132  # streaming multiprocessors
    clock: float = 1.98  # GHz
    cache: int = 52_428_800  # bytes of L2
    capability: int = 9

    @property
    def text(self) -> str:
        """A `GpuTargetConfigProto`, with the limits of Hopper, as text."""
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: {self.num_cores}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {self.memory_rate}
  device_memory_size: {self.memory}
  l2_cache_size: {self.cache}
  clock_rate_ghz: {self.clock}
  cuda_compute_capability {{ major: {self.capability} }}
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{self.name}"
"""


TARGETS = {  # by the name of a topology
    "h100": Target("NVIDIA H100 80GB HBM3", 84_942_979_072, 3_352_320_000_000),
    "h200": Target("NVIDIA H200 141GB HBM3e", 151_397_597_184, 4_800_000_000_000),
}


class NoGpuCompilerError(Exception):
    """There is none here, or it refuses the devices; the message says why and what to do."""


def gpu_devices(kind: str, per_node: int, num_nodes: int) -> tuple[Any, ...]:
    """Devices to compile for, node after node; `kind` of `TARGETS`.

    Turns the compilation cache of this process off. Raises NoGpuCompilerError.
    """
    if not has_plugin():
        raise NoGpuCompilerError(f"XLA's compiler for GPUs needs no GPU: {how_to_install()}")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            kind,
            "cuda",
            topology=f"{num_nodes}x1x{per_node}",  # partitions, their hosts, devices of a host
            target_config=TARGETS[kind].text,
        )
    except Exception as error:  # of the C++ runtime, of several types; a plugin of another version
        reason = str(error).partition("\n")[0]
        raise NoGpuCompilerError(
            f"XLA's compiler for GPUs refuses {kind} ({reason}); it should be of jaxlib's version: "
            f"{how_to_install()}"
        ) from error
    # Without a GPU it writes programs there, and cannot read them.
    jax.config.update("jax_enable_compilation_cache", False)
    return tuple(found.devices)


def has_plugin() -> bool:
    """Whether jax's plugin for CUDA is installed."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.{name}") for name in PLUGINS)


def how_to_install() -> str:
    """The command that installs the compiler alone, 130 MB, without the libraries of a GPU."""
    version = importlib.metadata.version("jaxlib")
    packages = " ".join(f"jax-cuda13-{part}=={version}" for part in ("plugin", "pjrt"))
    return f"pip install --no-deps {packages}"


def compiler_options() -> dict[str, bool | int]:
    """`OPTIONS` but for those that the user's XLA_FLAGS set: `jax.stages.Lowered.compile`."""
    given = re.findall(r"--(\w+)", os.environ.get("XLA_FLAGS", ""))
    return {name: value for name, value in OPTIONS.items() if name not in given}
