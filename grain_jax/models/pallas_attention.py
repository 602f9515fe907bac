"""Attention of short sequences on a TPU, as one kernel: no weights [S, T] in memory.

A sequence of a few hundred tokens fits into a TPU core's own memory (VMEM) with all its weights, so
that the running maximum of flash attention (Dao et al., 2022) is not needed: softmax is computed
whole, and again in the backward pass, which takes q, k, v and a normaliser of each query and makes
all three gradients at once. Queries and keys may be normalised on the way.

Tokens are rows and all heads lie beside each other in the last axis, as a matrix product leaves
them. Two heads of 64 share the 128 lanes of a TPU's vectors; where the heads of q are blanked out
but one, the product over all lanes is the product of that head.

A TPU adds up quickly over rows and slowly over lanes. Weights are therefore [keys, queries], and
the means of a LayerNorm are a matrix product. The rows and heads of a turn take each step together,
so that the compiler has something else to do while one of them waits.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import spmd
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from grain_jax.models.mesh_axes import num_parts

LANES = 128
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # as jax.nn.dot_product_attention
MAX_TOKENS = 640  # whose float32 weights and their gradients fit into 16 MiB with a margin
MAX_LANES = 192  # of a block, as of 3 heads of 64; 9 heads were refused for their memory
ROWS_TOKENS = 512  # tokens of the sequences that one turn of the kernel takes, unless one has more
MAX_WEIGHTS = 2 * MAX_TOKENS**2  # of the heads that take a step together
MASK_ROWS = 8  # of one vector in float32
LOG2_E = math.log2(math.e)  # for powers of 2, which a TPU has
NORM_ROWS = ("query scale", "query bias", "key scale", "key bias")


@dataclass(frozen=True)
class _Heads:
    """What is static of a kernel."""

    head_size: int
    causal: bool
    num_keys: int
    norm_eps: float | None

    @property
    def scale(self) -> float:
        return self.head_size**-0.5

    @property
    def power_scale(self) -> float:
        """Of logits that are exponents of 2."""
        return self.scale * LOG2_E


def pallas_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    *,
    causal: bool = False,
    num_keys: int | None = None,
    norms: Float[Array, "4 H"] | None = None,
    norm_eps: float = 1e-6,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product self-attention of N heads in one kernel, with its backward pass.

    Args:
      causal: whether a token sees only those up to itself.
      num_keys: of the T keys, the first so many are seen (default: all).
      norms: scale and bias of a LayerNorm on each head of the queries, then of the keys.
      norm_eps: its epsilon.
      interpret: computes the kernel's steps by XLA on any platform, for tests.

    Under a mesh each device computes its own rows and heads, as the logical axis rules in force
    split "batch" and "heads". Raises ValueError beyond `MAX_TOKENS` tokens.
    """
    batch, tokens, num_heads, head_size = query.shape
    if tokens > MAX_TOKENS:
        raise ValueError(
            f'model.attention="pallas" takes at most {MAX_TOKENS} tokens, as their weights have to '
            f"fit on the chip; given {tokens}. Use model.attention='xla'."
        )
    if num_keys == 0:  # of no key, each as much: the mean of all values, as XLA has it
        mean = value.astype(jnp.float32).mean(axis=1, keepdims=True).astype(value.dtype)
        return jnp.broadcast_to(mean, query.shape)
    heads = _Heads(
        head_size,
        causal,
        tokens if num_keys is None else min(num_keys, tokens),
        None if norms is None else norm_eps,
    )

    def attend(query: Array, key: Array, value: Array, norms: Array | None) -> Array:
        rows, _, here, _ = query.shape
        flat = (x.reshape(rows, tokens, here * head_size) for x in (query, key, value))
        return _attention(*flat, norms, heads, interpret).reshape(query.shape)

    mesh = jax.sharding.get_abstract_mesh()
    split = split_over_mesh(mesh, batch, num_heads)
    if split is None:
        return attend(query, key, value, norms)
    return jax.shard_map(
        attend, in_specs=(split, split, split, PartitionSpec()), out_specs=split, check_vma=False
    )(query, key, value, norms)


def block_lanes(num_heads: int, head_size: int) -> int | None:
    """Lanes of one block of the kernel on a device of the mesh in force: whole vectors where its
    heads fill them, else all of its heads.

    None within a `shard_map`, as of micro-batches over "data": the kernel needs one of its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and AxisType.Manual in mesh.axis_types:
        return None
    split = split_over_mesh(mesh, 1, num_heads)
    axes = None if split is None or len(split) < 3 else split[2]
    width = num_heads // num_parts(mesh, axes) * head_size
    return LANES if fills_vectors(width, head_size) else width


def lanes_of_heads(width: int, head_size: int) -> list[Array]:
    """Which of `width` lanes each head has, [1, width] each."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    return [(lane >= first) & (lane < first + head_size) for first in range(0, width, head_size)]


def fills_vectors(width: int, head_size: int) -> bool:
    """Whether a block of the kernel has whole vectors of whole heads."""
    return width % LANES == 0 and LANES % head_size == 0


def sequences_a_turn(batch: int, tokens: int) -> int:
    """How many of `batch` sequences one turn of the kernel takes: as many as fit and divide it."""
    return next(n for n in range(max(ROWS_TOKENS // tokens, 1), 0, -1) if batch % n == 0)


def split_over_mesh(mesh: Any, batch: int, num_heads: int) -> PartitionSpec | None:
    """How [B, T, N, H] lies on the mesh; None without one, or where all is one device's already.

    XLA cannot split a kernel, so rows that no split divides are computed by every device.
    """
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return None
    wanted = spmd.logical_to_mesh_axes(("batch", None, "heads", None))
    if wanted is None:
        return PartitionSpec()

    def fits(axes: Any, size: int) -> Any:
        return axes if size % num_parts(mesh, axes) == 0 else None

    return PartitionSpec(fits(wanted[0], batch), None, fits(wanted[2], num_heads), None)


def matmul(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Product over these axes of `a` and `b`; float32."""
    axes = ((contract[:1], contract[1:]), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _logits(q: Array, k: Array, heads: _Heads, factor: float) -> Array:
    """Exponents of 2 of one head's weights, [S, T], all lanes but that head's zero in `q`."""
    logits = matmul(k, q, (1, 1))
    if factor != 1:
        logits *= factor
    if heads.causal:
        key = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
        query = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        logits = jnp.where(key <= query, logits, MASKED)
    if heads.num_keys == k.shape[0]:
        return logits
    first = heads.num_keys // MASK_ROWS * MASK_ROWS
    last = logits[first:]
    key = jax.lax.broadcasted_iota(jnp.int32, last.shape, 0) + first
    last = jnp.where(key < heads.num_keys, last, MASKED)
    return jnp.concatenate([logits[:first], last]) if first else last


def _together(rows: int, num_heads: int, tokens: int) -> Iterator[list[tuple[int, int]]]:
    """Groups of (row, head) that take each step together, as many as fit on the chip."""
    pairs = [(row, head) for row in range(rows) for head in range(num_heads)]
    count = max(MAX_WEIGHTS // tokens**2, 1)
    for first in range(0, len(pairs), count):
        yield pairs[first : first + count]


@dataclass(frozen=True)
class _HeadMeans:
    """Means of the numbers of each head by a matrix product, in each of its lanes.

    In bfloat16 the matrix is exact for head sizes that are powers of two, and of what is averaged
    one rounding is left; one over another size is rounded. It is in float32 for inputs of float32.
    """

    means: Array  # [lanes, lanes]

    @classmethod
    def of(cls, lanes: Sequence[Array], head_size: int, dtype: Any) -> "_HeadMeans":
        width = lanes[0].shape[1]
        of_row = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, (width, width), 0), head_size)
        of_lane = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, (width, width), 1), head_size)
        return cls(jnp.where(of_row == of_lane, 1 / head_size, 0.0).astype(dtype))

    def _product(self, x: Array, matrix: Array) -> Array:
        exact = matrix.dtype == jnp.float32
        return jax.lax.dot_general(
            x.astype(matrix.dtype),
            matrix,
            (((1,), (0,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if exact else None,
            preferred_element_type=jnp.float32,
        )

    def mean(self, x: Array) -> Array:
        return self._product(x, self.means)

    def centre(self, x: Array) -> Array:
        """Without the mean."""
        shape = self.means.shape
        row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        itself = jnp.where(row == lane, 1.0, 0.0).astype(self.means.dtype)
        return self._product(x, itself - self.means)


def _rsqrt(x: Array, dtype: Any) -> Array:
    """For bfloat16 by powers, which cost less than `rsqrt` with its Newton step."""
    return jax.lax.rsqrt(x) if dtype == jnp.float32 else jnp.exp2(jnp.log2(x) * -0.5)


def _normalize(x: Array, means: _HeadMeans, heads: _Heads) -> tuple[Array, Array]:
    """Each head without mean and of unit variance, and one over its deviation; float32."""
    assert heads.norm_eps is not None
    centred = means.centre(x)
    rstd = _rsqrt(means.mean(jnp.square(centred)) + heads.norm_eps, x.dtype)
    return centred * rstd, rstd


def _normalize_backward(
    dy: Array, scale: Array, normal: tuple[Array, Array], means: _HeadMeans, factor: float
) -> tuple[Array, Array, Array]:
    """Gradients of a LayerNorm's input, scale and bias, of `factor` times its gradient `dy`;
    `normal` is what `_normalize` returned.
    """
    normalized, rstd = normal
    scaled = dy * (scale * factor)
    along = means.mean(scaled * normalized)
    dx = rstd * (scaled - means.mean(scaled) - normalized * along)
    dscale = (dy * normalized).sum(axis=0, keepdims=True) * factor
    dbias = dy.sum(axis=0, keepdims=True) * factor
    return dx, dscale, dbias


def _forward_kernel(*refs: Any, heads: _Heads) -> None:
    normed = heads.norm_eps is not None
    q_ref, k_ref, v_ref, *others = refs
    norms_ref, (out_ref, *lse_ref) = others[0], others[1:] if normed else others
    rows, tokens, width = q_ref.shape
    lanes, size, dtype = lanes_of_heads(width, heads.head_size), heads.head_size, q_ref.dtype
    q, k, v = ([ref[row] for row in range(rows)] for ref in (q_ref, k_ref, v_ref))
    factor = heads.power_scale
    if normed:
        means = _HeadMeans.of(lanes, size, dtype)
        q_rows, k_rows = norms_ref[:2] * factor, norms_ref[2:]
        for n in range(rows):
            q[n] = (_normalize(q[n], means, heads)[0] * q_rows[:1] + q_rows[1:]).astype(dtype)
            k[n] = (_normalize(k[n], means, heads)[0] * k_rows[:1] + k_rows[1:]).astype(dtype)
        factor = 1.0
    values = [x.T for x in v]  # [lanes, S]
    outs: list[list[Array]] = [[] for _ in range(rows)]
    for pairs in _together(rows, len(lanes), tokens):
        logits = [_logits(jnp.where(lanes[i], q[n], 0), k[n], heads, factor) for n, i in pairs]
        softmax = []
        for x in logits:
            top = x.max(axis=0, keepdims=True)  # [1, T]
            weights = jnp.exp2(x - top)
            softmax.append((weights.astype(dtype), top, weights.sum(axis=0, keepdims=True)))
        for (n, i), (weights, top, total) in zip(pairs, softmax, strict=True):
            if lse_ref:
                lse_ref[0][n, 0, i : i + 1] = top + jnp.log2(total)
            mixed = matmul(values[n][i * size : (i + 1) * size], weights, (1, 0))
            outs[n].append(mixed * (1 / total))
    for n, out in enumerate(outs):
        out_ref[n] = jnp.concatenate(out).T.astype(dtype)


def _backward_kernel(*refs: Any, heads: _Heads) -> None:
    normed = heads.norm_eps is not None
    q_ref, k_ref, v_ref, dout_ref, lse_ref, *others = refs
    norms_ref, gradient_refs = others[0], others[1:] if normed else others
    rows, tokens, width = q_ref.shape
    lanes, size, dtype = lanes_of_heads(width, heads.head_size), heads.head_size, q_ref.dtype
    q, k, v, dout = ([ref[n] for n in range(rows)] for ref in (q_ref, k_ref, v_ref, dout_ref))
    factor = heads.power_scale
    if normed:
        means = _HeadMeans.of(lanes, size, dtype)
        q_rows, k_rows = norms_ref[:2] * factor, norms_ref[2:]
        normal = [[_normalize(side[n], means, heads) for side in (q, k)] for n in range(rows)]
        q = [(x * q_rows[:1] + q_rows[1:]).astype(dtype) for (x, _), _ in normal]
        k = [(x * k_rows[:1] + k_rows[1:]).astype(dtype) for _, (x, _) in normal]
        factor = 1.0
    gradients: list[list[Any]] = [[None] * 3 for _ in range(rows)]
    for pairs in _together(rows, len(lanes), tokens):
        logits = [_logits(jnp.where(lanes[i], q[n], 0), k[n], heads, factor) for n, i in pairs]
        dweights = [matmul(v[n], jnp.where(lanes[i], dout[n], 0), (1, 1)) for n, i in pairs]
        steps = []
        for (n, i), x, dw in zip(pairs, logits, dweights, strict=True):
            weights = jnp.exp2(x - lse_ref[n, 0, i : i + 1])
            delta = (weights * dw).sum(axis=0, keepdims=True)
            steps.append((weights.astype(dtype), (weights * (dw - delta)).astype(dtype)))
        for (n, i), (weights, dlogits) in zip(pairs, steps, strict=True):
            dv = matmul(weights, dout[n], (1, 0))
            dk = matmul(dlogits, q[n], (1, 0))
            dq = matmul(dlogits, k[n], (0, 0))
            gradients[n] = [
                new if old is None else jnp.where(lanes[i], new, old)
                for new, old in zip((dq, dk, dv), gradients[n], strict=True)
            ]
    dnorms = jnp.zeros((len(NORM_ROWS), width), jnp.float32)
    for n, (dq, dk, dv) in enumerate(gradients):
        if normed:  # q has `power_scale` in it
            dq, *dq_norm = _normalize_backward(dq, norms_ref[0:1], normal[n][0], means, heads.scale)
            dk, *dk_norm = _normalize_backward(dk, norms_ref[2:3], normal[n][1], means, 1 / LOG2_E)
            dnorms += jnp.concatenate([*dq_norm, *dk_norm])
        else:
            dq, dk = dq * heads.scale, dk * heads.scale
        for ref, gradient in zip(gradient_refs, (dq, dk, dv), strict=False):
            ref[n] = gradient.astype(dtype)
    if normed:
        gradient_refs[3][0, 0] = dnorms


def _call(
    kernel: Any,
    arrays: Sequence[Array],
    norms: Array | None,
    heads: _Heads,
    interpret: bool,
    *,
    keeps_lse: bool = False,
    lse: Array | None = None,
) -> list[Array]:
    """One array like the inputs from `_forward_kernel`, and where it `keeps_lse` the base-2
    logarithms of the sums of weights, [B, groups, heads of a group, T]; with them, as `lse`, three
    of `_backward_kernel`, and that of `norms`.
    """
    batch, tokens, width = arrays[0].shape
    lanes = LANES if fills_vectors(width, heads.head_size) else width
    rows = sequences_a_turn(batch, tokens)
    block = pl.BlockSpec((rows, tokens, lanes), lambda b, g: (b, 0, g))
    like = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
    grid = (batch // rows, width // lanes)
    of_queries = (lanes // heads.head_size, tokens)
    lse_block = pl.BlockSpec((rows, 1, *of_queries), lambda b, g: (b, g, 0, 0))
    in_specs, outputs = [block] * len(arrays), [(block, like)]
    if keeps_lse:
        shape = (batch, grid[1], *of_queries)
        outputs.append((lse_block, jax.ShapeDtypeStruct(shape, jnp.float32)))
    if lse is not None:
        arrays, in_specs, outputs = [*arrays, lse], [*in_specs, lse_block], outputs * 3
    if norms is not None:
        rows_of_norms = (len(NORM_ROWS), lanes)
        arrays = [*arrays, jnp.tile(norms, (1, lanes // heads.head_size))]
        in_specs.append(pl.BlockSpec(rows_of_norms, lambda b, g: (0, 0)))
        if lse is not None:
            part = pl.BlockSpec((1, 1, *rows_of_norms), lambda b, g: (b, g, 0, 0))
            outputs.append((part, jax.ShapeDtypeStruct((*grid, *rows_of_norms), jnp.float32)))
    moved: list[Array | jax.ShapeDtypeStruct] = [*arrays, *(shape for _, shape in outputs)]
    call = pl.pallas_call(
        functools.partial(kernel, heads=heads),
        grid=grid,
        in_specs=in_specs,
        out_specs=[spec for spec, _ in outputs],
        out_shape=[shape for _, shape in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="attention_forward" if lse is None else "attention_backward",
        cost_estimate=_cost(like.shape, heads.head_size, lanes, moved, backward=lse is not None),
    )
    return list(call(*arrays))


def _cost(
    shape: tuple[int, ...],
    head_size: int,
    lanes: int,
    moved: Sequence[Array | jax.ShapeDtypeStruct],
    *,
    backward: bool,
) -> pl.CostEstimate:
    """What the kernel spends: products over all `lanes` of a block for each head, and what is
    `moved` into it and out of it, once.
    """
    batch, tokens, width = shape
    num_heads = width // head_size
    products = 5 if backward else 2
    return pl.CostEstimate(
        flops=products * 2 * batch * num_heads * tokens * tokens * lanes,
        transcendentals=batch * num_heads * tokens * tokens,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    query: Array, key: Array, value: Array, norms: Array | None, heads: _Heads, interpret: bool
) -> Array:
    return _call(_forward_kernel, (query, key, value), norms, heads, interpret)[0]


def _forward(
    query: Array, key: Array, value: Array, norms: Array | None, heads: _Heads, interpret: bool
) -> tuple[Array, Any]:
    arrays = (query, key, value)
    out, lse = _call(_forward_kernel, arrays, norms, heads, interpret, keeps_lse=True)
    return out, (query, key, value, lse, norms)


def _backward(heads: _Heads, interpret: bool, residuals: Any, dout: Array) -> Any:
    *arrays, lse, norms = residuals
    given = (*arrays, dout)
    dq, dk, dv, *parts = _call(_backward_kernel, given, norms, heads, interpret, lse=lse)
    dnorms = None
    if parts:  # of each group of rows and heads, heads beside each other
        dnorms = parts[0].sum(axis=(0, 1)).reshape(len(NORM_ROWS), -1, heads.head_size).sum(1)
    return dq, dk, dv, dnorms


_attention.defvjp(_forward, _backward)
