"""Times the compiled training step on a synthetic batch that stays on the devices."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from grain_jax.benchmarking.flops import StepFlops, padded_positions, step_flops
from grain_jax.benchmarking.hardware import peak_of
from grain_jax.benchmarking.synthetic_batch import synthetic_batch, text_positions
from grain_jax.config import TrainConfig
from grain_jax.data.region_coverage import needs_descriptions
from grain_jax.models.image_text import build_model
from grain_jax.parallel import sharding
from grain_jax.training.optimizer import make_optimizer, make_schedule
from grain_jax.training.state import abstract_state, new_state
from grain_jax.training.step import make_train_step
from grain_jax.training.trainable import split_frozen

SCHEDULE_STEPS = 1_000_000  # far more than are timed: the learning rate stays in its warm-up


@dataclass(frozen=True)
class StepTiming:
    """What a step of a configuration took; sizes in bytes are of one device."""

    seconds: tuple[float, ...]  # of each timed step
    compile_seconds: float
    images: int  # of the global batch
    num_devices: int
    device_kind: str
    loss: float  # of the last step
    flops: StepFlops  # of all positions, padding included
    useful_flops: StepFlops  # of the positions that are text, and of all of an image's
    frozen: bool  # some parameters get no gradient, so that fewer FLOPs than counted are spent
    argument_bytes: int  # state and batch, as compiled
    temporary_bytes: int  # activations and workspaces, as compiled
    peak_bytes: int | None  # measured by the allocator; None where it does not say

    @property
    def median(self) -> float:
        """Seconds a step."""
        return statistics.median(self.seconds)

    def percentile(self, percent: int) -> float:
        """Seconds that `percent` of the steps took at most."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]

    @property
    def images_per_second(self) -> float:
        """Of all devices together."""
        return self.images / self.median

    def mfu(self, flops: StepFlops) -> float | None:
        """Fraction of the devices' published bfloat16 peak that `flops` a step amount to."""
        peak = peak_of(self.device_kind)
        if peak is None or self.frozen:
            return None
        return flops.total / (self.median * self.num_devices * peak.bfloat16)


def time_step(
    config: TrainConfig,
    *,
    num_steps: int,
    mesh: Mesh,
    profile: Callable[[], Any] | None = None,
) -> StepTiming:
    """Compiles the step of `config` and times `num_steps` after two that warm up.

    Steps are dispatched one ahead, as training does. `profile` gives a context that five more steps
    run in.
    """
    batch = synthetic_batch(config)
    model, optimizer = build_model(config.model), make_optimizer(config.optim)
    schedule = make_schedule(config.optim, steps=SCHEDULE_STEPS, warmup_steps=SCHEDULE_STEPS // 10)
    abstract = abstract_state(model, optimizer, config, mesh)
    state = new_state(model, optimizer, config, abstract)
    step: Any = make_train_step(model, optimizer, schedule, config, mesh=mesh, abstract=abstract)
    placed = sharding.put_batch(batch, mesh, batch_size=config.batch_size)
    with sharding.use_mesh(mesh):
        started = time.perf_counter()
        compiled = step.lower(state, placed).compile()
        compile_seconds = time.perf_counter() - started
        for _ in range(2):
            state, metrics = compiled(state, placed)
        jax.block_until_ready(metrics)
        seconds, state, metrics = _timed(compiled, state, placed, num_steps)
        if profile is not None:
            with profile():
                _, state, metrics = _timed(compiled, state, placed, 5)
    memory = compiled.memory_analysis()
    device = mesh.devices.flat[0]
    wanted = needs_descriptions(config)
    total, weight = metrics["loss"]
    return StepTiming(
        seconds=seconds,
        compile_seconds=compile_seconds,
        images=config.batch_size,
        num_devices=mesh.size,
        device_kind=device.device_kind,
        loss=float(total / weight),
        flops=step_flops(config, padded_positions(config), with_descriptions=wanted),
        useful_flops=step_flops(config, text_positions(batch), with_descriptions=wanted),
        frozen=bool(split_frozen(abstract.params, config.optim)[1]),
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=(device.memory_stats() or {}).get("peak_bytes_in_use"),
    )


def _timed(
    compiled: Any, state: Any, batch: Any, count: int
) -> tuple[tuple[float, ...], Any, dict[str, Any]]:
    """Seconds from the end of one step to the end of the next, `count` of them."""
    state, waited = compiled(state, batch)
    ends: list[float] = []
    for _ in range(count):
        state, ahead = compiled(state, batch)
        jax.block_until_ready(waited)
        ends.append(time.perf_counter())
        waited = ahead
    jax.block_until_ready(waited)
    ends.append(time.perf_counter())
    return tuple(b - a for a, b in itertools.pairwise(ends)), state, waited
