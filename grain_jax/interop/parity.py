"""How far a converted model is from ours: every output on the same inputs, in float32."""

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grain_jax.config import ModelConfig
from grain_jax.interop.official import Params
from grain_jax.models.build import build_model

TOLERANCE = 1e-4  # of the largest absolute difference of an output, whose scale is about 1
FILE = "parity.json"

Outputs = Mapping[str, np.ndarray]  # name -> value, of one set of inputs


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What both models are given."""

    name: str  # "random" or "real"
    pixels: np.ndarray  # float32 [B, S, S, 3], normalised
    tokens: np.ndarray  # int32 [N, L]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of one output on one set of inputs."""

    inputs: str
    output: str
    absolute: float  # largest |ours - theirs|
    relative: float  # that, of the largest |ours|


def random_inputs(config: ModelConfig, *, count: int = 4) -> Inputs:
    """Normal pixels, and texts of all lengths up to the longest that fits."""
    rng = np.random.default_rng(0)
    size, length, last = config.image_size, config.text.context_length, config.text.vocab_size - 1
    pixels = rng.normal(size=(count, size, size, 3)).astype(np.float32)
    tokens = rng.integers(1, last, (count, length), np.int32)
    ends = np.linspace(min(2, length - 1), length - 1, count).round().astype(int)[:, None]
    place = np.arange(length)
    tokens = np.where(place < ends, tokens, np.where(place == ends, last, 0))
    return Inputs("random", pixels, tokens.astype(np.int32))


def our_outputs(params: Params, config: ModelConfig, inputs: Inputs) -> Outputs:
    """Embeddings of unit length, boxes, and the logit scales, computed in float32."""
    config = copy.deepcopy(config)
    config.dtype, config.attention = "float32", "xla"
    model = build_model(config)
    with jax.default_matmul_precision("highest"):
        image = model.apply({"params": params}, jnp.asarray(inputs.pixels), method="encode_images")
        text = model.apply({"params": params}, jnp.asarray(inputs.tokens), method="encode_texts")
    outputs = {"image_embeds": _unit(image.image_embed), "text_embeds": _unit(text)}
    if image.region_embed is not None:
        outputs |= {"region_embeds": _unit(image.region_embed), "pred_boxes": image.boxes}
    return {name: np.asarray(value) for name, value in outputs.items()}


def compare(
    ours: Callable[[Inputs], Outputs], theirs: Callable[[Inputs], Outputs], inputs: Sequence[Inputs]
) -> list[Difference]:
    """Differences of all outputs of `ours`. Raises ValueError where the other model lacks one."""
    found = []
    for given in inputs:
        expected, actual = ours(given), theirs(given)
        for name, value in expected.items():
            if name not in actual or actual[name].shape != value.shape:
                raise ValueError(f"The converted model gives no {name} of shape {value.shape}.")
            absolute = float(np.abs(actual[name] - value).max())
            found.append(Difference(given.name, name, absolute, absolute / float(np.abs(value).max())))
    return found


def write_parity(differences: Sequence[Difference], folder: Path) -> None:
    """Writes `parity.json`. Raises ValueError that names the outputs beyond the tolerance."""
    report = {"tolerance": TOLERANCE, "differences": [dataclasses.asdict(d) for d in differences]}
    (folder / FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    beyond = [d for d in differences if not d.absolute <= TOLERANCE]
    if beyond:
        named = ", ".join(f"{d.output} on {d.inputs} inputs by {d.absolute:.2g}" for d in beyond)
        raise ValueError(
            f"The export differs from the model by more than {TOLERANCE:g}: {named}. Do not use "
            f"{folder}; please report this."
        )


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
