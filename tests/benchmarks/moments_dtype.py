"""Moments of Adam in bfloat16 against float32: memory, errors, and loss of short runs.

    python tests/benchmarks/moments_dtype.py [--steps=200] [--seeds=3]

Three methods of storage beside float32: the first moment alone, both rounded to the nearest, and
both as `optim.moments_dtype="bfloat16"` does, rounded stochastically. Errors are those of first
moments whose gradients fell by 15 %, and of updates from the same gradients, of a run in float32;
the runs differ in nothing else.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.append(str(Path(__file__).resolve().parents[1] / "helpers"))
from drawn_birds import drawn_batches, small_config

from grain_jax.config import TrainConfig
from grain_jax.models.image_text import abstract_params, build_model
from grain_jax.training.optimizer import clamp_logit_scales, decay_mask, make_schedule
from grain_jax.training.rounded_moments import in_bfloat16
from grain_jax.training.state import abstract_boxed_params, count_parameters
from grain_jax.training.step import batch_loss

LAST = 50  # steps whose mean loss is that of a run
EXACT = "float32"


def to_nearest(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Both moments rounded to the nearest bfloat16."""

    def cast(state: Any, dtype: Any) -> Any:
        mu, nu = optax.tree.cast((state.mu, state.nu), dtype)
        return optax.ScaleByAdamState(state.count, mu, nu)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(grads, cast(state, jnp.float32), params)
        return updates, cast(state, jnp.bfloat16)

    return optax.GradientTransformation(
        lambda params: cast(adam.init(params), jnp.bfloat16), update
    )


def variants(beta2: float, beta1: float = 0.9) -> dict[str, optax.GradientTransformation]:
    """Adam by how it keeps its moments."""
    adam = optax.scale_by_adam(beta1, beta2, 1e-8)
    return {
        EXACT: adam,
        "first (optax)": optax.scale_by_adam(beta1, beta2, 1e-8, mu_dtype=jnp.bfloat16),
        "both to nearest": to_nearest(adam),
        "bfloat16": in_bfloat16(adam),
    }


def print_bytes() -> None:
    """Of the optimizer of ViT-B/16, without computing anything."""
    params = abstract_params(TrainConfig().model)
    print(f"ViT-B/16, {count_parameters(params):,} parameters: optimizer of a device, MiB")
    for name, adam in variants(0.98).items():
        state = jax.eval_shape(adam.init, params)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        print(f"  {name:16} {size / 2**20:10,.1f}")


def first_moment(adam: optax.GradientTransformation, drawn: Any, sizes: Any) -> np.ndarray:
    """After updates with gradients of `drawn` times each of `sizes`."""

    def update(state: Any, size: Any) -> tuple[Any, None]:
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(size * drawn, state)[1], None

    state = jax.jit(lambda start: jax.lax.scan(update, start, sizes)[0])(adam.init(drawn))
    return np.asarray(state.mu, np.float64)


def print_first_moments() -> None:
    """How far they are off after gradients that stood still, fell by 15 % and stood still again."""
    print("gradients that fell by 15 %: first moment / that of float32, less 1: mean, deviation")
    names = [name for name in variants(0.98) if name != EXACT]
    print(f"  {'beta1':>6} " + " ".join(f"{name:>20}" for name in names))
    drawn = jnp.asarray(np.random.default_rng(0).uniform(1, 2, 4_096), jnp.float32)
    for beta1 in (0.9, 0.95, 0.99):
        steps = round(8 / (1 - beta1))
        sizes = jnp.repeat(jnp.array([1, 0.85], jnp.float32), steps)
        found = {
            name: first_moment(adam, drawn, sizes) for name, adam in variants(0.98, beta1).items()
        }
        ratios = [found[name] / found[EXACT] - 1 for name in names]
        row = [f"{ratio.mean():+.1e} {ratio.std():.1e}" for ratio in ratios]
        print(f"  {beta1:>6} " + " ".join(f"{text:>20}" for text in row), flush=True)


class Run:
    """Steps of one seed, with a gradient that is compiled once for all of them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.config = small_config(batch_size=32, num_images=2_048)
        self.config.optim.warmup_steps = 20
        model, config = build_model(self.config.model), self.config
        self.schedule = make_schedule(config.optim, steps=steps, warmup_steps=20)

        def loss(params: Any, batch: Any) -> Any:
            return batch_loss(model, params, batch, config, rng=jax.random.key(0))[0]

        self.gradient: Callable[..., Any] = jax.jit(jax.value_and_grad(loss))
        boxed = abstract_boxed_params(model, config)

        def start(seed: Any) -> Any:
            size, data = config.model.image_size, config.data
            texts = jnp.zeros((1, data.caption_length), jnp.int32)
            descriptions = jnp.zeros((1, data.max_regions, data.description_length), jnp.int32)
            images = jnp.zeros((1, size, size, 3), jnp.float32)
            return nn.unbox(model.init(jax.random.key(seed), images, texts, descriptions)["params"])

        self.start = jax.jit(start)
        self.decays = decay_mask(nn.unbox(boxed), "matrices")

    def batches(self, seed: int) -> list[Any]:
        """Those of the run and, after them, four that are not trained on."""
        return drawn_batches(self.config, self.steps + 4, seed=seed)

    def chain(self, adam: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer around it, as `make_optimizer` makes it."""
        return optax.chain(
            optax.clip_by_global_norm(self.config.optim.clip_grad_norm),
            adam,
            optax.add_decayed_weights(self.config.optim.weight_decay, mask=self.decays),
        )

    def step_of(self, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
        """(parameters, state, gradients, rate) to parameters, state and update."""

        def step(params: Any, state: Any, grads: Any, rate: Any) -> Any:
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(grads, state, params)
            moved = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            return clamp_logit_scales(moved, max_scale=100.0), state, updates

        return jax.jit(step)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def print_errors(run: Run, beta2: float, batches: list[Any]) -> None:
    """Of updates from the gradients of a run in float32."""
    made = {name: run.chain(adam) for name, adam in variants(beta2).items()}
    steps = {name: run.step_of(optimizer) for name, optimizer in made.items()}
    params = run.start(0)
    states = {name: optimizer.init(params) for name, optimizer in made.items()}
    shown = sorted({10, 30, 100, run.steps} & set(range(run.steps + 1)))
    print(f"beta2 = {beta2}: error of the update / its length; of sqrt(second moment), median bias")
    print(f"  {'step':>6} " + " ".join(f"{name:>24}" for name in made if name != EXACT))
    for number, batch in enumerate(batches[: run.steps], start=1):
        _, grads = run.gradient(params, batch)
        rate = run.schedule(jnp.asarray(number - 1))
        found = {name: steps[name](params, states[name], grads, rate) for name in made}
        states = {name: state for name, (_, state, _) in found.items()}
        params = found[EXACT][0]
        if number not in shown:
            continue
        exact, root = flat(found[EXACT][2]), np.sqrt(flat(states[EXACT][1].nu))
        row = []
        for name in made:
            if name == EXACT:
                continue
            error = np.linalg.norm(flat(found[name][2]) - exact) / np.linalg.norm(exact)
            seen = root > 1e-12
            ratio = np.sqrt(flat(states[name][1].nu))[seen] / root[seen]
            row.append(f"{error:10.2e} {np.median(ratio) - 1:+.1e}")
        print(f"  {number:>6} " + " ".join(f"{text:>24}" for text in row), flush=True)


def print_losses(run: Run, seeds: int) -> None:
    """Of short runs, each seed with every method of storage."""
    print(f"{run.steps} steps: mean loss of the last {LAST} (and of 4 other batches)")
    made = {name: run.chain(adam) for name, adam in variants(run.config.optim.beta2).items()}
    steps = {name: run.step_of(optimizer) for name, optimizer in made.items()}
    print(f"  {'seed':>6} " + " ".join(f"{name:>18}" for name in made))
    for seed in range(seeds):
        batches, row = run.batches(seed), []
        for name, optimizer in made.items():
            params = run.start(seed)
            state, losses = optimizer.init(params), []
            for number, batch in enumerate(batches[: run.steps]):
                loss, grads = run.gradient(params, batch)
                losses.append(loss)
                rate = run.schedule(jnp.asarray(number))
                params, state, _ = steps[name](params, state, grads, rate)
            held_out = [run.gradient(params, batch)[0] for batch in batches[run.steps :]]
            row.append(f"{np.mean(losses[-LAST:]):.4f} ({np.mean(held_out):.4f})")
        print(f"  {seed:>6} " + " ".join(f"{text:>18}" for text in row), flush=True)


def main() -> None:
    """Prints the four tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print_bytes()
    print_first_moments()
    run = Run(options.steps)
    batches = run.batches(0)
    for beta2 in (0.98, 0.999):
        print_errors(run, beta2, batches)
    print_losses(run, options.seeds)


if __name__ == "__main__":
    main()
