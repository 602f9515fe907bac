"""The table between grain_jax's parameter tree and the official names and layouts.

Official names are `backbone.*` (vision and text towers) and `decoder.*`. Their linear weights are
[outputs, inputs]; attention has one fused weight [3D, D]. A layout converts an array between the
two; it only reorders numbers, so a round trip is exact to the bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from grain_jax.config import ModelConfig

Path = tuple[str, ...]
LOGIT_BIAS = "backbone.logit_bias"


@dataclass(frozen=True)
class Layout:
    """Conversions of an array to the official layout, and back to a given shape."""

    to_official: Callable[[np.ndarray], np.ndarray]
    from_official: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _reshaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array.reshape(shape)


def _transposed(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array.T.reshape(shape)


SAME = Layout(lambda a: a, _reshaped)
ROW = Layout(lambda a: a[None], _reshaped)
TOKEN = Layout(lambda a: a[None, None], _reshaped)
LINEAR = Layout(lambda a: a.reshape(a.shape[0], -1).T, _transposed)  # one input axis
MERGED = Layout(lambda a: a.reshape(-1, a.shape[-1]).T, _transposed)  # several (heads, head size)
FUSED = Layout(  # [D, N, 3, H] and [3 * N * H, D]
    lambda a: a.transpose(2, 1, 3, 0).reshape(-1, a.shape[0]),
    lambda a, s: a.reshape(s[2], s[1], s[3], s[0]).transpose(3, 1, 0, 2),
)
FUSED_BIAS = Layout(  # [N, 3, H] and [3 * N * H]
    lambda a: a.transpose(1, 0, 2).reshape(-1),
    lambda a, s: a.reshape(s[1], s[0], s[2]).transpose(1, 0, 2),
)
PATCH = Layout(lambda a: a.transpose(3, 2, 0, 1), lambda a, _: a.transpose(2, 3, 1, 0))


@dataclass(frozen=True)
class Entry:
    """One official tensor, the path of its parameter, and its layout."""

    official: str
    path: Path
    layout: Layout


def entries(config: ModelConfig, *, sigmoid: bool = False) -> list[Entry]:
    """Every official tensor that the model of `config` uses, with layers not stacked.

    With `share_projection`, `decoder.img_proj` and `decoder.obj_proj` are one parameter.
    `decoder.region_logit_scale`, `visual.norm_pre`, `visual.attn_pool`, `text_projection_bias` and,
    with `sigmoid`, `logit_bias` are additions of grain_jax, which the official code does not have.
    """
    table = [*_vision(config), *_text(config)]
    table.append(Entry("backbone.logit_scale", ("logit_scale",), SAME))
    if sigmoid:
        table.append(Entry(LOGIT_BIAS, ("logit_bias",), SAME))
    if config.type == "clip":
        table.append(Entry("backbone.image_projection", ("image_projection",), SAME))
    else:
        table += _decoder(config)
    if config.region_logit_scale == "own":
        table.append(Entry("decoder.region_logit_scale", ("region_logit_scale",), SAME))
    return table


def unused_shapes(config: ModelConfig, *, num_classes: int = 22_047) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the official tensors that no official code reads.

    A class head of `num_classes` + 1, two tables of positions, and in GRAIN the CLIP projection.
    """
    if config.type == "clip":
        return {}
    width = config.decoder.width
    return {
        "backbone.image_projection": (config.vision.width, config.embed_dim),
        "decoder.class_embed.weight": (num_classes + 1, width),
        "decoder.class_embed.bias": (num_classes + 1,),
        "decoder.pos_embed": (1, 513, width),
        "decoder.temporal_embed": (1, 4, width),
    }


def _norm(official: str, *path: str) -> Iterator[Entry]:
    yield Entry(f"{official}.weight", (*path, "scale"), SAME)
    yield Entry(f"{official}.bias", (*path, "bias"), SAME)


def _linear(
    official: str, *path: str, layout: Layout = LINEAR, bias: Layout = SAME
) -> Iterator[Entry]:
    yield Entry(f"{official}.weight", (*path, "kernel"), layout)
    yield Entry(f"{official}.bias", (*path, "bias"), bias)


def _torch_attention(official: str, *path: str, fused: Path = ()) -> Iterator[Entry]:
    """`nn.MultiheadAttention`, whose fused weight has no module of its own."""
    yield Entry(f"{official}.in_proj_weight", (*path, *fused, "kernel"), FUSED)
    yield Entry(f"{official}.in_proj_bias", (*path, *fused, "bias"), FUSED_BIAS)
    yield from _linear(f"{official}.out_proj", *path, "out", layout=MERGED)


def _vision(config: ModelConfig) -> Iterator[Entry]:
    official = "backbone.visual"
    if config.vision.pooling == "cls":
        yield Entry(f"{official}.cls_token", ("vision", "cls"), TOKEN)
    yield Entry(f"{official}.pos_embed", ("vision", "position"), ROW)
    patch = _linear(f"{official}.patch_embed.proj", "vision", "patch", layout=PATCH)
    yield from patch if config.vision.patch_bias else [next(patch)]
    if config.vision.pre_norm:
        yield from _norm(f"{official}.norm_pre", "vision", "pre_norm")
    for i in range(config.vision.depth):
        block, layer = f"{official}.blocks.{i}", ("vision", f"layer_{i}")
        yield from _norm(f"{block}.norm1", *layer, "norm1")
        qkv = (*layer, "attention", "qkv")
        yield from _linear(f"{block}.attn.qkv", *qkv, layout=FUSED, bias=FUSED_BIAS)
        yield from _linear(f"{block}.attn.proj", *layer, "attention", "out", layout=MERGED)
        if config.vision.qk_norm:
            yield from _norm(f"{block}.attn.q_norm", *layer, "attention", "q_norm")
            yield from _norm(f"{block}.attn.k_norm", *layer, "attention", "k_norm")
        yield from _norm(f"{block}.norm2", *layer, "norm2")
        yield from _linear(f"{block}.mlp.fc1", *layer, "mlp", "fc1")
        yield from _linear(f"{block}.mlp.fc2", *layer, "mlp", "fc2")
    yield from _norm(f"{official}.norm", "vision", "norm")
    if config.type == "clip" and config.vision.pooling == "map":
        pool, own = f"{official}.attn_pool", "attention_pool"
        yield Entry(f"{pool}.probe", (own, "probe"), TOKEN)
        yield from _torch_attention(f"{pool}.attn", own, "attention")
        yield from _norm(f"{pool}.norm", own, "norm")
        yield from _linear(f"{pool}.mlp.fc1", own, "mlp", "fc1")
        yield from _linear(f"{pool}.mlp.fc2", own, "mlp", "fc2")


def _text(config: ModelConfig) -> Iterator[Entry]:
    yield Entry("backbone.token_embedding.weight", ("text", "token"), SAME)
    yield Entry("backbone.positional_embedding", ("text", "position"), SAME)
    for i in range(config.text.depth):
        block, layer = f"backbone.transformer.resblocks.{i}", ("text", f"layer_{i}")
        yield from _norm(f"{block}.ln_1", *layer, "norm1")
        yield from _torch_attention(f"{block}.attn", *layer, "attention", fused=("qkv",))
        yield from _norm(f"{block}.ln_2", *layer, "norm2")
        yield from _linear(f"{block}.mlp.c_fc", *layer, "mlp", "fc1")
        yield from _linear(f"{block}.mlp.c_proj", *layer, "mlp", "fc2")
    yield from _norm("backbone.ln_final", "text", "norm")
    yield Entry("backbone.text_projection", ("text", "projection"), SAME)
    if config.text.projection_bias:
        yield Entry("backbone.text_projection_bias", ("text", "bias"), SAME)


def _decoder(config: ModelConfig) -> Iterator[Entry]:
    yield Entry("decoder.proj.weight", ("decoder", "input", "kernel"), LINEAR)
    yield from _norm("decoder.transformer.pre_norm", "decoder", "input_norm")
    yield Entry("decoder.query_embed.weight", ("decoder", "query"), SAME)
    for i in range(config.decoder.depth):
        block, layer = f"decoder.transformer.decoder.layers.{i}", ("decoder", f"layer_{i}")
        yield from _norm(f"{block}.norm1", *layer, "norm1")
        yield from _torch_attention(f"{block}.self_attn", *layer, "self_attention")
        yield from _norm(f"{block}.norm2", *layer, "norm2")
        yield from _torch_attention(f"{block}.multihead_attn", *layer, "cross_attention")
        yield from _norm(f"{block}.norm3", *layer, "norm3")
        yield from _linear(f"{block}.linear1", *layer, "mlp", "fc1")
        yield from _linear(f"{block}.linear2", *layer, "mlp", "fc2")
    yield from _norm("decoder.transformer.decoder.norm", "decoder", "norm")
    for i in range(3):
        yield from _linear(f"decoder.bbox_embed.layers.{i}", "decoder", "box_head", f"layer{i}")
    yield Entry("decoder.img_proj", ("decoder", "image_projection"), SAME)
    region = "image_projection" if config.decoder.share_projection else "region_projection"
    yield Entry("decoder.obj_proj", ("decoder", region), SAME)
