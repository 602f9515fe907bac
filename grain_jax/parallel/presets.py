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


def choose_mesh(
    config: TrainConfig, devices: Sequence[Any] | None = None, *, num_slices: int = 0
) -> Mesh:
    """The mesh of a run over `devices` (default: all of all processes).

    `num_slices`: of devices that do not know their slice, one after the other; 0: they know.

    A preset takes the largest groups that the grid of chips allows: 8 x 8 x 8 chips have rings of 8
    and 64, and none of 16. Raises ValueError as `sharding.make_mesh` does, and where `mesh.preset`
    cannot be had.
    """
    devices = jax.devices() if devices is None else devices
    num_slices = num_slices or len(sharding.slices_of(devices))
    size = len(devices) // num_slices
    refused: ValueError | None = None
    for sizes in possible_sizes(config, num_slices=num_slices, slice_size=size):
        sharding.check_slices(sizes, num_slices=num_slices, slice_size=size)
        try:
            return sharding.make_mesh(sizes, devices)
        except ValueError as error:
            refused = refused or error
    assert refused is not None  # there is one at least
    raise refused


def choose_sizes(config: TrainConfig, *, num_slices: int, slice_size: int) -> MeshConfig:
    """`config.mesh` with sizes in the place of its preset, whatever the grid of chips.

    Raises ValueError where the preset needs more devices in a slice, or other widths of the model.
    """
    return possible_sizes(config, num_slices=num_slices, slice_size=slice_size)[0]


def possible_sizes(config: TrainConfig, *, num_slices: int, slice_size: int) -> list[MeshConfig]:
    """As `choose_sizes`, with smaller groups after it; of "auto" the last has none."""
    mesh, preset = config.mesh, config.mesh.preset
    if preset == "auto":
        if (mesh.data, mesh.fsdp, mesh.tensor) != (-1, 1, 1):
            return [mesh]
        groups = _divisors(FSDP, slice_size, *_widths(config)) if slice_size >= MANY else [1]
        return [replace(mesh, fsdp=fsdp) for fsdp in groups]
    if preset == "dp":
        return [replace(mesh, fsdp=1, tensor=1)]
    tensors = [1]
    if preset == "fsdp_tp":
        tensors = [size for size in _divisors(TENSOR, slice_size, *_inner(config)) if size > 1]
    most = FSDP_BESIDE_TENSOR if preset == "fsdp_tp" else FSDP
    found = [
        replace(mesh, fsdp=fsdp, tensor=tensor)
        for tensor in tensors
        for fsdp in _divisors(most, slice_size // tensor, *_widths(config))
        if fsdp > 1
    ]
    if not found:
        raise ValueError(
            f"mesh.preset = {preset!r} finds nothing to split over {slice_size} devices of "
            f"{num_slices} slice(s) (GPU nodes, TPU slices or hosts): the model has widths "
            f"{_widths(config)}; heads, MLPs and vocabulary of {_inner(config)}. Choose "
            "mesh.preset='dp', or the sizes mesh.fsdp and mesh.tensor."
        )
    return found


def _divisors(most: int, *numbers: int) -> list[int]:
    """Powers of two up to `most` that divide all `numbers`, largest first."""
    common = math.gcd(*numbers)
    return [size for size in (16, 8, 4, 2, 1) if size <= most and common % size == 0]


def _widths(config: TrainConfig) -> tuple[int, ...]:
    """What "fsdp" splits."""
    model = config.model
    widths = (model.vision.width, model.text.width)
    return (*widths, model.decoder.width) if model.type == "grain" else widths


def _inner(config: TrainConfig) -> tuple[int, ...]:
    """What "tensor" splits."""
    model = config.model
    towers = (model.vision, model.text)
    heads = [tower.num_heads for tower in towers]
    hidden = [int(tower.width * tower.mlp_ratio) for tower in towers]
    if model.type == "grain":
        heads, hidden = [*heads, model.decoder.num_heads], [*hidden, model.decoder.mlp_dim]
    return (*heads, *hidden, model.text.vocab_size)
