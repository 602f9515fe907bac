"""Log-sum-exp over all pairs of a batch that is split over devices, the logits never held whole.

In tiles that go round a ring of devices (`ring`), forward and once more backward, where they are
computed anew. So what a device holds does not depend on the number of devices, where the dense form
holds a device's rows of the whole matrix; in turn there are four products of all pairs, not three,
and devices wait for their neighbours.

The tiles with a running maximum are those of FlashAttention (Dao et al., 2022).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grain_jax.losses.pairs import (
    MASKED,
    Columns,
    Precision,
    Rows,
    cosines,
    cotangent,
    left_out,
)
from grain_jax.losses.ring import go_round, on_each_device


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
    local = functools.partial(_local_forward, tiling)
    return on_each_device(local, tiling.axes, (rows, columns, scale))


def _keep(tiling: Tiling, rows: Rows, columns: Columns, scale: Array) -> tuple[Any, Any]:
    sums = _forward(tiling, rows, columns, scale)
    return sums, (rows, columns, scale, sums)


def _backward(tiling: Tiling, kept: Any, gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    rows, columns, scale, sums = kept
    row, column, by_scale = on_each_device(
        functools.partial(_local_backward, tiling),
        tiling.axes,
        (rows, columns, scale, sums, gradients),
    )
    return cotangent(rows, row), cotangent(columns, column), by_scale.sum()


pair_sums.defvjp(_keep, _backward)


def _local_forward(
    tiling: Tiling, rows: Rows, columns: Columns, scale: Array
) -> tuple[Array, Array]:
    def tile(row: Any, given: tuple[Columns, Any]) -> tuple[Any, Any]:
        part, column = given
        logits = scale * cosines(rows.embed, part.embed, tiling.precision)
        logits = jnp.where(left_out(rows, part, with_own=tiling.with_own), MASKED, logits)
        row = _add(row, logits, axis=1)
        return row, _add(column, logits, axis=0) if tiling.by_column else column

    row, column = go_round(
        tile,
        tiling.axes,
        columns=columns,
        column_sums=_nothing(columns.number),
        row_sums=_nothing(rows.own),
    )
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
        (part, column_sum, column_gradient), column = given
        found = cosines(rows.embed, part.embed, tiling.precision)
        logits = scale * found
        slope = gradients[0][:, None] * jnp.exp(logits - sums[0][:, None])
        if tiling.by_column:
            slope = slope + column_gradient[None, :] * jnp.exp(logits - column_sum[None, :])
        slope = jnp.where(left_out(rows, part, with_own=tiling.with_own), 0.0, slope)
        row = row + scale * jnp.matmul(slope, part.embed, precision=tiling.precision)
        column = column + scale * jnp.matmul(slope.T, rows.embed, precision=tiling.precision)
        return (row, by_scale + (slope * found).sum(axis=1)), column

    row = jnp.zeros_like(rows.embed)
    (row, by_scale), column = go_round(
        tile,
        tiling.axes,
        columns=(columns, sums[1], gradients[1]),
        column_sums=jnp.zeros_like(columns.embed),
        row_sums=(row, row[:, 0]),
    )
    return row, column, by_scale
