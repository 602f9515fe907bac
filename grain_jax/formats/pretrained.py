"""Read pretrained CLIP-like models: towers, tokenizer and preprocessing.

Supported are folders of `CLIPModel` and `SiglipModel` in the Hugging Face layout, and of open_clip
with its own vision transformer (`open_clip_config.json` beside the weights). Nothing in a file is
executed: weights are safetensors, or torch files read with `weights_only`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from grain_jax.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from grain_jax.config.schema import Activation, Interpolation, Resize
from grain_jax.data.records import DEFAULT_TEMPLATES
from grain_jax.data.tokenizer import (
    ClipTokenizer,
    HuggingFaceTokenizer,
    PaddedTokenizer,
    Tokenizer,
)
from grain_jax.data.transforms import Preprocessing
from grain_jax.formats.files import HUGGINGFACE_CONFIG, model_type, present, read_json
from grain_jax.formats.grain_reference import Params, from_official
from grain_jax.formats.parameter_names import LOGIT_BIAS
from grain_jax.formats.pretrained_images import huggingface_preprocessing, open_clip_preprocessing
from grain_jax.formats.pretrained_names import from_huggingface, from_open_clip
from grain_jax.formats.weight_files import read_weights
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.image_text import model_of_run

OPEN_CLIP_CONFIG = "open_clip_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
OPEN_CLIP_KINDS: dict[str, Any] = {  # types of the numbers in its configuration, by example
    **dict.fromkeys(("embed_dim", "image_size", "patch_size", "width", "layers", "heads"), 1),
    **dict.fromkeys(("head_width", "context_length", "vocab_size"), 1),
    "mlp_ratio": 1.0,
}
MAX_LOG_SCALE = 16.0  # larger scales are not plausible
UNUSED = ("position_ids",)  # a buffer

# Defaults of transformers for settings that `config.json` does not have.
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_LARGE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_SMALL = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
_IMAGE = {"num_attention_heads": 12, "image_size": 224, "num_channels": 3}
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "vision_config": _CLIP | _LARGE | _IMAGE | {"patch_size": 32},
        "text_config": _CLIP
        | _SMALL
        | {"num_attention_heads": 8, "vocab_size": 49_408, "max_position_embeddings": 77},
    },
    "siglip": {
        "vision_config": _SIGLIP | _LARGE | _IMAGE | {"patch_size": 16, "vision_use_head": True},
        "text_config": _SIGLIP
        | _LARGE
        | {"num_attention_heads": 12, "vocab_size": 32_000, "max_position_embeddings": 64},
    },
}


class HuggingFaceClip:
    """The format of a `CLIPModel` or `SiglipModel`."""

    title = "a CLIP or SigLIP of Hugging Face"
    weights = WEIGHTS

    def recognises(self, path: Path) -> bool:
        return model_type(path) not in ("", "grain")

    def read(self, path: Path) -> ModelBundle:
        return read_huggingface_clip(path)


class OpenClip:
    """The format of a folder of open_clip, or of a training checkpoint beside its settings."""

    title = "a model of open_clip"
    weights = OPEN_CLIP_WEIGHTS

    def recognises(self, path: Path) -> bool:
        if path.is_file():
            return (path.parent / OPEN_CLIP_CONFIG).is_file()
        # Many of its repositories also hold a CLIPModel, which has fewer settings to refuse.
        return (path / OPEN_CLIP_CONFIG).is_file() and not HuggingFaceClip().recognises(path)

    def read(self, path: Path) -> ModelBundle:
        if path.is_file():
            return read_open_clip(path.parent, weights=(path.name,))
        return read_open_clip(path)


def huggingface_model(given: Mapping[str, Any]) -> ModelConfig:
    """The `ModelConfig` of a `CLIPModel` or `SiglipModel`, from the content of its `config.json`.

    Raises ValueError for another type of model, an invalid setting or an unknown activation.
    """
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        raise ValueError(
            f"{HUGGINGFACE_CONFIG} has model_type {kind!r}; expected one of {', '.join(DEFAULTS)} "
            "or grain."
        )
    parts = {}
    for part, default in DEFAULTS[kind].items():
        current, older = (_object(name, given.get(name)) for name in (part, f"{part}_dict"))
        parts[part] = default | current | older
        for name, value in default.items():
            _check_kind(f"{part}.{name}", parts[part][name], like=value)
    vision, text = parts["vision_config"], parts["text_config"]
    siglip = kind == "siglip"
    if siglip and not vision["vision_use_head"]:
        raise ValueError(
            "A SigLIP without vision_use_head has no image embedding; give one with it."
        )
    projection = text.get("projection_size") or text["hidden_size"]
    joint = projection if siglip else given.get("projection_dim", 512)
    _check_kind("projection_size" if siglip else "projection_dim", joint, like=512)
    return ModelConfig(
        type="clip",
        image_size=vision["image_size"],
        embed_dim=joint,
        vision=VisionConfig(
            patch_size=vision["patch_size"],
            **_tower(vision),
            qk_norm=False,
            patch_bias=siglip,
            pre_norm=not siglip,
            pooling="map" if siglip else "cls",
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            **_tower(text),
            causal=not siglip,
            pooling="last" if siglip else "end",
            projection_bias=siglip,
        ),
        dtype="float32",
    )


def read_huggingface_clip(folder: Path) -> ModelBundle:
    """Reads a `CLIPModel` or `SiglipModel`.

    Raises ValueError where a file is missing or invalid, and for settings that are not supported.
    """
    try:
        model = huggingface_model(read_json(folder / HUGGINGFACE_CONFIG))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    siglip = model.vision.pooling == "map"
    state, unexpected = from_huggingface(read_weights(folder, WEIGHTS))
    pooled = state.get("backbone.visual.attn_pool.attn.out_proj.weight")
    if siglip and pooled is not None and pooled.ndim == 2:
        # Its pooled image is the embedding. The size is that of an existing tensor, as that in the
        # configuration may be wrong.
        state["backbone.image_projection"] = np.eye(*pooled.shape, dtype=np.float32)
    preprocessing = huggingface_preprocessing(folder, model.image_size, siglip=siglip)
    return _loaded(folder, state, unexpected, model, preprocessing)


def read_open_clip(folder: Path, weights: Sequence[str] = OPEN_CLIP_WEIGHTS) -> ModelBundle:
    """Reads a model of open_clip: `open_clip_config.json` and the first of `weights` that exists.

    Raises ValueError as `read_huggingface_clip`.
    """
    path = folder / OPEN_CLIP_CONFIG
    given = read_json(path)
    try:
        config = _object("model_cfg", given.get("model_cfg"))
        vision, text = (_object(part, config.get(part)) for part in ("vision_cfg", "text_cfg"))
        for part, settings in (("model_cfg", config), ("vision_cfg", vision), ("text_cfg", text)):
            for name in settings.keys() & OPEN_CLIP_KINDS.keys():
                _check_kind(f"{part}.{name}", settings[name], like=OPEN_CLIP_KINDS[name])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _refuse_others(path, config, vision, text)
    activation = "quick_gelu" if config.get("quick_gelu", False) else "gelu"
    try:
        width, head = vision["width"], vision.get("head_width", 64)
        model = ModelConfig(
            type="clip",
            image_size=vision["image_size"],
            embed_dim=config["embed_dim"],
            vision=VisionConfig(
                patch_size=vision["patch_size"],
                width=width,
                depth=vision["layers"],
                num_heads=width // head,
                mlp_ratio=float(vision.get("mlp_ratio", 4.0)),
                qk_norm=False,
                activation=cast(Activation, activation),
                norm_eps=1e-5,
                patch_bias=False,
                pre_norm=True,
            ),
            text=TextConfig(
                vocab_size=text.get("vocab_size", 49_408),
                context_length=text.get("context_length", 77),
                width=text["width"],
                depth=text["layers"],
                num_heads=text["heads"],
                mlp_ratio=float(text.get("mlp_ratio", 4.0)),
                activation=cast(Activation, activation),
            ),
            dtype="float32",
        )
    except KeyError as error:
        raise ValueError(f"{path} has no {error} in its model_cfg.") from error
    preprocessing = open_clip_preprocessing(
        path, given.get("preprocess_cfg") or {}, model.image_size
    )
    state, unexpected = from_open_clip(read_weights(folder, weights))
    return _loaded(folder, state, unexpected, model, preprocessing)


def _loaded(
    folder: Path,
    state: dict[str, np.ndarray],
    unexpected: list[str],
    model: ModelConfig,
    preprocessing: Preprocessing,
) -> ModelBundle:
    tokenizer = _tokenizer(folder, model)
    if odd := [name for name in unexpected if not name.endswith(UNUSED)]:
        raise ValueError(
            f"{folder}: unexpected tensor {odd[0]} ({len(odd)} in all), which the supported CLIP "
            "and SigLIP models do not have."
        )
    scale = state.get("backbone.logit_scale")
    if scale is not None:
        if not abs(float(scale)) <= MAX_LOG_SCALE:
            raise ValueError(
                f"{folder}: logit_scale is {scale}, the logarithm of the factor on cosines; "
                f"expected one number, at most {MAX_LOG_SCALE}."
            )
        model.max_logit_scale = max(model.max_logit_scale, float(np.exp(scale)))
    sigmoid = LOGIT_BIAS in state
    return loaded_model(
        folder.name,
        model,
        from_official(state, model, sigmoid=sigmoid),
        tokenizer=tokenizer,
        tokenizer_name="clip" if isinstance(tokenizer, ClipTokenizer) else str(folder),
        preprocessing=preprocessing,
        sigmoid=sigmoid,
    )


def loaded_model(
    name: str,
    model: ModelConfig,
    params: Params,
    *,
    tokenizer: Tokenizer,
    tokenizer_name: str,
    preprocessing: Preprocessing,
    sigmoid: bool = False,
) -> ModelBundle:
    """The bundle of a model that was not trained by grain_jax; its config has what is known.

    The lengths of captions and descriptions are the context length. `sigmoid`: `params` have the
    bias of a model that was trained with that loss.
    """
    data = DataConfig(
        dataset="tfds",
        resize=cast(Resize, preprocessing.resize),
        interpolation=cast(Interpolation, preprocessing.interpolation),
        mean=preprocessing.mean,
        std=preprocessing.std,
        tokenizer=tokenizer_name,
        caption_length=model.text.context_length,
        description_length=model.text.context_length,
        max_regions=min(DataConfig.max_regions, model.decoder.num_queries),
    )
    loss = LossConfig(image_caption="sigmoid" if sigmoid else "softmax")
    config = TrainConfig(name=name, model=model, data=data, loss=loss)
    return ModelBundle(
        model=model_of_run(config),
        params=jax.tree.map(jnp.asarray, params),
        config=config,
        tokenizer=tokenizer,
        preprocessing=preprocessing,
        templates=DEFAULT_TEMPLATES,
        step=0,
    )


def _tower(given: Mapping[str, Any]) -> dict[str, Any]:
    if given["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act {given['hidden_act']!r} is not supported; known: {', '.join(ACTIVATIONS)}."
        )
    return {
        "width": given["hidden_size"],
        "depth": given["num_hidden_layers"],
        "num_heads": given["num_attention_heads"],
        "mlp_ratio": given["intermediate_size"] / given["hidden_size"],
        "activation": ACTIVATIONS[given["hidden_act"]],
        "norm_eps": given["layer_norm_eps"],
    }


def _object(name: str, given: Any) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{name} is {given!r}, expected an object.")
    return present(given)


def _check_kind(name: str, value: Any, *, like: Any) -> None:
    """Raises ValueError unless `value` has the type of `like`; numbers must be above 0."""
    match like:
        case bool():
            good, expected = isinstance(value, bool), "true or false"
        case str():
            good, expected = isinstance(value, str), "a string"
        case int():
            good = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
            expected = "a whole number above 0"
        case _:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            good, expected = number and 0 < value < math.inf, "a number above 0"
    if not good:
        raise ValueError(f"{name} is {value!r}, expected {expected}.")


def _tokenizer(folder: Path, model: ModelConfig) -> Tokenizer:
    if model.text.pooling == "last":
        return PaddedTokenizer.load(str(folder))
    if _has_clip_vocabulary(folder, model.text.vocab_size):
        return ClipTokenizer()
    tokenizer = HuggingFaceTokenizer.load(str(folder))
    if tokenizer.vocab_size != model.text.vocab_size:
        raise ValueError(
            f"The tokenizer of {folder} has {tokenizer.vocab_size} ids with end-of-text as the "
            f"highest, the text tower {model.text.vocab_size}; expected equal numbers."
        )
    return tokenizer


def _has_clip_vocabulary(folder: Path, size: int) -> bool:
    """Whether the vocabulary is that of OpenAI's CLIP; without a file, judged by its size."""
    if size != ClipTokenizer.vocab_size:
        return False
    if (folder / "vocab.json").is_file():
        vocabulary = read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        vocabulary = read_json(folder / "tokenizer.json").get("model", {}).get("vocab", {})
    else:
        return True
    text = "a photo of two black cats"
    ids = ClipTokenizer().encode([text], 16)[0][0]
    words = [vocabulary.get(word + "</w>") for word in text.split()]
    return words == ids[1 : 1 + len(words)].tolist()


def _refuse_others(
    path: Path, config: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]
) -> None:
    known = {
        "model_cfg": (
            config,
            # The last two are of new weights.
            {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text"}
            | {"init_logit_scale", "init_logit_bias"},
        ),
        "vision_cfg": (
            vision,
            {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
        ),
        "text_cfg": (
            text,
            {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
        ),
    }
    found = list(_unknown(known))
    if found:
        raise ValueError(
            f"{path}: {', '.join(found)} not supported; expected open_clip's own vision "
            "transformer with a class token, and CLIP's text tower."
        )


def _unknown(known: Mapping[str, tuple[Mapping[str, Any], set[str]]]) -> Iterator[str]:
    for part, (given, names) in known.items():
        for name in sorted(set(given) - names):
            if given[name] not in (None, False):
                yield f"{part}.{name} = {given[name]!r}"
