"""Attention within a stream of texts on a TPU, as one kernel: no weights [T, S] in memory.

A stream has texts one after the other (`text_stream`), and a token sees those of its own text up to
itself, at most `reach` before it. A few queries at a time look at the window of keys that ends with
them and starts `reach` earlier: it fits into whole vectors of a TPU, so that softmax is computed
whole. The backward pass takes q, k and v alone, makes the weights again, and goes through the
stream from its end: what a window gives to keys of the chunk before is kept on the chip until that
chunk's turn.

Rows and heads lie as in `pallas_attention`.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from grain_jax.models.pallas_attention import (
    LANES,
    MASKED,
    fills_vectors,
    lanes_of_heads,
    matmul,
    split_over_mesh,
)

ROWS = 16  # of one vector in bfloat16
MIN_QUERIES = 64  # of a window: fewer look at more keys than the shorter windows save
CHUNK_TOKENS = 640  # of a turn of the kernel, about


@dataclass(frozen=True)
class Windows:
    """What is static of a kernel: a turn has a chunk of the stream, whose queries look at `keys` in
    groups of so many `queries`: themselves, and the `reach` before them.
    """

    head_size: int
    tokens: int  # of a stream
    reach: int
    queries: int
    chunk: int  # tokens of a turn, at least `reach`

    @property
    def keys(self) -> int:
        return self.reach + self.queries

    def inside(self, x: Array, chunk: Array, first: int) -> Array:
        """`x`, rows of a chunk from `first` on, with zeros beyond the end of the stream."""
        if self.tokens % self.chunk == 0:
            return x
        row = jax.lax.broadcasted_iota(jnp.int32, (x.shape[0], 1), 0) + first
        return jnp.where(row < self.tokens - chunk * self.chunk, x, jnp.zeros_like(x))


def windows(head_size: int, tokens: int, reach: int) -> Windows:
    """The windows of a stream of `tokens`, of which each sees up to `reach` before it."""
    reach = ROWS * pl.cdiv(max(reach, 1), ROWS)
    keys = LANES * pl.cdiv(reach + MIN_QUERIES, LANES)
    queries = keys - reach
    shortest = pl.cdiv(max(reach, min(CHUNK_TOKENS, tokens)), queries)
    turns = pl.cdiv(tokens, shortest * queries)
    chunk = queries * max(pl.cdiv(pl.cdiv(tokens, turns), queries), pl.cdiv(reach, queries))
    return Windows(head_size, tokens, reach, queries, chunk)


def pallas_attention_in_stream(
    query: Float[Array, "S T N H"],
    key: Float[Array, "S T N H"],
    value: Float[Array, "S T N H"],
    positions: Int[Array, "S K C"],
    *,
    interpret: bool = False,
) -> Float[Array, "S T N H"]:
    """Causal attention within each text of a stream, in one kernel, with its backward pass.

    Args:
      positions: tokens before this one in its text, at most C; T = K * C.
      interpret: computes the kernel's steps by XLA on any platform, for tests.

    Under a mesh each device computes its own streams and heads, as the logical axis rules in force
    split "batch" and "heads".
    """
    streams, tokens, num_heads, head_size = query.shape
    static = windows(head_size, tokens, positions.shape[2])

    def attend(query: Array, key: Array, value: Array, positions: Array) -> Array:
        rows, _, here, _ = query.shape
        flat = (x.reshape(rows, tokens, here * head_size) for x in (query, key, value))
        column = positions.reshape(rows, tokens, 1)
        return _attention(*flat, column, static, interpret).reshape(query.shape)

    split = split_over_mesh(jax.sharding.get_abstract_mesh(), streams, num_heads)
    if split is None:
        return attend(query, key, value, positions)
    rows = PartitionSpec(*split[:1])
    return jax.shard_map(
        attend, in_specs=(split, split, split, rows), out_specs=split, check_vma=False
    )(query, key, value, positions)


def _mask(positions: Array, windows: Windows) -> Array:
    """[queries, keys]: which keys of its window a query sees."""
    shape = (windows.queries, windows.keys)
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    itself = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + windows.reach
    return (key <= itself) & (key >= itself - positions)


def _exp_logits(q: Array, k: Array, mask: Array, windows: Windows) -> tuple[Array, Array]:
    """Weights before their division, and one over their sums."""
    logits = matmul(q, k, (1, 1)) * windows.head_size**-0.5
    logits = jnp.where(mask, logits, MASKED)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights, 1 / weights.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class _Rows:
    """An array's rows of a chunk, and of the chunk `before` where keys are read."""

    ref: Any
    before: Any
    chunk: Array
    windows: Windows

    def own(self, first: int, count: int) -> Array:
        return self.windows.inside(self.ref[0, first : first + count], self.chunk, first)

    def window(self, start: int) -> Array:
        """Those that the queries from `start` on look at."""
        first, stop = start - self.windows.reach, start + self.windows.queries
        own = self.own(max(first, 0), stop - max(first, 0))
        if first >= 0:
            return own
        # What lies before the stream is masked, but has to be finite.
        before = self.before[0, self.windows.chunk + first :]
        return jnp.concatenate([jnp.where(self.chunk > 0, before, jnp.zeros_like(before)), own])


def _forward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    positions_ref: Any,
    k_before: Any,
    v_before: Any,
    out_ref: Any,
    *,
    windows: Windows,
) -> None:
    lanes, chunk = lanes_of_heads(q_ref.shape[2], windows.head_size), pl.program_id(1)
    k_rows = _Rows(k_ref, k_before, chunk, windows)
    v_rows = _Rows(v_ref, v_before, chunk, windows)
    for start in range(0, windows.chunk, windows.queries):
        q = q_ref[0, start : start + windows.queries]
        k, v = k_rows.window(start), v_rows.window(start)
        mask = _mask(positions_ref[0, start : start + windows.queries], windows)
        out = jnp.zeros(q.shape, jnp.float32)
        for head in lanes:
            weights, normalizer = _exp_logits(jnp.where(head, q, 0), k, mask, windows)
            of_head = matmul(weights.astype(v.dtype), v, (1, 0)) * normalizer
            out = jnp.where(head, of_head, out)
        out_ref[0, start : start + windows.queries] = out.astype(out_ref.dtype)


def _backward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    positions_ref: Any,
    k_before: Any,
    v_before: Any,
    dout_ref: Any,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    carry: Any,
    sums: Any,
    *,
    windows: Windows,
) -> None:
    dtype, reach = q_ref.dtype, windows.reach
    lanes, group = lanes_of_heads(q_ref.shape[2], windows.head_size), pl.program_id(2)
    chunk = pl.num_programs(1) - 1 - pl.program_id(1)
    rows = [
        _Rows(ref, before, chunk, windows)
        for ref, before in ((q_ref, None), (k_ref, k_before), (v_ref, v_before), (dout_ref, None))
    ]

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        carry[:, group] = jnp.zeros_like(carry[:, group])

    sums[:, : windows.chunk] = jnp.zeros_like(sums[:, : windows.chunk])
    sums[:, windows.chunk :] = carry[:, group]
    for start in range(0, windows.chunk, windows.queries):
        q, dout = (x.own(start, windows.queries) for x in (rows[0], rows[3]))
        k, v = (x.window(start) for x in rows[1:3])
        mask = _mask(positions_ref[0, start : start + windows.queries], windows)
        dq = jnp.zeros(q.shape, jnp.float32)
        dk = dv = jnp.zeros(k.shape, jnp.float32)
        for head in lanes:
            weights, normalizer = _exp_logits(jnp.where(head, q, 0), k, mask, windows)
            weights *= normalizer
            dweights = matmul(jnp.where(head, dout, 0), v, (1, 1))
            delta = (weights * dweights).sum(axis=1, keepdims=True)
            dlogits = weights * (dweights - delta) * windows.head_size**-0.5
            dlogits = dlogits.astype(dtype)
            dv = jnp.where(head, matmul(weights.astype(dtype), dout, (0, 0)), dv)
            dq = jnp.where(head, matmul(dlogits, k, (1, 0)), dq)
            dk = jnp.where(head, matmul(dlogits, q, (0, 0)), dk)
        dq_ref[0, start : start + windows.queries] = dq.astype(dtype)
        sums[0, start : start + windows.keys] += dk
        sums[1, start : start + windows.keys] += dv
    carry[:, group] = sums[:, :reach]
    dk_ref[0] = sums[0, reach:].astype(dtype)
    dv_ref[0] = sums[1, reach:].astype(dtype)


def _call(
    arrays: tuple[Array, ...], positions: Array, windows: Windows, interpret: bool
) -> list[Array]:
    """The output of (q, k, v); of (q, k, v, gradient of the output) those of q, k and v."""
    streams, tokens, width = arrays[0].shape
    lanes = LANES if fills_vectors(width, windows.head_size) else width
    turns, groups = pl.cdiv(tokens, windows.chunk), width // lanes
    backward = len(arrays) == 4

    def chunk(turn: Any) -> Any:
        return turns - 1 - turn if backward else turn

    shape = (1, windows.chunk, lanes)
    block = pl.BlockSpec(shape, lambda s, c, g: (s, chunk(c), g))
    before = pl.BlockSpec(shape, lambda s, c, g: (s, jnp.maximum(chunk(c) - 1, 0), g))
    column = pl.BlockSpec((1, windows.chunk, 1), lambda s, c, g: (s, chunk(c), 0))
    q, k, v, *dout = arrays
    like = jax.ShapeDtypeStruct(q.shape, q.dtype)
    count = 3 if backward else 1
    scratch = []
    if backward:
        rows = windows.chunk + windows.reach
        scratch = [
            pltpu.VMEM((2, groups, windows.reach, lanes), jnp.float32),
            pltpu.VMEM((2, rows, lanes), jnp.float32),
        ]
    call = pl.pallas_call(
        functools.partial(_backward_kernel if backward else _forward_kernel, windows=windows),
        grid=(streams, turns, groups),
        in_specs=[block, block, block, column, before, before, *[block] * len(dout)],
        out_specs=[block] * count,
        out_shape=[like] * count,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary")
        ),
        interpret=interpret,
        name="attention_backward" if backward else "attention_forward",
        cost_estimate=_cost(q.shape, windows, lanes, backward=backward),
    )
    return list(call(q, k, v, positions, k, v, *dout))


def _cost(
    shape: tuple[int, ...], windows: Windows, lanes: int, *, backward: bool
) -> pl.CostEstimate:
    """What the kernel spends: products over all `lanes` of a block for each head."""
    streams, tokens, width = shape
    weights = streams * width // windows.head_size * tokens * windows.keys
    products, arrays = (5, 9) if backward else (2, 6)
    return pl.CostEstimate(
        flops=products * 2 * weights * lanes,
        transcendentals=weights,
        bytes_accessed=arrays * streams * tokens * width * 2,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    query: Array, key: Array, value: Array, positions: Array, windows: Windows, interpret: bool
) -> Array:
    return _call((query, key, value), positions, windows, interpret)[0]


def _forward(
    query: Array, key: Array, value: Array, positions: Array, windows: Windows, interpret: bool
) -> tuple[Array, Any]:
    out = _attention(query, key, value, positions, windows, interpret)
    return out, (query, key, value, positions)


def _backward(windows: Windows, interpret: bool, residuals: Any, dout: Array) -> Any:
    *arrays, positions = residuals
    return (*_call((*arrays, dout), positions, windows, interpret), None)


_attention.defvjp(_forward, _backward)
