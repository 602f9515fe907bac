"""Log-sum-exp over all pairs of a batch that is split over devices, the logits never held whole.

Each device keeps its rows and passes its columns on to the next one, until all columns have been
everywhere. At a time it computes one tile. The backward pass goes round once more and computes the
tiles anew. So what a device holds does not depend on the number of devices, where the dense form
holds a device's rows of the whole matrix; in turn there are four products of all pairs, not three,
and devices wait for their neighbours.

The tiles with a running maximum are those of FlashAttention (Dao et al., 2022), the ring that of
ring attention (Liu et al., 2023).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from grain_jax.losses.pairs import MASKED, Columns, Precision, Rows, cosines, left_out

TILE = 1024  # columns computed at a time, at most


class Tiling(NamedTuple):
    """What does not depend on arrays. `axes`: mesh axes that the batch is split over, or none."""

    axes: tuple[str, ...]
    precision: Precision
    with_own: bool
    by_column: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pair_sums(
    tiling: Tiling, rows: Rows, columns: Columns, scale: Float[Array, ""]
) -> tuple[Float[Array, "N"], Float[Array, "T"]]:
    """`log_sum_exp` in tiles. Gradients are those of the embeddings and the scale.

    With `axes`, within a mesh that has them, and numbers of rows and columns that they divide.
    """
    return _forward(tiling, rows, columns, scale)


def _forward(tiling: Tiling, rows: Rows, columns: Columns, scale: Array) -> tuple[Array, Array]:
    return _on_each_device(_local_forward, tiling, (rows, columns, scale))


def _keep(tiling: Tiling, rows: Rows, columns: Columns, scale: Array) -> tuple[Any, Any]:
    sums = _forward(tiling, rows, columns, scale)
    return sums, (rows, columns, scale, sums)


def _backward(tiling: Tiling, kept: Any, gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    rows, columns, scale, sums = kept
    row, column, by_scale = _on_each_device(
        _local_backward, tiling, (rows, columns, scale, sums, gradients)
    )
    no_row, no_column = (type(side)(*[None] * len(side)) for side in (rows, columns))
    return no_row._replace(embed=row), no_column._replace(embed=column), by_scale.sum()


pair_sums.defvjp(_keep, _backward)


def _on_each_device(function: Any, tiling: Tiling, arguments: tuple[Any, ...]) -> Any:
    """`function` of its part of the arguments; scalars are whole everywhere."""
    function = functools.partial(function, tiling)
    if not tiling.axes:
        return function(*arguments)
    parts, whole = PartitionSpec(tiling.axes), PartitionSpec()
    return jax.shard_map(
        function,
        in_specs=jax.tree.map(lambda leaf: parts if leaf.ndim else whole, arguments),
        out_specs=parts,
        check_vma=False,  # sums begin as zeros, the same on all devices, and end as parts
    )(*arguments)


def _num_devices(tiling: Tiling) -> int:
    return jax.lax.axis_size(tiling.axes) if tiling.axes else 1


def _pass_on(tiling: Tiling, arrays: Any) -> Any:
    """What the device before this one has."""
    if not tiling.axes:
        return arrays
    count = _num_devices(tiling)
    ring = [(device, (device + 1) % count) for device in range(count)]
    return jax.tree.map(lambda array: jax.lax.ppermute(array, tiling.axes, ring), arrays)


def tile_size(length: int) -> int:
    """The largest divisor of at most `TILE`; all of them where that would be a sliver."""
    size = max(size for size in range(1, min(TILE, length) + 1) if length % size == 0)
    return size if size >= min(TILE // 8, length) else length


def _in_tiles(columns: Any) -> Any:
    """The first dimension split in two: tiles, and columns of a tile (`tile_size`)."""
    size = tile_size(jax.tree.leaves(columns)[0].shape[0])
    return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), columns)


def _joined(tiles: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tiles)


def _local_forward(
    tiling: Tiling, rows: Rows, columns: Columns, scale: Array
) -> tuple[Array, Array]:
    def tile(row: Any, given: tuple[Columns, Any]) -> tuple[Any, Any]:
        part, column = given
        logits = scale * cosines(rows.embed, part.embed, tiling.precision)
        logits = jnp.where(left_out(rows, part, with_own=tiling.with_own), MASKED, logits)
        row = _add(row, logits, axis=1)
        return row, _add(column, logits, axis=0) if tiling.by_column else column

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        columns, column, row = carry
        following = _pass_on(tiling, columns)  # beside the products, which do not wait for it
        row, column = jax.lax.scan(tile, row, (_in_tiles(columns), _in_tiles(column)))
        return (following, _pass_on(tiling, _joined(column)), row), None

    carry = (columns, _nothing(columns.number), _nothing(rows.own))
    (_, column, row), _ = jax.lax.scan(turn, carry, length=_num_devices(tiling))
    return _logarithm(row), _logarithm(column) if tiling.by_column else column[1]


def _nothing(like: Array) -> tuple[Array, Array]:
    """The sums of `_add` over no logits."""
    return jnp.full(like.shape, MASKED, jnp.float32), jnp.zeros(like.shape, jnp.float32)


def _add(sums: tuple[Array, Array], logits: Array, *, axis: int) -> tuple[Array, Array]:
    """The largest logit, and the sum of exponentials relative to it."""
    largest, total = sums
    new = jnp.maximum(largest, logits.max(axis=axis))
    total = total * jnp.exp(largest - new)
    return new, total + jnp.exp(logits - jnp.expand_dims(new, axis)).sum(axis=axis)


def _logarithm(sums: tuple[Array, Array]) -> Array:
    largest, total = sums
    return largest + jnp.log(total)


def _local_backward(
    tiling: Tiling,
    rows: Rows,
    columns: Columns,
    scale: Array,
    sums: tuple[Array, Array],
    gradients: tuple[Array, Array],
) -> tuple[Array, Array, Array]:
    def tile(totals: tuple[Array, Array], given: Any) -> tuple[tuple[Array, Array], Array]:
        row, by_scale = totals
        part, column_sum, column_gradient, column = given
        found = cosines(rows.embed, part.embed, tiling.precision)
        logits = scale * found
        slope = gradients[0][:, None] * jnp.exp(logits - sums[0][:, None])
        if tiling.by_column:
            slope = slope + column_gradient[None, :] * jnp.exp(logits - column_sum[None, :])
        slope = jnp.where(left_out(rows, part, with_own=tiling.with_own), 0.0, slope)
        row = row + scale * jnp.matmul(slope, part.embed, precision=tiling.precision)
        column = column + scale * jnp.matmul(slope.T, rows.embed, precision=tiling.precision)
        return (row, by_scale + (slope * found).sum(axis=1)), column

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        passed, column, totals = carry
        following = _pass_on(tiling, passed)
        totals, column = jax.lax.scan(tile, totals, _in_tiles((*passed, column)))
        return (following, _pass_on(tiling, _joined(column)), totals), None

    row = jnp.zeros_like(rows.embed)
    passed = (columns, sums[1], gradients[1])
    carry = (passed, jnp.zeros_like(columns.embed), (row, row[:, 0]))
    (_, column, (row, by_scale)), _ = jax.lax.scan(turn, carry, length=_num_devices(tiling))
    return row, column, by_scale
