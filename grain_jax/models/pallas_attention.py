"""Attention of short sequences on a TPU, as one kernel: no weights [T, S] in memory.

A sequence of a few hundred tokens fits into a TPU core's own memory (VMEM) with all its weights, so
that neither the running maximum nor the stored normaliser of flash attention (Dao et al., 2022) is
needed: softmax is computed whole, and again in the backward pass, which takes q, k and v alone and
makes all three gradients at once. Queries and keys may be normalised on the way.

Tokens are rows and all heads lie beside each other in the last axis, as a matrix product leaves
them: nothing is transposed. Two heads of 64 share the 128 lanes of a TPU's vectors; where the heads
of q are blanked out but one, the product over all lanes is the product of that head.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import spmd
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

LANES = 128
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # as jax.nn.dot_product_attention
MAX_TOKENS = 640  # whose float32 weights and their gradients fit into 16 MiB with a margin
MAX_LANES = 192  # of a block, as of 3 heads of 64; 9 heads were refused for their memory
ROWS_TOKENS = 256  # tokens of the sequences that one turn of the kernel takes, unless one has more
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
    names = (axes,) if isinstance(axes, str) else axes or ()
    width = num_heads // math.prod(mesh.shape[name] for name in names) * head_size
    return LANES if fills_vectors(width, head_size) else width


def lanes_of_heads(width: int, head_size: int) -> list[Array]:
    """Which of `width` lanes each head has, [1, width] each."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    return [(lane >= first) & (lane < first + head_size) for first in range(0, width, head_size)]


def fills_vectors(width: int, head_size: int) -> bool:
    """Whether a block of the kernel has whole vectors of whole heads."""
    return width % LANES == 0 and LANES % head_size == 0


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
        names = (axes,) if isinstance(axes, str) else axes or ()
        return axes if size % math.prod(mesh.shape[name] for name in names) == 0 else None

    return PartitionSpec(fits(wanted[0], batch), None, fits(wanted[2], num_heads), None)


def matmul(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Product over these axes of `a` and `b`; float32."""
    axes = ((contract[:1], contract[1:]), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _exp_logits(q: Array, k: Array, heads: _Heads) -> tuple[Array, Array, Array | None]:
    """Weights [T, S] before their division, one over their sums, and the mask (None: all seen)."""
    logits = matmul(q, k, (1, 1)) * heads.scale
    mask = None
    if heads.causal or heads.num_keys < k.shape[0]:
        column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        mask = column < heads.num_keys
        if heads.causal:
            mask &= column <= jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
        logits = jnp.where(mask, logits, MASKED)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights, 1 / weights.sum(axis=1, keepdims=True), mask


def _head_means(x: Array, lanes: Sequence[Array], head_size: int) -> Array:
    """Mean of each head in each of its lanes, [T, lanes]."""
    means = jnp.zeros_like(x)
    for head in lanes:
        total = jnp.where(head, x, 0.0).sum(axis=1, keepdims=True)
        means = jnp.where(head, total / head_size, means)
    return means


def _normalize(x: Array, lanes: Sequence[Array], heads: _Heads) -> tuple[Array, Array]:
    """Each head without mean and of unit variance, and one over its deviation; float32."""
    assert heads.norm_eps is not None
    x = x.astype(jnp.float32)
    centred = x - _head_means(x, lanes, heads.head_size)
    variance = _head_means(jnp.square(centred), lanes, heads.head_size)
    rstd = jax.lax.rsqrt(variance + heads.norm_eps)
    return centred * rstd, rstd


def _normalize_backward(
    dy: Array, scale: Array, normal: tuple[Array, Array], lanes: Sequence[Array], size: int
) -> tuple[Array, Array, Array]:
    """Gradients of a LayerNorm's input, scale and bias; `normal` is what `_normalize` returned."""
    normalized, rstd = normal
    scaled = dy * scale
    along = _head_means(scaled * normalized, lanes, size)
    dx = rstd * (scaled - _head_means(scaled, lanes, size) - normalized * along)
    dscale = (dy * normalized).sum(axis=0, keepdims=True)
    dbias = dy.sum(axis=0, keepdims=True)
    return dx, dscale, dbias


def _forward_kernel(*refs: Any, heads: _Heads) -> None:
    q_ref, k_ref, v_ref, *norms_ref, out_ref = refs
    lanes = lanes_of_heads(q_ref.shape[2], heads.head_size)
    for row in range(q_ref.shape[0]):
        q, k, v = q_ref[row], k_ref[row], v_ref[row]
        if norms_ref:
            norms = norms_ref[0][...]
            dtype = q.dtype
            q = (_normalize(q, lanes, heads)[0] * norms[0:1] + norms[1:2]).astype(dtype)
            k = (_normalize(k, lanes, heads)[0] * norms[2:3] + norms[3:4]).astype(dtype)
        out = jnp.zeros(q.shape, jnp.float32)
        for head in lanes:
            weights, normalizer, _ = _exp_logits(jnp.where(head, q, 0), k, heads)
            of_head = matmul(weights.astype(v.dtype), v, (1, 0)) * normalizer
            out = jnp.where(head, of_head, out)
        out_ref[row] = out.astype(out_ref.dtype)


def _backward_kernel(*refs: Any, heads: _Heads) -> None:
    normed = heads.norm_eps is not None
    q_ref, k_ref, v_ref, dout_ref, *others = refs
    norms_ref, gradient_refs = others[0], others[1:] if normed else others
    lanes = lanes_of_heads(q_ref.shape[2], heads.head_size)
    dtype, size = q_ref.dtype, heads.head_size
    dnorms = jnp.zeros((len(NORM_ROWS), q_ref.shape[2]), jnp.float32)
    for row in range(q_ref.shape[0]):
        q, k, v, dout = q_ref[row], k_ref[row], v_ref[row], dout_ref[row]
        if normed:
            norms = norms_ref[...]
            q_normal, k_normal = (_normalize(x, lanes, heads) for x in (q, k))
            q = (q_normal[0] * norms[0:1] + norms[1:2]).astype(dtype)
            k = (k_normal[0] * norms[2:3] + norms[3:4]).astype(dtype)
        dq = dk = dv = jnp.zeros(q.shape, jnp.float32)
        for head in lanes:
            weights, normalizer, mask = _exp_logits(jnp.where(head, q, 0), k, heads)
            weights *= normalizer
            dweights = matmul(jnp.where(head, dout, 0), v, (1, 1))
            delta = (weights * dweights).sum(axis=1, keepdims=True)
            dlogits = weights * (dweights - delta) * heads.scale
            if mask is not None:
                dlogits = jnp.where(mask, dlogits, 0.0)
            dlogits = dlogits.astype(dtype)
            dv = jnp.where(head, matmul(weights.astype(dtype), dout, (0, 0)), dv)
            dq = jnp.where(head, matmul(dlogits, k, (1, 0)), dq)
            dk = jnp.where(head, matmul(dlogits, q, (0, 0)), dk)
        if normed:
            dq, *dq_norm = _normalize_backward(dq, norms[0:1], q_normal, lanes, size)
            dk, *dk_norm = _normalize_backward(dk, norms[2:3], k_normal, lanes, size)
            dnorms += jnp.concatenate([*dq_norm, *dk_norm])
        for ref, gradient in zip(gradient_refs, (dq, dk, dv), strict=False):
            ref[row] = gradient.astype(dtype)
    if normed:
        gradient_refs[3][0, 0] = dnorms


def _call(
    kernel: Any, arrays: Sequence[Array], norms: Array | None, heads: _Heads, interpret: bool
) -> list[Array]:
    """One array like the inputs from `_forward_kernel`; three, and that of `norms`, backward."""
    batch, tokens, width = arrays[0].shape
    lanes = LANES if fills_vectors(width, heads.head_size) else width
    rows = next(n for n in range(max(ROWS_TOKENS // tokens, 1), 0, -1) if batch % n == 0)
    block = pl.BlockSpec((rows, tokens, lanes), lambda b, g: (b, 0, g))
    like = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
    backward = kernel is _backward_kernel
    in_specs, outputs = [block] * len(arrays), [(block, like)] * (3 if backward else 1)
    grid = (batch // rows, width // lanes)
    if norms is not None:
        shape = (len(NORM_ROWS), lanes)
        arrays = [*arrays, jnp.tile(norms, (1, lanes // heads.head_size))]
        in_specs.append(pl.BlockSpec(shape, lambda b, g: (0, 0)))
        if backward:
            part = pl.BlockSpec((1, 1, *shape), lambda b, g: (b, g, 0, 0))
            outputs.append((part, jax.ShapeDtypeStruct((*grid, *shape), jnp.float32)))
    call = pl.pallas_call(
        functools.partial(kernel, heads=heads),
        grid=grid,
        in_specs=in_specs,
        out_specs=[spec for spec, _ in outputs],
        out_shape=[shape for _, shape in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="attention_backward" if backward else "attention_forward",
        cost_estimate=_cost(like.shape, heads.head_size, lanes, backward=backward),
    )
    return list(call(*arrays))


def _cost(shape: tuple[int, ...], head_size: int, lanes: int, *, backward: bool) -> pl.CostEstimate:
    """What the kernel spends: products over all `lanes` of a block for each head."""
    batch, tokens, width = shape
    num_heads = width // head_size
    products, arrays = (5, 7) if backward else (2, 4)
    return pl.CostEstimate(
        flops=products * 2 * batch * num_heads * tokens * tokens * lanes,
        transcendentals=batch * num_heads * tokens * tokens,
        bytes_accessed=arrays * batch * tokens * width * 2,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    query: Array, key: Array, value: Array, norms: Array | None, heads: _Heads, interpret: bool
) -> Array:
    return _call(_forward_kernel, (query, key, value), norms, heads, interpret)[0]


def _forward(
    query: Array, key: Array, value: Array, norms: Array | None, heads: _Heads, interpret: bool
) -> tuple[Array, Any]:
    return _attention(query, key, value, norms, heads, interpret), (query, key, value, norms)


def _backward(heads: _Heads, interpret: bool, residuals: Any, dout: Array) -> Any:
    *arrays, norms = residuals
    dq, dk, dv, *parts = _call(_backward_kernel, (*arrays, dout), norms, heads, interpret)
    dnorms = None
    if parts:  # of each group of rows and heads, heads beside each other
        dnorms = parts[0].sum(axis=(0, 1)).reshape(len(NORM_ROWS), -1, heads.head_size).sum(1)
    return dq, dk, dv, dnorms


_attention.defvjp(_forward, _backward)
