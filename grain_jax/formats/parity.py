"""Compare a converted model with grain_jax's: every output on the same inputs, in float32."""

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from grain_jax.config import ModelConfig
from grain_jax.formats.grain_reference import Params
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.image_text import build_model

TOLERANCE = 1e-4  # absolute, or relative to the largest value where that is above 1
TINY = float(np.finfo(np.float32).tiny)
FILE = "parity.json"

Outputs = Mapping[str, np.ndarray]  # name -> value, of one set of inputs


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of both models."""

    name: str  # "random" or "real"
    pixels: np.ndarray  # float32 [B, S, S, 3], normalised
    tokens: np.ndarray  # int32 [N, L]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of one output on one set of inputs."""

    inputs: str
    output: str
    absolute: float  # largest |expected - actual|
    relative: float  # that, divided by the largest |expected|

    @property
    def within(self) -> bool:
        """Whether it is within `TOLERANCE`; NaN is not."""
        return min(self.absolute, self.relative) <= TOLERANCE


def random_inputs(config: ModelConfig, *, count: int = 8) -> Inputs:
    """Normally distributed pixels, and texts of all lengths up to the context length."""
    rng = np.random.default_rng(0)
    size, length, last = config.image_size, config.text.context_length, config.text.vocab_size - 1
    pixels = rng.normal(size=(count, size, size, 3)).astype(np.float32)
    tokens = rng.integers(1, last, (count, length), np.int32)
    ends = np.linspace(min(2, length - 1), length - 1, count).round().astype(int)[:, None]
    place = np.arange(length)[None]
    tokens = np.where(place < ends, tokens, np.where(place == ends, last, 0))
    return Inputs("random", pixels, tokens.astype(np.int32))


def jax_outputs(config: ModelConfig) -> Callable[[Params, Inputs], Outputs]:
    """A function that computes all outputs of the model of `config` in float32.

    These are unnormalized features, embeddings of unit length, boxes, scales and scores. It is
    compiled once for inputs of the same shapes.
    """
    config = copy.deepcopy(config)
    config.dtype, config.attention = "float32", "xla"
    models = {sigmoid: build_model(config, sigmoid=sigmoid) for sigmoid in (False, True)}

    @jax.jit
    def run(params: Params, pixels: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
        model = models["logit_bias" in params]
        with jax.default_matmul_precision("highest"):
            return dict(nn.apply(_outputs, model)({"params": params}, pixels, tokens))

    def outputs(params: Params, inputs: Inputs) -> Outputs:
        found = run(params, jnp.asarray(inputs.pixels), jnp.asarray(inputs.tokens))
        return {name: np.asarray(value) for name, value in found.items()}

    return outputs


def _outputs(model: Any, pixels: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
    whole, texts = model.encode_images(pixels), model.encode_texts(tokens)
    scales = model(pixels[:1], tokens[:1])
    image, text = _unit(whole.image_embed), _unit(texts)
    found = {
        "image_features": whole.image_embed,
        "text_features": texts,
        "image_embeds": image,
        "text_embeds": text,
        "logit_scale": scales.logit_scale,
        "logits_per_image": scales.logit_scale * image @ text.T,
    }
    if scales.logit_bias is not None:
        found["logits_per_image"] += scales.logit_bias
    if whole.region_embed is not None:
        regions = _unit(whole.region_embed)
        found |= {
            "region_embeds": regions,
            "pred_boxes": whole.boxes,
            "region_logit_scale": scales.region_logit_scale,
            "description_scores": regions @ text.T,
        }
    return found


def compare(
    reference: Callable[[Inputs], Outputs],
    converted: Callable[[Inputs], Outputs],
    inputs: Sequence[Inputs],
) -> list[Difference]:
    """Differences of all outputs of `reference`.

    Raises ValueError where `converted` lacks an output or gives it another shape.
    """
    found = []
    for given in inputs:
        expected, actual = reference(given), converted(given)
        for name, value in expected.items():
            if name not in actual or actual[name].shape != value.shape:
                raise ValueError(f"The converted model gives no {name} of shape {value.shape}.")
            absolute = float(np.abs(actual[name] - value).max())
            relative = absolute / max(float(np.abs(value).max()), TINY)
            found.append(Difference(given.name, name, absolute, relative))
    return found


def rounded(params: Params, dtype: str) -> Params:
    """Parameters rounded to `dtype`, as float32."""
    return jax.tree.map(lambda x: np.asarray(jnp.asarray(x, dtype), np.float32), params)


def same_weights(loaded: ModelBundle, params: Params) -> bool:
    """Whether a model has these parameters, to the bit."""
    found, expected = dict(loaded.params), dict(params)
    if loaded.config.model.type == "clip":  # it has a scale of regions that nothing reads
        found.pop("region_logit_scale", None)
        expected.pop("region_logit_scale", None)
    return jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def write_parity(
    differences: Sequence[Difference], folder: Path, *, rounding: Sequence[Difference] = ()
) -> None:
    """Writes `parity.json`. Raises ValueError that names the outputs beyond the tolerance.

    `rounding`: differences caused by weights of lower precision, to which no tolerance applies.
    """
    report = {"tolerance": TOLERANCE, "differences": [dataclasses.asdict(d) for d in differences]}
    if rounding:
        report["rounding"] = [dataclasses.asdict(d) for d in rounding]
    (folder / FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if beyond := [found for found in differences if not found.within]:
        named = ", ".join(f"{d.output} on {d.inputs} inputs by {d.absolute:.2g}" for d in beyond)
        raise ValueError(
            f"The export differs from the model by more than {TOLERANCE:g}: {named}. "
            "The export is deleted; please report this."
        )


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
