"""Times the compiled training step on a synthetic batch that stays on the devices."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from grain_jax.benchmarking.compiled_step import refusal
from grain_jax.benchmarking.flops import (
    StepFlops,
    TextPositions,
    padded_positions,
    step_flops,
)
from grain_jax.benchmarking.hardware import peak_of
from grain_jax.benchmarking.profile import write_profile
from grain_jax.benchmarking.synthetic_batch import synthetic_batch, text_positions
from grain_jax.config import TrainConfig
from grain_jax.data.batch import Batch
from grain_jax.data.region_coverage import needs_descriptions
from grain_jax.models.image_text import model_of_run
from grain_jax.parallel import sharding
from grain_jax.training.optimizer import make_optimizer, make_schedule
from grain_jax.training.state import TrainState, abstract_state, new_state
from grain_jax.training.step import Metrics, make_train_step
from grain_jax.training.trainable import split_frozen

SCHEDULE_STEPS = 1_000_000  # far more than are timed: the learning rate stays in its warm-up
WARM_UP = 2  # steps
PROFILED = 5  # steps


def percentile(seconds: Sequence[float], percent: int) -> float:
    """Seconds that `percent` of all took at most."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


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
    # Fraction of the time that was spent on taking the next batch; None for a batch that stays.
    data_wait: float | None = None

    @property
    def median(self) -> float:
        """Seconds a step."""
        return statistics.median(self.seconds)

    def percentile(self, percent: int) -> float:
        """Seconds that `percent` of the steps took at most."""
        return percentile(self.seconds, percent)

    @property
    def pace(self) -> float:
        """Seconds a step, from which rates are made: the median, or with a loader the mean, as
        batches come in bursts.
        """
        return self.median if self.data_wait is None else statistics.mean(self.seconds)

    @property
    def images_per_second(self) -> float:
        """Of all devices together."""
        return self.images / self.pace

    @property
    def useful_fraction(self) -> float:
        """FLOPs of texts without padding, and of all of an image, over those that are computed."""
        return self.useful_flops.total / self.flops.total

    def mfu(self, flops: StepFlops) -> float | None:
        """Fraction of the devices' published bfloat16 peak that `flops` a step amount to."""
        peak = peak_of(self.device_kind)
        if peak is None or self.frozen:
            return None
        return flops.total / (self.pace * self.num_devices * peak.bfloat16)


@dataclass
class OpenStep:
    """A compiled step with its state and a random batch, both on the devices of `mesh`."""

    config: TrainConfig
    mesh: Mesh
    compiled: Any
    abstract: TrainState
    state: TrainState
    batch: Batch  # on the devices
    positions: TextPositions  # of the batch, without padding
    compile_seconds: float

    def run(self, batch: Batch | None = None) -> Metrics:
        """Starts one step, on another batch where one is given; does not wait for it."""
        with sharding.use_mesh(self.mesh):
            self.state, metrics = self.compiled(self.state, self.batch if batch is None else batch)
        return metrics

    @property
    def compiled_bytes(self) -> tuple[int, int]:
        """Of state and batch, and of temporaries, on one device, as the compiler plans them."""
        memory = self.compiled.memory_analysis()
        return memory.argument_size_in_bytes, memory.temp_size_in_bytes

    def peak_bytes(self) -> int | None:
        """Most memory that one device has held; None where its allocator does not say."""
        return (self.mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use")

    def timing(
        self,
        seconds: Sequence[float],
        metrics: Metrics,
        *,
        positions: TextPositions | None = None,
        data_wait: float | None = None,
    ) -> StepTiming:
        """What was measured, with what is counted.

        `positions`: those of the timed batches that are text; None: of the random batch.
        """
        config, device = self.config, self.mesh.devices.flat[0]
        wanted = needs_descriptions(config)
        total, weight = metrics["loss"]
        arguments, temporary = self.compiled_bytes
        used = self.positions if positions is None else positions
        return StepTiming(
            seconds=tuple(seconds),
            compile_seconds=self.compile_seconds,
            images=config.batch_size,
            num_devices=self.mesh.size,
            device_kind=device.device_kind,
            loss=float(total / weight),
            flops=step_flops(
                config,
                padded_positions(config, num_shards=sharding.num_batch_shards(self.mesh)),
                with_descriptions=wanted,
            ),
            useful_flops=step_flops(config, used, with_descriptions=wanted),
            frozen=bool(split_frozen(self.abstract.params, config.optim)[1]),
            argument_bytes=arguments,
            temporary_bytes=temporary,
            peak_bytes=self.peak_bytes(),
            data_wait=data_wait,
        )


def open_step(
    config: TrainConfig, mesh: Mesh, *, fits: Callable[[Any], None] = lambda compiled: None
) -> OpenStep:
    """Compiles the step of `config`, then makes its state and a random batch.

    `fits` is given the compiled step before anything is put on a device, and may refuse it. Raises
    `OutOfMemoryError` where the compiler does.
    """
    batch = synthetic_batch(config)
    model, optimizer = model_of_run(config), make_optimizer(config.optim)
    schedule = make_schedule(config.optim, steps=SCHEDULE_STEPS, warmup_steps=SCHEDULE_STEPS // 10)
    abstract = abstract_state(model, optimizer, config, mesh)
    step: Any = make_train_step(model, optimizer, schedule, config, mesh=mesh, abstract=abstract)
    rows = sharding.batch_sharding(mesh)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), batch
    )
    with sharding.use_mesh(mesh):
        started = time.perf_counter()
        lowered = step.lower(abstract, shapes)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise refusal(str(error)) from error
        compile_seconds = time.perf_counter() - started
    fits(compiled)
    return OpenStep(
        config=config,
        mesh=mesh,
        compiled=compiled,
        abstract=abstract,
        state=new_state(model, optimizer, config, abstract),
        batch=sharding.put_batch(batch, mesh, batch_size=config.batch_size),
        positions=text_positions(batch, config, num_shards=sharding.num_batch_shards(mesh)),
        compile_seconds=compile_seconds,
    )


def time_step(
    config: TrainConfig, *, num_steps: int, mesh: Mesh, profile: Path | None = None
) -> StepTiming:
    """Compiles the step of `config` and times `num_steps` after two that warm up.

    Steps are dispatched one ahead, as training does. `profile`: a folder for a trace of five more
    steps, and a page on where their time went.
    """
    step = open_step(config, mesh)
    return time_open_step(step, num_steps=num_steps, profile=profile)


def time_open_step(step: OpenStep, *, num_steps: int, profile: Path | None = None) -> StepTiming:
    """As `time_step`, of a step that is compiled."""
    for _ in range(WARM_UP):
        metrics = step.run()
    jax.block_until_ready(metrics)
    seconds, metrics = one_ahead(step.run, num_steps)
    timing = step.timing(seconds, metrics)
    if profile is not None:
        write_profile(
            profile,
            lambda: jax.block_until_ready([step.run() for _ in range(PROFILED)]),
            text=step.compiled.as_text(),
            num_steps=PROFILED,
        )
    return timing


def one_ahead(run: Callable[[], Metrics], count: int) -> tuple[tuple[float, ...], Metrics]:
    """Seconds from the end of one step to the end of the next, `count` of them."""
    return one_ahead_while(run, lambda ended: ended < count)


def one_ahead_while(
    run: Callable[[], Metrics], more: Callable[[int], bool]
) -> tuple[tuple[float, ...], Metrics]:
    """As `one_ahead`, until `more` is False: it is asked at the start and at the end of each step,
    with the number of steps that have ended. The step whose time begins at that False is the last.
    """
    waited = run()
    ends: list[float] = []
    while more(len(ends)):
        ahead = run()
        jax.block_until_ready(waited)
        ends.append(time.perf_counter())
        waited = ahead
    jax.block_until_ready(waited)
    ends.append(time.perf_counter())
    return tuple(b - a for a, b in itertools.pairwise(ends)), waited
