"""Scaled dot-product attention, and which implementation computes it on which device."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.linen import spmd
from jaxtyping import Array, Float, Int

from grain_jax.models.mesh_axes import num_parts
from grain_jax.models.pallas_attention import LANES, MAX_LANES, MAX_TOKENS, block_lanes

AttentionKind = Literal["auto", "xla", "cudnn", "pallas"]
ChosenAttention = Literal["xla", "cudnn", "pallas"]
FLASH_CAPABILITY = 8.0  # compute capability of the oldest NVIDIA GPU with cudnn's flash attention
FLASH_MIN_TOKENS = 33  # with fewer, XLA's own attention is as fast on a GPU (docs/experiments.md)
# Of the number of tokens, for kernels: jax 0.11 refuses to train with cudnn on odd ones, and a TPU
# stores tokens by eights, so that XLA would copy others to and fro around a kernel.
TOKENS_MULTIPLE = 8


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    *,
    causal: bool = False,
    implementation: Literal["auto", "xla", "cudnn"] = "auto",
    num_keys: int | None = None,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention of N heads, softmax in float32, by `jax.nn`.

    `implementation`: "xla", "cudnn" (flash attention on NVIDIA GPUs, half precision only), or
    "auto": whichever of these `chosen_attention` names, xla on a TPU. Raises ValueError for cudnn
    where it does not apply; its kernels need an NVIDIA GPU of compute capability 8.0 (A100, RTX 30)
    or newer. Of the S keys, the first `num_keys` are looked at (default: all).
    """
    chosen = chosen_attention(
        implementation,
        num_tokens=query.shape[1],
        dtype=query.dtype,
        head_size=query.shape[-1],
        num_heads=query.shape[2],
    )
    masked = None
    if num_keys is not None and num_keys < key.shape[1]:
        masked = jnp.full((key.shape[0],), num_keys, jnp.int32)
    with jax.numpy_dtype_promotion("standard"):  # jax's own code relies on it for half precision
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=causal,
            key_value_seq_lengths=masked,
            implementation="cudnn" if chosen == "cudnn" else "xla",
        )


def attend_heads_as_rows(
    query: Float[Array, "B T D"],
    key: Float[Array, "B S D"],
    value: Float[Array, "B S D"],
    *,
    num_heads: int,
    num_keys: int | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T D"]:
    """Attention of a few queries, as `attend`, all heads beside each other in the last axis.

    Each query is a row for each head, zero but for the numbers of that head, so that all heads take
    one product, with keys and values as a matrix product leaves them. The product computes N times
    as much as one per head, and saves the transposed copies that XLA makes for those on a TPU
    (docs/experiments.md).

    Args:
      num_keys: of the S keys, the first so many are seen (default: all).
      drop: called on the weights [B, N, T, S] in float32; those of unseen keys are 0.
    """
    batch, tokens, width = query.shape
    size = width // num_heads
    head, of_number = jnp.arange(num_heads), jnp.arange(width) // size
    own = head[None, :, None, None] == of_number[None, None, None]  # [1, N, 1, D]

    def of_head(x: Array) -> Array:  # [B, N or 1, T, D]
        return jnp.where(own, x, jnp.zeros((), x.dtype))

    rows = of_head(query[:, None]).reshape(batch, num_heads * tokens, width)
    logits = jnp.einsum("brd,bsd->brs", rows, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(without_padding(logits * size**-0.5, num_keys))
    if drop is not None:
        weights = drop(weights.reshape(batch, num_heads, tokens, -1)).reshape(weights.shape)
    mixed = jnp.einsum("brs,bsd->brd", weights.astype(value.dtype), value)
    return of_head(mixed.reshape(batch, num_heads, tokens, width)).sum(axis=1)


def without_padding(logits: Float[Array, "*n S"], num_keys: int | None) -> Float[Array, "*n S"]:
    """Logits of which the last, those beyond the first `num_keys`, get no weight."""
    if num_keys is None or num_keys >= logits.shape[-1]:
        return logits
    seen = jnp.arange(logits.shape[-1]) < num_keys
    return jnp.where(seen.reshape((1,) * (logits.ndim - 1) + seen.shape), logits, -jnp.inf)


def takes_heads_as_rows(num_heads: int, *, num_queries: int, width: int) -> bool:
    """Whether queries attend by `attend_heads_as_rows`: on TPUs, where the rows are at most as many
    as the numbers of a query, and the mesh does not split the heads, which its products add up.
    """
    return is_for_tpu() and num_queries * num_heads <= width and not _splits_heads(num_heads)


def _splits_heads(num_heads: int) -> bool:
    """Whether the mesh in force splits them over devices, also within a `shard_map` over other
    axes.
    """
    mesh, wanted = jax.sharding.get_abstract_mesh(), spmd.logical_to_mesh_axes(("heads",))
    if mesh.empty or not wanted:
        return False
    devices = num_parts(mesh, wanted[0])
    return devices > 1 and num_heads % devices == 0


def attend_in_stream(
    query: Float[Array, "S T N H"],
    key: Float[Array, "S T N H"],
    value: Float[Array, "S T N H"],
    positions: Int[Array, "S K C"],
) -> Float[Array, "S T N H"]:
    """Causal attention within each text of a stream of T = K * C tokens, as `attend`, by XLA.

    `positions`: tokens before this one in its text, at most C of them: a block of C tokens looks at
    itself and the block before it, and never at a whole stream.
    """
    streams, blocks, length = positions.shape
    keys = length if blocks == 1 else 2 * length

    def split(x: Array) -> Array:  # [S * K, C, ...]
        return x.reshape(streams * blocks, length, *x.shape[2:])

    def with_previous(x: Array) -> Array:  # [S * K, keys, ...]
        if blocks == 1:
            return split(x)
        x = x.reshape(streams, blocks, length, *x.shape[2:])
        padding = ((0, 0), (1, 0), *((0, 0),) * (x.ndim - 2))
        before = jnp.pad(x[:, :-1], padding)
        return jnp.concatenate([before, x], axis=2).reshape(-1, keys, *x.shape[3:])

    place = jnp.arange(keys)
    earlier = place[keys - length :, None] - place[None]  # [C, keys], by how many tokens a key is
    same = earlier[None] <= positions.reshape(-1, length, 1)
    with jax.numpy_dtype_promotion("standard"):  # jax's own code relies on it for half precision
        mixed = jax.nn.dot_product_attention(
            split(query),
            with_previous(key),
            with_previous(value),
            mask=(same & (earlier >= 0)[None])[:, None],
            implementation="xla",
        )
    return mixed.reshape(query.shape)


def chosen_attention(
    implementation: AttentionKind,
    *,
    num_tokens: int,
    dtype: Any,
    head_size: int,
    num_heads: int = 2,
) -> ChosenAttention:
    """What self-attention is computed with: for "auto", a kernel where one applies and is faster.

    The TPU's kernel does not apply to micro-batches of several devices of "data", which are in a
    `shard_map` of their own. Raises ValueError for "cudnn" and "pallas" where they do not apply.
    """
    half = dtype in (jnp.bfloat16, jnp.float16)
    tpu = is_for_tpu()
    fits = head_size % 8 == 0 and head_size <= 128
    flash = half and fits and not tpu and has_flash(jax.devices()[0])
    lanes = block_lanes(num_heads, head_size)
    pallas = tpu and LANES % head_size == 0 and num_tokens <= MAX_TOKENS
    pallas = pallas and lanes is not None and lanes <= MAX_LANES
    if implementation == "cudnn" and not flash:
        raise ValueError(
            "model.attention='cudnn' needs an NVIDIA GPU of compute capability 8.0 or newer, half "
            "precision and a head size that is a multiple of 8 up to 128; this is "
            f"{device_kind()}, {dtype} and {head_size}. Use 'auto', or change the model."
        )
    if implementation == "pallas" and not pallas:
        raise ValueError(
            f"model.attention='pallas' needs a TPU, a head size that divides {LANES}, at most "
            f"{MAX_TOKENS} tokens, and {LANES} or up to {MAX_LANES} numbers of all heads of a "
            f"device; this is {device_kind()}, {head_size}, {num_tokens} and "
            f"{'micro-batches over data' if lanes is None else num_heads * head_size}. Use 'auto', "
            "or change the model."
        )
    if implementation != "auto":
        return implementation
    if pallas and half:
        return "pallas"
    return "cudnn" if flash and num_tokens >= FLASH_MIN_TOKENS else "xla"


def chosen_in_stream(
    implementation: AttentionKind, *, reach: int, dtype: Any, head_size: int, num_heads: int
) -> Literal["xla", "pallas"]:
    """As `chosen_attention`, within a stream whose tokens see up to `reach` before them; xla for
    "cudnn", whose kernels do not take a stream.
    """
    if implementation in ("xla", "cudnn"):
        return "xla"
    chosen = chosen_attention(
        implementation,
        num_tokens=reach + 1,
        dtype=dtype,
        head_size=head_size,
        num_heads=num_heads,
    )
    return "pallas" if chosen == "pallas" else "xla"


def pad_tokens(
    x: Float[Array, "B T D"], implementation: AttentionKind, *, num_heads: int
) -> tuple[Float[Array, "B P D"], ChosenAttention]:
    """The tokens of a tower as its attention takes them, zeros last, and `chosen_attention`.

    Padding the tokens once costs less than padding queries, keys and values in every layer.
    """
    length, width = x.shape[1:]
    chosen = chosen_attention(
        implementation,
        num_tokens=length,
        dtype=x.dtype,
        head_size=width // num_heads,
        num_heads=num_heads,
    )
    padding = 0 if chosen == "xla" else -length % TOKENS_MULTIPLE
    return jnp.pad(x, ((0, 0), (0, padding), (0, 0))), chosen


def device_kind() -> str:
    """Of the devices of the mesh in force, which need not be there; without one, of this process.

    A step is compiled for a TPU on a machine without one, under a mesh of its devices.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.devices()[0] if device is None else device).device_kind


def is_for_tpu() -> bool:
    """Whether what is traced now will run on TPUs."""
    return device_kind().startswith("TPU")


def has_flash(device: Any) -> bool:
    """Whether cudnn's flash attention runs on a JAX device; no on CPU, TPU, ROCm and older cards.

    ROCm has no compute capability, or names it as "gfx90a".
    """
    if device.platform not in ("gpu", "cuda"):
        return False
    if "rocm" in str(getattr(device.client, "platform_version", "")).lower():
        return False
    try:
        return float(device.compute_capability) >= FLASH_CAPABILITY
    except (AttributeError, TypeError, ValueError):
        return False
