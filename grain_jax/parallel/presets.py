"""Sizes of the device mesh by name: which axes to use on how many devices.

"dp" copies the model to every device. "fsdp" splits parameters and optimizer over devices of one
slice and repeats that over the rest: hybrid where there are several slices, as only "data" crosses
between them. "fsdp_tp" splits the inside of layers besides. Where the sizes are given they count.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from grain_jax.config import MeshConfig, TrainConfig
from grain_jax.parallel import sharding

# Of these models the state on a device is a sixteenth of 2 GB then; a larger group only has more
# devices to wait for.
FSDP, FSDP_BESIDE_TENSOR, TENSOR = 16, 4, 4
MANY = 16  # devices of a slice, from which on "auto" splits the optimizer


def choose_mesh(config: TrainConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a run over `devices` (default: all of all processes).

    Raises ValueError as `sharding.make_mesh` does, and where `mesh.preset` cannot be had.
    """
    devices = jax.devices() if devices is None else devices
    slices = sharding.slices_of(devices)
    sizes = choose_sizes(config, num_slices=len(slices), slice_size=len(slices[0]))
    return sharding.make_mesh(sizes, devices)


def choose_sizes(config: TrainConfig, *, num_slices: int, slice_size: int) -> MeshConfig:
    """`config.mesh` with sizes in the place of its preset.

    Raises ValueError where the preset needs more devices in a slice, or other widths of the model.
    """
    mesh = config.mesh
    preset = mesh.preset
    if preset == "auto":
        if (mesh.data, mesh.fsdp, mesh.tensor) != (-1, 1, 1):
            return mesh
        fsdp = _largest(FSDP, slice_size, *_widths(config))
        return replace(mesh, fsdp=fsdp if slice_size >= MANY else 1)
    if preset == "dp":
        return replace(mesh, fsdp=1, tensor=1)
    tensor = _largest(TENSOR, slice_size, *_heads(config)) if preset == "fsdp_tp" else 1
    most = FSDP_BESIDE_TENSOR if preset == "fsdp_tp" else FSDP
    fsdp = _largest(most, slice_size // tensor, *_widths(config))
    if fsdp == 1 or (preset == "fsdp_tp" and tensor == 1):
        raise ValueError(
            f"mesh.preset = {preset!r} finds nothing to split over {slice_size} devices of "
            f"{num_slices} slice(s) (GPU nodes, TPU slices or hosts): the model has widths "
            f"{_widths(config)} and {_heads(config)} heads. Choose mesh.preset='dp', or the sizes "
            "mesh.fsdp and mesh.tensor."
        )
    return replace(mesh, fsdp=fsdp, tensor=tensor)


def _largest(most: int, *numbers: int) -> int:
    """The largest power of two up to `most` that divides all `numbers`."""
    common = math.gcd(*numbers)
    return max(size for size in (1, 2, 4, 8, 16) if size <= most and common % size == 0)


def _widths(config: TrainConfig) -> tuple[int, ...]:
    model = config.model
    widths = (model.vision.width, model.text.width)
    return (*widths, model.decoder.width) if model.type == "grain" else widths


def _heads(config: TrainConfig) -> tuple[int, ...]:
    model = config.model
    heads = (model.vision.num_heads, model.text.num_heads)
    return (*heads, model.decoder.num_heads) if model.type == "grain" else heads
