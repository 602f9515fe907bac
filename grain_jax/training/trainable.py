"""Which parameters a run trains, and how fast. The others get no gradient and no optimizer state.

Frozen parameters are an argument of the step that nothing is differentiated with respect to, so
that no activation is kept for them, and the optimizer never sees them: its state and the updates
are trees of the trained ones alone. Averages (`optim.ema_decay`) have all, as they are a model.
"""

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util

from grain_jax.config import OptimConfig

TOWERS = ("vision", "text")
OF_VISION = ("image_projection", "attention_pool")  # of CLIP and SigLIP, after the vision tower
AFTER_LAYERS = ("norm", "projection", "bias")  # parts of a tower that follow its layers


def lr_multipliers(params: Any, config: OptimConfig) -> Any:
    """A factor on the learning rate of each parameter; 0 where it is frozen.

    Frozen is what `trained_vision_layers` and `trained_text_layers` leave out. The others have the
    factor of the first pattern of `config.lr_multipliers` that matches their name, 1 without one.
    A pattern is "NAME=FACTOR", with NAME as "vision/*" or "text/layer_0/*" (`fnmatch`; scanned
    layers are "text/layers/*").

    Args:
        params: the tree of a model's parameters, its leaves of any kind.

    Raises ValueError for a pattern without a number, or that matches nothing, for numbers of layers
    that the towers do not have, and where nothing is left to train.
    """
    names = flax.traverse_util.flatten_dict(params, sep="/")
    patterns = _parse(config.lr_multipliers, names)
    left_out = set(_outside_trained_layers(names, config))
    factors = {name: 0.0 if name in left_out else _first_match(name, patterns) for name in names}
    if not any(factors.values()):
        raise ValueError(
            "optim.lr_multipliers, optim.trained_vision_layers and optim.trained_text_layers "
            "freeze every parameter, so nothing would be trained; leave one of them out."
        )
    return flax.traverse_util.unflatten_dict(factors, sep="/")


def split_frozen(params: Any, config: OptimConfig) -> tuple[Any, Any]:
    """The trained and the frozen parameters, as trees without the others; undone by `join`."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    factors = flax.traverse_util.flatten_dict(lr_multipliers(params, config), sep="/")
    trained = {name: leaf for name, leaf in flat.items() if factors[name]}
    frozen = {name: leaf for name, leaf in flat.items() if not factors[name]}
    unflatten = flax.traverse_util.unflatten_dict
    return unflatten(trained, sep="/"), unflatten(frozen, sep="/")


def patterns_of_frozen(params: Any, config: OptimConfig) -> list[str]:
    """Those of `lr_multipliers` that only name parameters that the numbers of layers freeze."""
    names = flax.traverse_util.flatten_dict(params, sep="/")
    left_out = set(_outside_trained_layers(names, config))
    return [
        text
        for text, (pattern, factor) in zip(
            config.lr_multipliers, _parse(config.lr_multipliers, names), strict=True
        )
        if factor and left_out.issuperset(fnmatch.filter(names, pattern))
    ]


def join(trained: Any, frozen: Any) -> Any:
    """The tree of all parameters from its two parts."""
    flatten = flax.traverse_util.flatten_dict
    together = flatten(trained, sep="/") | flatten(frozen, sep="/")
    return flax.traverse_util.unflatten_dict(together, sep="/")


def _outside_trained_layers(names: Mapping[str, Any], config: OptimConfig) -> Iterator[str]:
    """Names of the towers' parameters that `trained_vision_layers` and its like freeze."""
    for tower in TOWERS:
        count = getattr(config, f"trained_{tower}_layers")
        if count < 0:
            continue
        of_tower = [name for name in names if name.partition("/")[0] == tower]
        trained = _last_layers(of_tower, tower, count) if count else ()
        yield from (name for name in of_tower if name.split("/")[1] not in trained)
        if tower == "vision" and not count:
            yield from (name for name in names if name.partition("/")[0] in OF_VISION)


def _last_layers(names: Sequence[str], tower: str, count: int) -> tuple[str, ...]:
    """Parts of a tower from its `count`-th layer from the end on."""
    if any(name.split("/")[1] == "layers" for name in names):
        raise ValueError(
            f"optim.trained_{tower}_layers = {count} tells layers apart, and with "
            "model.scan_layers=true they are one array; set model.scan_layers=false, or train all "
            "of the tower (-1) or none (0)."
        )
    layers = {part for part in (name.split("/")[1] for name in names) if part.startswith("layer_")}
    if count > len(layers):
        raise ValueError(
            f"optim.trained_{tower}_layers = {count}, and the {tower} tower has {len(layers)} "
            "layers; give at most as many, or -1 for all of the tower."
        )
    last = (f"layer_{index}" for index in range(len(layers) - count, len(layers)))
    return (*last, *AFTER_LAYERS)


def _first_match(name: str, patterns: Sequence[tuple[str, float]]) -> float:
    found = (factor for pattern, factor in patterns if fnmatch.fnmatch(name, pattern))
    return next(found, 1.0)


def _parse(patterns: Sequence[str], names: Mapping[str, Any]) -> list[tuple[str, float]]:
    parsed = [_parse_factor(pattern) for pattern in patterns]
    for pattern, _ in parsed:
        if not fnmatch.filter(names, pattern):
            parts = ", ".join(sorted({name.partition("/")[0] for name in names}))
            raise ValueError(
                f"optim.lr_multipliers: no parameter is called {pattern!r}. They begin "
                f"with {parts}; the whole names are those of `params` in a checkpoint, joined by "
                "'/'."
            )
    return parsed


def _parse_factor(text: str) -> tuple[str, float]:
    pattern, _, number = text.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not pattern or not math.isfinite(factor) or factor < 0:
        raise ValueError(
            f"optim.lr_multipliers: given {text!r}, expected a name and a number of 0 or more, as "
            "'vision/*=0.1'."
        )
    return pattern, factor
