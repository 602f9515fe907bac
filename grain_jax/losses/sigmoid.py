"""SigLIP's loss (Zhai et al., 2023, arXiv 2303.15343): each image and caption judged as a pair.

-log sigmoid(z (scale cosine + bias)), with z = 1 for an image and its own caption and -1 for any
other pair, summed over all pairs of the batch and divided by its images. No pair is normalised by
others, so there is one pass over the pairs and no sum of columns. In tiles it goes round a ring of
devices like the softmax (`ring`, `tiled`), and backward once more.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from grain_jax.losses.log_sum_exp import DENSE, LogitsForm
from grain_jax.losses.masked_mean import Metrics
from grain_jax.losses.pairs import (
    Columns,
    Rows,
    cosines,
    cotangent,
    is_own,
    left_out,
    make_columns,
    make_rows,
)
from grain_jax.losses.ring import go_round, on_each_device


def sigmoid_loss(
    image_embed: Float[Array, "B E"],
    caption_embed: Float[Array, "B E"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    *,
    key: Integer[Array, "B"] | None,
    form: LogitsForm = DENSE,
) -> tuple[Float[Array, ""], Metrics]:
    """The mean over images of the losses of all their pairs, in place of `contrastive_loss`.

    `key`: an image and the caption of another image are left out, neither a positive nor a negative
    pair, where the captions' keys are equal; None makes them negatives, as published.
    """
    rows = make_rows(image_embed, key=None if key is None else key[:, None])
    columns = make_columns(caption_embed, key=key)
    if form.tiled:
        by_image = _in_tiles(form, rows, columns, logit_scale, logit_bias)
    else:
        found = cosines(rows.embed, columns.embed, form.precision)
        by_image = _losses(rows, columns, logit_scale * found + logit_bias).sum(axis=1)
    total = by_image.sum()
    count = jnp.asarray(image_embed.shape[0], jnp.float32)
    return total / count, {"contrastive": (total, count)}


def _losses(rows: Rows, columns: Columns, logits: Float[Array, "N T"]) -> Float[Array, "N T"]:
    """Of each pair; 0 for one that is left out."""
    losses = jax.nn.softplus(jnp.where(is_own(rows, columns), -logits, logits))
    return jnp.where(left_out(rows, columns, with_own=True), 0.0, losses)


def _slopes(rows: Rows, columns: Columns, logits: Float[Array, "N T"]) -> Float[Array, "N T"]:
    """The derivatives of `_losses` by the logits."""
    own = is_own(rows, columns)
    slopes = jnp.where(own, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
    return jnp.where(left_out(rows, columns, with_own=True), 0.0, slopes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_tiles(
    form: LogitsForm, rows: Rows, columns: Columns, scale: Array, bias: Array
) -> Float[Array, "N"]:
    """The loss of each row. Gradients are those of the embeddings, the scale and the bias."""
    local = functools.partial(_local_forward, form)
    return on_each_device(local, form.axes, (rows, columns, scale, bias))


def _keep(
    form: LogitsForm, rows: Rows, columns: Columns, scale: Array, bias: Array
) -> tuple[Array, Any]:
    return _in_tiles(form, rows, columns, scale, bias), (rows, columns, scale, bias)


def _backward(form: LogitsForm, kept: Any, gradient: Array) -> tuple[Any, ...]:
    rows, columns, *_ = kept
    local = functools.partial(_local_backward, form)
    row, column, by_scale, by_bias = on_each_device(local, form.axes, (*kept, gradient))
    sides = cotangent(rows, row), cotangent(columns, column)
    return *sides, by_scale.sum(), by_bias.sum()


_in_tiles.defvjp(_keep, _backward)


def _local_forward(
    form: LogitsForm, rows: Rows, columns: Columns, scale: Array, bias: Array
) -> Array:
    def tile(row: Array, given: tuple[Columns, Any]) -> tuple[Array, Any]:
        part, nothing = given
        logits = scale * cosines(rows.embed, part.embed, form.precision) + bias
        return row + _losses(rows, part, logits).sum(axis=1), nothing

    row = jnp.zeros(rows.own.shape, jnp.float32)
    row, _ = go_round(tile, form.axes, columns=columns, column_sums=(), row_sums=row)
    return row


def _local_backward(
    form: LogitsForm, rows: Rows, columns: Columns, scale: Array, bias: Array, gradient: Array
) -> tuple[Array, Array, Array, Array]:
    def tile(sums: Any, given: tuple[Columns, Array]) -> tuple[Any, Array]:
        row, by_scale, by_bias = sums
        part, column = given
        found = cosines(rows.embed, part.embed, form.precision)
        slopes = gradient[:, None] * _slopes(rows, part, scale * found + bias)
        row = row + scale * jnp.matmul(slopes, part.embed, precision=form.precision)
        column = column + scale * jnp.matmul(slopes.T, rows.embed, precision=form.precision)
        by_scale = by_scale + (slopes * found).sum(axis=1)
        return (row, by_scale, by_bias + slopes.sum(axis=1)), column

    row = jnp.zeros_like(rows.embed)
    sums, column = go_round(
        tile,
        form.axes,
        columns=columns,
        column_sums=jnp.zeros_like(columns.embed),
        row_sums=(row, row[:, 0], row[:, 0]),
    )
    row, by_scale, by_bias = sums
    return row, column, by_scale, by_bias
