"""Convert parameters from and to a state dict with the official names, exact to the bit."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from jaxtyping import Shaped

from grain_jax.config import ModelConfig
from grain_jax.formats.parameter_names import Entry, entries, unused_shapes
from grain_jax.models.image_text import abstract_params

Params = dict[str, Any]  # nested, with arrays at the leaves
MAX_LISTED = 10  # tensors in an error
STACKED = "layers"  # name of scanned layers, stacked along the first axis of their arrays


def from_official(
    state_dict: Mapping[str, Shaped[np.ndarray, "..."]],
    config: ModelConfig,
    *,
    sigmoid: bool = False,
) -> Params:
    """The model's parameters (float32, stacked with `config.scan_layers`) from official tensors.

    Official tensors that the model does not use are ignored. `sigmoid`: with the bias of
    `loss.image_caption="sigmoid"`. Raises one ValueError that lists the tensors that are missing,
    unknown, of another shape, or different from another tensor that is the same parameter.
    """
    # First, as the depth that a file declares may be any number and determines the table's size.
    depths = {"vision": config.vision.depth, "text": config.text.depth}
    if config.type == "grain":
        depths["decoder"] = config.decoder.depth
    for part, depth in depths.items():
        if depth > len(state_dict):
            raise ValueError(
                f"model.{part}.depth={depth}, and there are {len(state_dict)} tensors in all."
            )
    table = entries(config, sigmoid=sigmoid)
    shapes = _unstacked_shapes(config, sigmoid=sigmoid)
    wrong = [f"missing {e.official}" for e in table if e.official not in state_dict]
    known = {e.official for e in table} | set(unused_shapes(config))
    wrong += [f"unknown {name}" for name in sorted(set(state_dict) - known)]
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for entry in table:
        if entry.official not in state_dict:
            continue
        value = np.asarray(state_dict[entry.official])
        expected = _official_shape(entry, shapes[entry.path])
        if value.shape != expected:
            wrong.append(f"{entry.official}: shape {value.shape}, expected {expected}")
            continue
        array = entry.layout.from_official(value, shapes[entry.path])
        if entry.path in flat and not np.array_equal(flat[entry.path], array):
            wrong.append(
                f"{entry.official} differs from the tensor that shares its parameter; "
                "set model.decoder.share_projection=False"
            )
        flat[entry.path] = np.asarray(array, np.float32, order="C")
    if wrong:
        listed = wrong[:MAX_LISTED] + ["..."] * (len(wrong) > MAX_LISTED)
        raise ValueError(
            f"{len(wrong)} of the official tensors do not fit the {config.type} model of this "
            "config; change the model's config or the state dict:\n  " + "\n  ".join(listed)
        )
    params: Params = flax.traverse_util.unflatten_dict(flat)
    return stack_layers(params) if config.scan_layers else params


def to_official(
    params: Params, config: ModelConfig, *, unused: bool = True, num_classes: int = 22_047
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Official tensors by name, on the host: the inverse of `from_official`.

    Args:
        unused: add zeros for tensors that the official modules have and do not use, so that they
            load with `strict=True`.
        num_classes: size of the official class head, one of the unused tensors.
    """
    if config.scan_layers:
        params = unstack_layers(params)
    flat = flax.traverse_util.flatten_dict(params)
    official = {
        entry.official: np.asarray(
            entry.layout.to_official(np.asarray(flat[entry.path])), order="C"
        )
        for entry in entries(config, sigmoid="logit_bias" in params)
    }
    if unused:
        for name, shape in unused_shapes(config, num_classes=num_classes).items():
            official[name] = np.zeros(shape, np.float32)
    return official


def stack_layers(params: Params) -> Params:
    """Stacks `layer_0`, `layer_1`, ... of each tower into one `layers`, as with `scan_layers`."""

    def stacked(tower: Any) -> Any:
        if not isinstance(tower, Mapping) or "layer_0" not in tower:
            return tower
        depth = sum(name.startswith("layer_") for name in tower)
        layers = [tower[f"layer_{i}"] for i in range(depth)]
        rest = {name: value for name, value in tower.items() if not name.startswith("layer_")}
        return {**rest, STACKED: jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}

    return {name: stacked(tower) for name, tower in params.items()}


def unstack_layers(params: Params) -> Params:
    """The inverse of `stack_layers`."""

    def unstacked(tower: Any) -> Any:
        if not isinstance(tower, Mapping) or STACKED not in tower:
            return tower
        layers = jax.tree.map(np.asarray, tower[STACKED])
        depth = len(jax.tree.leaves(layers)[0])
        rest = {name: value for name, value in tower.items() if name != STACKED}
        single = {f"layer_{i}": jax.tree.map(lambda a, i=i: a[i], layers) for i in range(depth)}
        return {**rest, **single}

    return {name: unstacked(tower) for name, tower in params.items()}


def _unstacked_shapes(
    config: ModelConfig, *, sigmoid: bool
) -> dict[tuple[str, ...], tuple[int, ...]]:
    shapes = abstract_params(config, scan_layers=False, sigmoid=sigmoid)
    flat = flax.traverse_util.flatten_dict(shapes)
    return {path: leaf.shape for path, leaf in flat.items()}


def _official_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    return entry.layout.to_official(np.broadcast_to(np.float32(0), shape)).shape
