"""Rename state dicts of other CLIP-like models to the names of the official code.

A rule is (pattern, replacement) for a whole name; a name without a rule is unexpected. Separate
query, key and value projections are joined as `[q; k; v]`, as in `nn.MultiheadAttention`.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

StateDict = Mapping[str, Shaped[np.ndarray, "..."]]
Rules = Sequence[tuple[str, str]]

_IMAGE, _TEXT = "backbone.visual", "backbone"


def _in_layers(source: str, target: str, rules: Rules) -> Rules:
    """The rules for each numbered layer; the number is the first group."""
    return [(rf"{source}\.(\d+)\.{old}", rf"{target}.\1.{new}") for old, new in rules]


HUGGINGFACE: Rules = (  # CLIPModel and SiglipModel
    (r"vision_model\.embeddings\.class_embedding", rf"{_IMAGE}.cls_token"),
    (r"vision_model\.embeddings\.patch_embedding\.(\w+)", rf"{_IMAGE}.patch_embed.proj.\1"),
    (r"vision_model\.embeddings\.position_embedding\.weight", rf"{_IMAGE}.pos_embed"),
    (
        r"vision_model\.pre_layrnorm\.(\w+)",
        rf"{_IMAGE}.norm_pre.\1",
    ),  # spelled like that in transformers
    *_in_layers(
        r"vision_model\.encoder\.layers",
        rf"{_IMAGE}.blocks",
        [
            (r"layer_norm(\d)\.(\w+)", r"norm\2.\3"),
            (r"mlp\.(\w+)\.(\w+)", r"mlp.\2.\3"),
            (r"self_attn\.qkv\.(\w+)", r"attn.qkv.\2"),
            (r"self_attn\.out_proj\.(\w+)", r"attn.proj.\2"),
        ],
    ),
    (r"vision_model\.post_layernorm\.(\w+)", rf"{_IMAGE}.norm.\1"),
    (r"vision_model\.head\.probe", rf"{_IMAGE}.attn_pool.probe"),
    (r"vision_model\.head\.attention\.(.+)", rf"{_IMAGE}.attn_pool.attn.\1"),
    (r"vision_model\.head\.layernorm\.(\w+)", rf"{_IMAGE}.attn_pool.norm.\1"),
    (r"vision_model\.head\.mlp\.(.+)", rf"{_IMAGE}.attn_pool.mlp.\1"),
    (r"visual_projection\.weight", f"{_TEXT}.image_projection"),
    (r"text_model\.embeddings\.token_embedding\.weight", f"{_TEXT}.token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", f"{_TEXT}.positional_embedding"),
    *_in_layers(
        r"text_model\.encoder\.layers",
        rf"{_TEXT}.transformer.resblocks",
        [
            (r"layer_norm(\d)\.(\w+)", r"ln_\2.\3"),
            (r"mlp\.fc1\.(\w+)", r"mlp.c_fc.\2"),
            (r"mlp\.fc2\.(\w+)", r"mlp.c_proj.\2"),
            (r"self_attn\.qkv\.(\w+)", r"attn.in_proj_\2"),
            (r"self_attn\.out_proj\.(\w+)", r"attn.out_proj.\2"),
        ],
    ),
    (r"text_model\.final_layer_norm\.(\w+)", rf"{_TEXT}.ln_final.\1"),
    (r"text_projection\.weight", f"{_TEXT}.text_projection"),
    (r"text_model\.head\.weight", f"{_TEXT}.text_projection"),
    (r"text_model\.head\.bias", f"{_TEXT}.text_projection_bias"),
    (r"(logit_scale|logit_bias)", rf"{_TEXT}.\1"),
)
_OPEN_CLIP_TEXT = (
    "token_embedding.weight|positional_embedding|text_projection|logit_scale|logit_bias"
)
OPEN_CLIP: Rules = (
    (r"visual\.class_embedding", rf"{_IMAGE}.cls_token"),
    (r"visual\.conv1\.(\w+)", rf"{_IMAGE}.patch_embed.proj.\1"),
    (r"visual\.positional_embedding", rf"{_IMAGE}.pos_embed"),
    (r"visual\.ln_pre\.(\w+)", rf"{_IMAGE}.norm_pre.\1"),
    *_in_layers(
        r"visual\.transformer\.resblocks",
        rf"{_IMAGE}.blocks",
        [
            (r"ln_(\d)\.(\w+)", r"norm\2.\3"),
            (r"mlp\.c_fc\.(\w+)", r"mlp.fc1.\2"),
            (r"mlp\.c_proj\.(\w+)", r"mlp.fc2.\2"),
            (r"attn\.in_proj_(\w+)", r"attn.qkv.\2"),
            (r"attn\.out_proj\.(\w+)", r"attn.proj.\2"),
        ],
    ),
    (r"visual\.ln_post\.(\w+)", rf"{_IMAGE}.norm.\1"),
    (r"visual\.proj", f"{_TEXT}.image_projection"),
    # The text tower has the names already; a custom text tower puts "text." before them.
    (rf"(?:text\.)?({_OPEN_CLIP_TEXT})", rf"{_TEXT}.\1"),
    (r"(?:text\.)?(ln_final\.\w+|transformer\.resblocks\..+)", rf"{_TEXT}.\1"),
)
_TRANSPOSED = ("visual_projection.weight", "text_projection.weight", "text_model.head.weight")
_SHAPES = {"cls_token": (1, 1, -1), "pos_embed": (1, -1, 0), "logit_scale": (), "logit_bias": ()}


def from_huggingface(state: StateDict) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors of a `CLIPModel` or `SiglipModel` by official name, and the unexpected names."""
    return _renamed(_joined(state), HUGGINGFACE)


def from_open_clip(state: StateDict) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors of an open_clip model with its own ViT by official name, and the unexpected names."""
    return _renamed(dict(state), OPEN_CLIP)


def _renamed(state: StateDict, rules: Rules) -> tuple[dict[str, np.ndarray], list[str]]:
    found: dict[str, np.ndarray] = {}
    unexpected = []
    for name, value in state.items():
        official = _official_name(name, rules)
        if official is None:
            unexpected.append(name)
            continue
        if name in _TRANSPOSED:
            value = value.T
        last = official.rpartition(".")[2]
        if last in _SHAPES:
            try:
                value = value.reshape([value.shape[-1] if n == 0 else n for n in _SHAPES[last]])
            except (ValueError, IndexError) as error:
                raise ValueError(f"{name} has shape {list(value.shape)}: {error}.") from error
        found[official] = np.asarray(value)
    return found, unexpected


def _official_name(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def _joined(state: StateDict) -> dict[str, np.ndarray]:
    """`q_proj`, `k_proj` and `v_proj` of each layer as one `qkv`."""
    joined = {}
    for name, value in state.items():
        if ".self_attn.q_proj." in name:
            parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
            if missing := [part for part in parts if part not in state]:
                raise ValueError(
                    f"The weights have {name} but not {missing[0]}; give complete weights."
                )
            joined[name.replace("q_proj", "qkv")] = np.concatenate([state[part] for part in parts])
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            joined[name] = value
    return joined
