"""What each setting must satisfy by itself: its type, its choices, its range."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Literal

from grain_jax.config.text_validation import SHORTEST_TEXT

# Smallest value of a number; those not named here may not be negative.
AT_LEAST = {
    "seed": 0,
    "batch_size": 1,
    "data.caption_length": SHORTEST_TEXT,
    "data.description_length": SHORTEST_TEXT,
    "data.crop_min_area": 0.01,
    "data.max_regions": 1,
    "data.num_threads": 1,
    "data.prefetch_batches": 1,
    "model.decoder.num_queries": 1,
    "model.init_logit_bias": -math.inf,
    "model.text.context_length": SHORTEST_TEXT,
    "optim.grad_cache_chunks": 1,
    "optim.trained_vision_layers": -1,
    "optim.trained_text_layers": -1,
    "optim.max_consecutive_nonfinite": 1,
    "mesh.data": -1,
    "mesh.fsdp": -1,
    "mesh.tensor": -1,
    "checkpoint.save_interval_steps": 1,
    "checkpoint.max_to_keep": 1,
    "evaluation.batch_size": 1,
    "evaluation.max_images": 1,
    "evaluation.text_draws": 1,
    "logging.log_interval_steps": 1,
    "logging.profile_step": -1,
}
IN_UNIT_INTERVAL = (
    "model.decoder.dropout",
    "model.description_capacity_factor",
    "data.crop_min_area",
    "data.flip_probability",
    "data.region_nms_iou",
    "data.synthetic_caption_probability",
    "data.region_caption_probability",
    "optim.beta1",
    "optim.beta2",
    "optim.ema_decay",
)
POSITIVE = (
    *("model.image_size", "model.embed_dim", "model.init_logit_scale", "model.max_logit_scale"),
    *("model.init_sigmoid_scale", "model.description_capacity_factor"),
    *("model.vision.patch_size", "model.vision.width", "model.vision.depth"),
    *("model.vision.num_heads", "model.vision.mlp_ratio", "model.vision.norm_eps"),
    *("model.text.vocab_size", "model.text.width", "model.text.depth", "model.text.num_heads"),
    *("model.text.mlp_ratio", "model.text.norm_eps", "model.text.token_init_std"),
    *("model.decoder.width", "model.decoder.depth", "model.decoder.num_heads"),
    *("model.decoder.mlp_dim", "optim.learning_rate", "optim.eps"),
    *("data.synthetic_birds.num_train_images", "data.synthetic_birds.num_eval_images", "data.std"),
)


Settings = Mapping[str, tuple[object, object]]  # dotted path -> value, declared type


def leaves(config: object, prefix: str = "") -> dict[str, tuple[object, object]]:
    """Every setting by dotted path, with its value and the type it is declared with."""
    found: dict[str, tuple[object, object]] = {}
    assert dataclasses.is_dataclass(config)
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(item.type):
            found |= leaves(value, f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = (value, item.type)
    return found


def bounds_problems(settings: Settings) -> list[str]:
    """Everything wrong with the type, choice or range of each of `settings`, a sentence each."""
    return [
        problem
        for path, (value, declared) in settings.items()
        for problem in _setting_problems(path, value, declared)
    ]


def _setting_problems(path: str, value: object, declared: object) -> Iterator[str]:
    if not _has_type(value, declared):
        name = declared.__name__ if isinstance(declared, type) else str(declared)
        if typing.get_origin(declared) is Literal:
            name = f"one of {', '.join(typing.get_args(declared))}"
        yield f"{path}: given {value!r} ({type(value).__name__}), expected {name}."
    elif typing.get_origin(declared) is Literal and value not in typing.get_args(declared):
        choices = typing.get_args(declared)
        near = difflib.get_close_matches(value, choices, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        yield f"{path}: given {value!r}; {hint}choose one of {', '.join(choices)}."
    elif isinstance(value, tuple):
        for item in value:
            yield from _setting_problems(path, item, type(item))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            yield f"{path}: given {value}, expected a finite number."
        elif path in POSITIVE and value <= 0:
            yield f"{path}: given {value}, expected more than 0."
        elif value < AT_LEAST.get(path, 0):
            yield f"{path}: given {value}, expected at least {AT_LEAST.get(path, 0)}."
        elif path in IN_UNIT_INTERVAL and value > 1:
            yield f"{path}: given {value}, expected a number from 0 to 1."


def _has_type(value: object, declared: object) -> bool:
    if typing.get_origin(declared) is tuple:
        kinds = typing.get_args(declared)
        if not isinstance(value, tuple):
            return False
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        return len(value) == len(kinds) and all(map(_has_type, value, kinds))
    if typing.get_origin(declared) is Literal:
        return isinstance(value, str)
    if declared is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is declared  # a bool is not an int here
