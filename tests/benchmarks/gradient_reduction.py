"""What it costs to add up gradients in bfloat16 over many devices; one device is enough to see it.

    python tests/benchmarks/gradient_reduction.py [--devices=256] [--images=8] [--steps=0,40]

The gradient of one global batch, as the parts of `--devices` devices with `--images` each: of the
same loss, by the rows that a device has. Computed in bfloat16, after so many steps of training. The
parts are added up in each type and order that devices may take, and compared with the sum in
float64 of parts that were not rounded.
"""

import argparse
import dataclasses
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "helpers"))
from drawn_birds import drawn_batches, small_config

from grain_jax.config import TrainConfig
from grain_jax.config.schema import GradientDtype
from grain_jax.models.image_text import build_model, normalize_images
from grain_jax.models.outputs import Output
from grain_jax.parallel.sharding import make_mesh, use_mesh
from grain_jax.training.objective import total_loss
from grain_jax.training.optimizer import make_optimizer, make_schedule
from grain_jax.training.state import abstract_state, new_state
from grain_jax.training.step import make_train_step

BFLOAT16 = ml_dtypes.bfloat16
Parts = np.ndarray  # of one tensor: [devices, ...]


def trained_params(config: TrainConfig, batch: Any, steps: int) -> Any:
    """Parameters after so many steps on sixteenths of a batch."""
    config = dataclasses.replace(config, batch_size=config.batch_size // 16)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model, optimizer = build_model(config.model), make_optimizer(config.optim)
    abstract = abstract_state(model, optimizer, config, mesh)
    state = new_state(model, optimizer, config, abstract)
    if not steps:
        return state.params
    schedule = make_schedule(config.optim, steps=1_000, warmup_steps=20)
    step = make_train_step(model, optimizer, schedule, config, mesh=mesh, abstract=abstract)
    pieces = [
        jax.tree.map(operator.itemgetter(slice(first, first + config.batch_size)), batch)
        for first in range(0, 16 * config.batch_size, config.batch_size)
    ]
    with use_mesh(mesh):
        for number in range(steps):
            state, _ = step(state, pieces[number % len(pieces)])
    return state.params


def gradient_of_parts(
    config: TrainConfig, batch: Any, devices: int
) -> Callable[[Any], dict[str, Parts]]:
    """Function of parameters: what every device adds to their gradients, in float32, by name."""
    model = build_model(config.model)

    def encode(params: Any, images: Any, captions: Any, descriptions: Any) -> Any:
        pixels = normalize_images(images, config.data.mean, config.data.std, jnp.bfloat16)
        found: Any = model.apply({"params": params}, pixels, captions, descriptions)
        image = dataclasses.replace(found.image, tokens=None)
        return image, found.caption_embed, found.description_embed

    def loss(copies: Any, batch: Any) -> Any:
        apart = [
            value.reshape(devices, -1, *value.shape[1:])
            for value in (batch.images, batch.captions, batch.descriptions)
        ]
        made = jax.vmap(encode)(copies, *apart)
        image, captions, descriptions = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made)
        first = jax.tree.map(operator.itemgetter(0), copies)
        scale, region_scale = model.apply({"params": first}, method="logit_scales")
        output = Output(
            image=image,
            caption_embed=captions,
            description_embed=descriptions,
            description_kept=None,
            logit_scale=scale,
            region_logit_scale=region_scale,
        )
        return total_loss(
            output,
            caption_key=batch.caption_key,
            description_key=batch.description_key,
            boxes=batch.boxes,
            region_mask=batch.region_mask,
            config=config.loss,
        )[0]

    gradient = jax.jit(jax.grad(loss))

    def parts(params: Any) -> dict[str, Parts]:
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (devices, *leaf.shape)), params)
        found = flax.traverse_util.flatten_dict(gradient(copies, batch), sep="/")
        return {name: np.asarray(x) for name, x in found.items() if "logit_scale" not in name}

    return parts


def ring(parts: Parts, dtype: Any) -> np.ndarray:
    """One after the other, rounded after each."""
    total = parts[0].astype(dtype)
    for part in parts[1:]:
        total = (total + part.astype(dtype)).astype(dtype)
    return total


def torus(parts: Parts, dtype: Any) -> np.ndarray:
    """Along one side of a square, then along the other."""
    side = round(len(parts) ** 0.5)
    rows = parts.reshape(side, -1, *parts.shape[1:])
    return ring(np.stack([ring(row, dtype) for row in rows]), dtype)


def tree(parts: Parts, dtype: Any) -> np.ndarray:
    """In pairs, then pairs of pairs."""
    while len(parts) > 1:
        parts = (parts[::2].astype(dtype) + parts[1::2].astype(dtype)).astype(dtype)
    return parts[0]


SUMMATIONS: dict[str, Callable[[Parts, Parts], np.ndarray]] = {
    "bfloat16, ring": lambda rounded, _: ring(rounded, BFLOAT16),
    "bfloat16, torus": lambda rounded, _: torus(rounded, BFLOAT16),
    "bfloat16, tree": lambda rounded, _: tree(rounded, BFLOAT16),
    "bfloat16 parts, float32 ring": lambda rounded, _: ring(rounded, np.float32),
    "float32, ring": lambda _, exact: ring(exact, np.float32),
    "float32, tree": lambda _, exact: tree(exact, np.float32),
}


def print_errors(rounded: dict[str, Parts], exact: dict[str, Parts]) -> None:
    """Of each summation over all tensors, and what the batch's own noise is beside it."""
    names = [name for name in exact if np.abs(exact[name]).max() > 0]
    reference = {name: exact[name].astype(np.float64).sum(0) for name in names}
    whole = np.concatenate([reference[name].ravel() for name in names])
    print(f"  {'':30} {'all':>9} {'median':>9} {'worst tensor':>12}  {'1 - cosine':>10}")
    for label, summed in SUMMATIONS.items():
        found = {name: summed(rounded[name], exact[name]).astype(np.float64) for name in names}
        errors = {
            name: np.linalg.norm(found[name] - reference[name]) / np.linalg.norm(reference[name])
            for name in names
        }
        worst = max(errors, key=lambda name: errors[name])
        flat = np.concatenate([found[name].ravel() for name in names])
        apart = 1 - flat @ whole / np.linalg.norm(flat) / np.linalg.norm(whole)
        print(
            f"  {label:30} {np.linalg.norm(flat - whole) / np.linalg.norm(whole):9.1e} "
            f"{np.median([*errors.values()]):9.1e} {errors[worst]:12.1e}  {apart:10.1e}  {worst}"
        )
    halves = [
        np.concatenate([exact[name][half::2].astype(np.float64).sum(0).ravel() for name in names])
        for half in (0, 1)
    ]
    noise = np.linalg.norm(halves[0] - halves[1]) / np.linalg.norm(whole)
    print(f"  one half of the devices against the other: {noise:.2f} of the gradient's length")


def main() -> None:
    """Prints a table for each number of steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=256, help="the square of a power of two")
    parser.add_argument("--images", type=int, default=8, help="of a device")
    parser.add_argument("--steps", default="0,40", help="of training before")
    options = parser.parse_args()
    size = options.devices * options.images
    config = small_config(batch_size=size, num_images=2 * size)
    config.model.dtype, config.model.attention = "bfloat16", "xla"
    batches = drawn_batches(config, 2, seed=0)
    print(f"jax {jax.__version__}, {options.devices} devices of {options.images} images")
    gradients = {}
    for chosen in get_args(GradientDtype):
        config.model.gradient_dtype = chosen
        gradients[chosen] = gradient_of_parts(config, batches[0], options.devices)
    for steps in map(int, options.steps.split(",")):
        params = trained_params(config, batches[1], steps)
        parts = {chosen: gradient(params) for chosen, gradient in gradients.items()}
        count = sum(value[0].size for value in parts["float32"].values())
        print(f"after {steps} steps, {count:,} parameters: error / length of the gradient")
        print_errors(parts["compute"], parts["float32"])


if __name__ == "__main__":
    main()
