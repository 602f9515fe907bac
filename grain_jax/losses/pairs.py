"""Cosines of pairs of embeddings, and which pairs of a contrastive loss are left out."""

from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

MASKED = -1e30  # logit of a pair left out: finite, so that its gradient is 0 and not NaN

Precision = Literal["highest", "high", "default"]  # of matrix products, by JAX's names


def normalize(x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
    """Unit length along the last axis, float32; zero stays zero."""
    x = x.astype(jnp.float32)
    squared = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


class Rows(NamedTuple):
    """One side of the pairs. Embeddings are of length 1."""

    embed: Float[Array, "N E"]
    own: Int[Array, "N"]  # the number of the column that belongs to a row
    key: Integer[Array, "N K"]  # a column with one of these is no negative of the row; K may be 0
    has_key: Bool[Array, "N K"]  # which of them count


class Columns(NamedTuple):
    """The other side."""

    embed: Float[Array, "T E"]
    number: Int[Array, "T"]
    key: Integer[Array, "T"]
    real: Bool[Array, "T"]  # the others are left out


Side = TypeVar("Side", Rows, Columns)


def cotangent(side: Side, embed: Array) -> Side:
    """That of one side, for a backward pass of one's own: only its embeddings have one."""
    nothing: Any = [None] * len(side)
    return type(side)(*nothing)._replace(embed=embed)


def make_rows(
    embed: Float[Array, "*rows E"],
    *,
    own: Int[Array, "*rows"] | None = None,
    key: Integer[Array, "*rows K"] | None = None,
    has_key: Bool[Array, "*rows K"] | None = None,
) -> Rows:
    """Rows of embeddings of any length and leading dimensions, which are joined.

    `own`: each row's place by default. `key`: none by default. `has_key`: all by default.
    """
    flat = normalize(embed.reshape(-1, embed.shape[-1]))
    size = flat.shape[0]
    keys = jnp.zeros((size, 0), jnp.uint32) if key is None else key.reshape(size, -1)
    return Rows(
        flat,
        jnp.arange(size) if own is None else own.reshape(size),
        keys,
        jnp.ones(keys.shape, bool) if has_key is None else has_key.reshape(keys.shape),
    )


def make_columns(
    embed: Float[Array, "*columns E"],
    *,
    number: Int[Array, "*columns"] | None = None,
    key: Integer[Array, "*columns"] | None = None,
    real: Bool[Array, "*columns"] | None = None,
) -> Columns:
    """Columns likewise. `number`: each column's place by default. `real`: all by default."""
    flat = normalize(embed.reshape(-1, embed.shape[-1]))
    size = flat.shape[0]
    return Columns(
        flat,
        jnp.arange(size) if number is None else number.reshape(size),
        jnp.zeros(size, jnp.uint32) if key is None else key.reshape(size),
        jnp.ones(size, bool) if real is None else real.reshape(size),
    )


def cosines(
    rows: Float[Array, "N E"], columns: Float[Array, "T E"], precision: Precision
) -> Float[Array, "N T"]:
    """Of all pairs of embeddings of length 1. "highest" is full float32, which a scale of 100 needs
    for what shorter mantissas would get wrong; on a TPU it is six products.
    """
    return jnp.matmul(rows, columns.T, precision=precision)


def paired_cosines(
    a: Float[Array, "*#batch E"], b: Float[Array, "*#batch E"]
) -> Float[Array, "*batch"]:
    """Of the pairs in the same place, of any length."""
    return (normalize(a) * normalize(b)).sum(axis=-1)


def left_out(rows: Rows, columns: Columns, *, with_own: bool) -> Bool[Array, "N T"]:
    """Pairs with a column that is not real, or whose key is one of the row's.

    A row's own column always counts (`with_own`), or never.
    """
    same = jnp.zeros((rows.own.shape[0], columns.number.shape[0]), bool)
    for place in range(rows.key.shape[1]):
        equal = rows.key[:, place, None] == columns.key[None, :]
        same = same | (equal & rows.has_key[:, place, None])
    own = is_own(rows, columns)
    return (same & ~own if with_own else same | own) | ~columns.real[None, :]


def is_own(rows: Rows, columns: Columns) -> Bool[Array, "N T"]:
    """Pairs of a row and its own column."""
    return rows.own[:, None] == columns.number[None, :]
