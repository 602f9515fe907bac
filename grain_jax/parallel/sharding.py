"""The device mesh, and where every array lives on it.

Mesh axes: "data" copies the model and splits the batch, "fsdp" splits batch, parameters and
optimizer, "tensor" splits the inside of each layer. `LOGICAL_RULES` is the only table that maps the
names on the model's parameters and activations to these.

A slice is what a fast interconnect joins: a TPU slice, a GPU node or NVLink domain, a CPU host. XLA
numbers them (`slice_index`; by boot id on GPU and CPU). Between slices lies the network, which only
"data" crosses.
"""

import bisect
import contextlib
import functools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen import spmd
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from grain_jax.config import MeshConfig, TrainConfig
from grain_jax.data.batch import Batch

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# Logical axis -> mesh axes, first come first served where two dimensions ask for the same one.
LOGICAL_RULES = (
    ("batch", BATCH_AXES),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("embed", "fsdp"),
    ("kv", None),
    ("joint", None),
    ("layers", None),
)
# A parameter with fewer numbers than this beside its "embed" axis is whole on every device of
# "fsdp": norms, biases, the last layer of the box head, and the queries where there are few. It
# saves nothing to split them, and each would be a collective of its own.
NARROW = 8


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """Sizes of (data, fsdp, tensor) with -1 filled in. Raises ValueError when they do not fit."""
    sizes = [config.data, config.fsdp, config.tensor]
    given = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % given == 0:
        sizes[sizes.index(-1)] = num_devices // given
    if math.prod(sizes) != num_devices:
        raise ValueError(
            f"The mesh data={config.data} x fsdp={config.fsdp} x tensor={config.tensor} does not "
            f"fit {num_devices} devices; sizes must multiply to {num_devices} (one may be -1)."
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over `devices` (default: all of all processes).

    Raises ValueError where the sizes do not fit the devices, where fsdp or tensor would cross
    between slices, and where slices or processes have different numbers of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    slices = slices_of(devices)
    types = (AxisType.Auto,) * len(AXES)
    try:
        if len(slices) > 1:
            return Mesh(_over_slices(shape, slices), AXES, axis_types=types)
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    except NotImplementedError as error:  # a TPU's grid that these sizes would have to split
        raise ValueError(
            f"The mesh data={shape[0]} x fsdp={shape[1]} x tensor={shape[2]} cannot be laid over "
            "this TPU's grid of chips; choose sizes that are products of its sides, or fsdp and "
            f"tensor of 1. JAX says: {error}"
        ) from error


def check_slices(config: MeshConfig, *, num_slices: int, slice_size: int) -> None:
    """Raises ValueError where `make_mesh` would, on `num_slices` slices of `slice_size` devices."""
    shape = mesh_shape(config, num_slices * slice_size)
    inside = shape[1] * shape[2]
    if num_slices > 1 and slice_size % inside:
        raise ValueError(
            f"The mesh data={shape[0]} x fsdp={shape[1]} x tensor={shape[2]} puts {inside} devices "
            f"into each fsdp x tensor group, and the {num_slices * slice_size} devices are "
            f"{num_slices} slices (GPU nodes, TPU slices or hosts) of {slice_size}: such a group "
            "would cross the network between them, which only data may. Make mesh.fsdp x "
            f"mesh.tensor a divisor of {slice_size} and leave mesh.data at -1."
        )


def slices_of(devices: Sequence[Any]) -> list[list[Any]]:
    """The devices of each slice, in the order of the slices' numbers.

    Devices without a number form one slice. Raises ValueError where slices, or the processes that
    drive the devices, have different numbers of devices.
    """
    by_slice: dict[int, list[Any]] = {}
    by_process: dict[int, int] = {}
    for device in devices:
        number = getattr(device, "slice_index", None)
        by_slice.setdefault(0 if number is None else number, []).append(device)
        by_process[device.process_index] = by_process.get(device.process_index, 0) + 1
    slices = [by_slice[number] for number in sorted(by_slice)]
    if len({len(part) for part in slices}) > 1:
        listed = ", ".join(f"{len(by_slice[number])} in slice {number}" for number in by_slice)
        raise ValueError(
            f"The slices (GPU nodes, TPU slices or hosts) have different numbers of devices: "
            f"{listed}. Expected the same number in each; look at CUDA_VISIBLE_DEVICES and the "
            "launcher's options."
        )
    if len(set(by_process.values())) > 1:
        listed = ", ".join(f"{count} of process {process}" for process, count in by_process.items())
        raise ValueError(
            f"The processes have different numbers of devices: {listed}. Expected the same number "
            "each; look at CUDA_VISIBLE_DEVICES and the launcher's options."
        )
    return slices


def _over_slices(shape: tuple[int, int, int], slices: Sequence[Sequence[Any]]) -> np.ndarray:
    """Devices in the mesh's shape: slice after slice along data, fsdp and tensor within each."""
    count, size = len(slices), len(slices[0])
    check_slices(MeshConfig(*shape), num_slices=count, slice_size=size)
    data, fsdp, tensor = shape
    devices = [device for part in slices for device in part]
    return mesh_utils.create_hybrid_device_mesh(
        (data // count, fsdp, tensor),
        (count, 1, 1),
        devices,
        # As `jax.make_mesh` does: a v5e slice is a grid of two dimensions.
        allow_split_physical_axes=devices[0].device_kind in ("TPU v5 lite", "TPU v5e"),
    )


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Within it, the model's logical names mean axes of `mesh`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_RULES):
        yield


def num_cpu_devices(config: TrainConfig) -> int:
    """Host devices for a run on CPU: what the config says, or as many as its mesh names.

    One device with all cores is faster than one a core, and keeps one copy of the parameters.
    """
    sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    return config.mesh.cpu_devices or math.prod(size for size in sizes if size != -1)


def set_cpu_devices(config: TrainConfig) -> None:
    """Makes the host devices, unless the environment or the calling program has chosen already."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if jax.config.values["jax_num_cpu_devices"] > 0:
        return
    with contextlib.suppress(RuntimeError):  # devices exist already: a program that embeds us
        jax.config.update("jax_num_cpu_devices", num_cpu_devices(config))


def cpu_devices_notes(config: TrainConfig) -> list[str]:
    """For the screen: that mesh.cpu_devices was given and there are other devices."""
    wanted, devices = config.mesh.cpu_devices, jax.local_devices()
    if not wanted or (devices[0].platform == "cpu" and len(devices) == wanted):
        return []
    there = f"{len(devices)} of {devices[0].platform}"
    return [
        f"without effect, as this process has other devices ({there}): "
        f"mesh.cpu_devices = {wanted}, which is for a CPU whose number of devices is not set before"
    ]


def check_batch(config: TrainConfig, shape: tuple[int, int, int]) -> None:
    """Raises ValueError unless every device of a mesh of that `shape` (data, fsdp, tensor) gets
    equally many rows of every micro-batch.
    """
    shards = shape[0] * shape[1]
    if config.batch_size % (shards * config.optim.grad_cache_chunks):
        raise ValueError(
            f"batch_size = {config.batch_size} in optim.grad_cache_chunks = "
            f"{config.optim.grad_cache_chunks} micro-batches cannot be split over {shards} "
            f"devices (mesh data x fsdp); make it a multiple of "
            f"{shards * config.optim.grad_cache_chunks}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Devices, or groups of them, with rows of their own."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(boxed: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings of parameters from their logical names; `boxed` are those of an abstract init.

    Narrow ones (see `NARROW`) are not split over "fsdp". Raises ValueError naming a parameter that
    the mesh cannot split evenly.
    """
    names = jax.tree.map(_without_narrow, nn.get_partition_spec(boxed), nn.unbox(boxed))
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        spmd.logical_to_mesh(names, LOGICAL_RULES),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )

    def check(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
        for size, axes in zip(leaf.shape, sharding.spec, strict=False):
            names = (axes,) if isinstance(axes, str) else axes or ()
            parts = math.prod(mesh.shape[name] for name in names)
            if size % parts:
                raise ValueError(
                    f"mesh.{'*'.join(names)} = {parts} cannot split parameter "
                    f"{jax.tree_util.keystr(path, simple=True, separator='/')} of shape "
                    f"{leaf.shape} evenly: {size} is not a multiple of it. Choose another mesh."
                )

    jax.tree_util.tree_map_with_path(check, nn.unbox(boxed), shardings)
    return shardings


def _without_narrow(names: PartitionSpec, leaf: jax.ShapeDtypeStruct) -> PartitionSpec:
    """Logical names of a parameter, without "embed" where it is narrow."""
    others = [
        size
        for name, size in zip(names, leaf.shape, strict=False)
        if name not in ("embed", "layers")
    ]
    if math.prod(others) >= NARROW:
        return names
    return PartitionSpec(*(None if name == "embed" else name for name in names))


@functools.lru_cache(maxsize=16)
def local_rows(sharding: NamedSharding, batch_size: int) -> tuple[int, ...]:
    """Rows of a global batch that live on this process's devices, in order.

    Which they are is the mesh's affair: they need not follow one another, and processes may share
    some (a "tensor" axis across processes).
    """
    placed = sharding.addressable_devices_indices_map((batch_size,)).values()
    slices = [index[0] for index in placed if index is not None]
    return tuple(sorted({row for rows in slices for row in range(*rows.indices(batch_size))}))


def put_rows(local: np.ndarray, sharding: NamedSharding, batch_size: int) -> jax.Array:
    """The global array of which `local` holds the `local_rows`; returns at once."""
    rows = local_rows(sharding, batch_size)

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # of a device of this process
        return local[(place_of(index[0], rows, batch_size), *index[1:])]

    return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)


def place_of(wanted: slice, rows: Sequence[int], batch_size: int) -> slice:
    """Where the `wanted` rows of the global batch are among `rows`, which hold all of them."""
    first, end, _ = wanted.indices(batch_size)
    start = bisect.bisect_left(rows, first)
    return slice(start, start + end - first)


def put_batch(batch: Batch, mesh: Mesh, *, batch_size: int) -> Batch:
    """This process's rows as part of the global batch on the devices; returns at once."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda local: put_rows(local, sharding, batch_size), batch)
