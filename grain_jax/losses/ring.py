"""All pairs of a batch that is split over devices, a tile of them at a time.

Each device keeps its rows and passes its columns on to the next one, until all columns have been
everywhere; devices wait for their neighbours. So what a device holds does not depend on the number
of devices, as long as the backward pass goes round by itself: autodiff would keep the columns of
every turn. The ring is that of ring attention (Liu et al., 2023).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

TILE = 1024  # columns computed at a time, at most

Axes = tuple[str, ...]  # mesh axes that the batch is split over; () for one device


def on_each_device(function: Callable[..., Any], axes: Axes, arguments: tuple[Any, ...]) -> Any:
    """`function` of each device's part of the arguments; scalars are whole everywhere."""
    if not axes:
        return function(*arguments)
    parts, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(
        function,
        in_specs=jax.tree.map(lambda leaf: parts if leaf.ndim else whole, arguments),
        out_specs=parts,
        check_vma=False,  # sums begin as zeros, the same on all devices, and end as parts
    )(*arguments)


def go_round(
    tile: Callable[[Any, tuple[Any, Any]], tuple[Any, Any]],
    axes: Axes,
    *,
    columns: Any,
    column_sums: Any,
    row_sums: Any,
) -> tuple[Any, Any]:
    """Both sums after `tile(row_sums, (columns, column_sums))` of all tiles of all devices.

    `tile` returns the sums with its own added: all of `row_sums`, and `column_sums` of its columns,
    which travel with them and are home in the end. Called on each device (`on_each_device`).
    """

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        columns, column_sums, row_sums = carry
        following = _pass_on(axes, columns)  # beside the products, which do not wait for it
        row_sums, column_sums = jax.lax.scan(tile, row_sums, _in_tiles((columns, column_sums)))
        return (following, _pass_on(axes, _joined(column_sums)), row_sums), None

    carry = (columns, column_sums, row_sums)
    (_, column_sums, row_sums), _ = jax.lax.scan(turn, carry, length=_num_devices(axes))
    return row_sums, column_sums


def tile_size(length: int) -> int:
    """The largest divisor of at most `TILE`; all of them where that would be a sliver."""
    size = max(size for size in range(1, min(TILE, length) + 1) if length % size == 0)
    return size if size >= min(TILE // 8, length) else length


def _num_devices(axes: Axes) -> int:
    return jax.lax.axis_size(axes) if axes else 1


def _pass_on(axes: Axes, arrays: Any) -> Any:
    """What the device before this one has."""
    if not axes:
        return arrays
    count = _num_devices(axes)
    ring = [(device, (device + 1) % count) for device in range(count)]
    return jax.tree.map(lambda array: jax.lax.ppermute(array, axes, ring), arrays)


def _in_tiles(columns: Any) -> Any:
    """The first dimension split in two: tiles, and columns of a tile (`tile_size`)."""
    size = tile_size(jax.tree.leaves(columns)[0].shape[0])
    return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), columns)


def _joined(tiles: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tiles)
