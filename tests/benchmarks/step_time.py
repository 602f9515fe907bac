"""Seconds of the parts of a training step: python tests/benchmarks/step_time.py --parts.

`python -m grain_jax.bench step` times the step as a whole.

Every setting of `python -m grain_jax.train` can be given; "first" is with the compilation. The
batch has 1 to 5 real regions an image, 3 on average, as compared in docs/experiments.md. --parts
also times, each compiled by itself, the passes forth and back through each part of the model.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from grain_jax.benchmarking.synthetic_batch import synthetic_batch
from grain_jax.command_line import parse
from grain_jax.config import TrainConfig, validate
from grain_jax.config.cli import SettingsOptions, read_settings
from grain_jax.data.batch import Batch
from grain_jax.models.image_text import ImageTextModel, build_model, normalize_images
from grain_jax.models.packing import capacity
from grain_jax.parallel import sharding
from grain_jax.runtime import restart_with_huge_pages
from grain_jax.training.optimizer import make_optimizer, make_schedule
from grain_jax.training.state import abstract_state, new_state
from grain_jax.training.step import make_train_step


def time_calls(call: Callable[[], Any], steps: int) -> list[float]:
    """Seconds of the first call, which compiles, and of `steps` more."""
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return seconds


def print_parts(model: ImageTextModel, params: Any, batch: Batch, steps: int) -> None:
    """Seconds forward and backward through one part of the model after the other."""
    images = normalize_images(batch.images, (0.5,) * 3, (0.5,) * 3)
    rows = capacity(model.config.description_capacity_factor, batch.region_mask.size)
    descriptions = batch.descriptions.reshape(batch.region_mask.size, -1)[:rows]

    def vision(params: Any) -> jax.Array:
        return jnp.sum(model.apply({"params": params}, images, method=_vision_tokens))

    def texts(tokens: jax.Array) -> Callable[[Any], jax.Array]:
        return lambda params: jnp.sum(
            model.apply({"params": params}, tokens, method="encode_texts")
        )

    def image_side(params: Any) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        output: Any = model.apply(
            {"params": params}, images, train=True, rngs=rngs, method="encode_images"
        )
        leaves = (output.image_embed, output.region_embed, output.boxes)
        return sum((jnp.sum(leaf) for leaf in leaves if leaf is not None), jnp.zeros(()))

    parts = {
        "image tower": vision,
        "image tower and decoder": image_side,
        f"{len(batch.captions)} captions": texts(batch.captions),
        f"{rows} descriptions": texts(descriptions),
    }
    for name, function in parts.items():
        passes = jax.jit(jax.value_and_grad(function))
        print(f"  {name}: best {min(time_calls(lambda p=passes: p(params), steps)[1:]):.3f} s")


def _vision_tokens(model: ImageTextModel, images: jax.Array) -> jax.Array:
    return model.vision(images)


@dataclass
class Options:
    """What to time."""

    timed_steps: int = 5  # steps that are timed, after the first
    parts: bool = False  # time the parts of the model too
    config: SettingsOptions = field(default_factory=TrainConfig)


def main() -> None:
    """Prints one line of seconds."""
    base, words = read_settings(sys.argv[1:])
    options = parse(
        Options, words, command="step_time", description=__doc__, default=Options(config=base)
    )
    config = options.config
    validate(config)
    sharding.set_cpu_devices(config)
    mesh = sharding.make_mesh(config.mesh)
    model, optimizer = build_model(config.model), make_optimizer(config.optim)
    schedule = make_schedule(config.optim, steps=1_000, warmup_steps=10)
    abstract = abstract_state(model, optimizer, config, mesh)
    metrics: dict[str, Any] = {}
    state = new_state(model, optimizer, config, abstract)
    step = make_train_step(model, optimizer, schedule, config, mesh=mesh, abstract=abstract)
    batch = sharding.put_batch(synthetic_batch(config), mesh, batch_size=config.batch_size)

    def call() -> Any:
        nonlocal state, metrics
        state, metrics = step(state, batch)
        return state, metrics

    with sharding.use_mesh(mesh):
        seconds = time_calls(call, options.timed_steps)
    first, timed = seconds[0], sorted(seconds[1:])
    total, weight = metrics["loss"]
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, batch {config.batch_size}: "
        f"median {timed[len(timed) // 2]:.3f} s, best {timed[0]:.3f} s, "
        f"first {first:.1f} s, loss {float(total / weight):.3f}"
    )
    if options.parts:
        with sharding.use_mesh(mesh):
            print_parts(model, state.params, batch, options.timed_steps)


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
