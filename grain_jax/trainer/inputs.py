"""What a run starts from, opened and checked: the part of training that needs no device."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh

from grain_jax import buckets, runtime
from grain_jax.config import DataConfig, TrainConfig, validate
from grain_jax.config.validation import unread_notes
from grain_jax.data.decoded_cache import cache_notes
from grain_jax.data.loader import check_batch_fits
from grain_jax.data.loader_plan import most_workers
from grain_jax.data.mixture import Mixture
from grain_jax.data.records import Source
from grain_jax.data.region_coverage import (
    RegionCoverage,
    check_regions,
    needs_regions,
    region_coverage,
)
from grain_jax.data.source import data_source, open_training_source
from grain_jax.data.text_lengths import text_length_notes
from grain_jax.data.tokenizer import Tokenizer, build_tokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.evaluation.best_metric import check_best_metric
from grain_jax.evaluation.suite import check_inputs
from grain_jax.loading import initialize
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.image_text import model_of_run
from grain_jax.models.learned import NOTHING, Learned, learned_before, learns
from grain_jax.parallel import processes, sharding
from grain_jax.parallel.presets import choose_sizes
from grain_jax.paths import AnyPath
from grain_jax.training import checkpoint, run_folder
from grain_jax.training.optimizer import num_steps, num_warmup_steps
from grain_jax.training.progress import Screen, what_trains
from grain_jax.training.resume import changed_settings, check_same_data, check_schedule
from grain_jax.training.state import abstract_boxed_params


@dataclass(frozen=True)
class Inputs:
    """What a run starts from, opened and checked, before anything is on a device."""

    config: TrainConfig  # with the settings that come with the weights of `pretrained`
    trained: ModelBundle | None  # the weights of `pretrained`, for a new run
    inherited: Sequence[str]  # paths of the settings inherited from them
    source: Source
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    steps: int  # of the whole schedule
    warmup_steps: int
    coverage: RegionCoverage | None  # of the training split, where the run needs regions
    learned: Learned  # what the weights that it starts from have learned
    will_learn: Learned  # that and what this run teaches them
    notes: list[str]


@processes.errors_in_all()
def open_inputs(config: TrainConfig, workdir: AnyPath, newest: int | None) -> Inputs:
    """Opens weights to start from and data; ValueError for what the user must change.

    `newest`: the checkpoint of `workdir` that the run resumes from, None for a new run.
    """
    # What the weights change nothing of is found out before they are read.
    size = config.model.image_size
    train = open_training_source(config.data, image_size=size)
    check_batch_fits(train, config.batch_size)

    # Weights to start from, and the settings that come with them.
    given = initialize.pretrained(config, workdir)
    config, notes = given.config, [*given.notes]
    validate(config)
    notes += unread_notes(config)

    # Data. A batch is a function of the step, so there is no loader state to restore.
    source = train
    if config.model.image_size != size:  # came with the weights
        size = config.model.image_size
        source = open_training_source(config.data, image_size=size)
    tokenizer = given.tokenizer or build_tokenizer(config.data, pooling=config.model.text.pooling)
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise ValueError(
            f"data.tokenizer = {config.data.tokenizer!r} has {tokenizer.vocab_size} tokens, "
            f"model.text.vocab_size = {config.model.text.vocab_size}; raise the latter."
        )
    coverage = region_coverage(source) if needs_regions(config) else None
    if coverage is not None:
        notes += check_regions(config, coverage)
    data = data_source(config.data, image_size=size)
    held_out = [data.records(split)] if (split := data.held_out_split) else []
    notes += cache_notes(source, *held_out, data=config.data, image_size=size)
    check_inputs(config, note=lambda text: notes.append(text.rstrip(".")))
    learned = NOTHING
    if newest is not None:
        learned = learned_before(_saved(workdir, newest))
    elif given.trained is not None and given.trained.config.model.type == "grain":
        learned = given.trained.learned
    will_learn = learned | learns(config, any_regions=coverage is None or coverage.any_regions)
    notes += check_best_metric(config, learned=will_learn)
    steps, warmup_steps = num_steps(config, len(source)), num_warmup_steps(config, len(source))
    if newest is None:  # a run that goes on keeps its lengths
        notes += text_length_notes(
            source, config, tokenizer, images_per_stream=_images_per_stream(config)
        )
    if warmup_steps >= steps:
        notes.append(f"the warm-up takes {warmup_steps} steps, the whole run has {steps}")
    notes += late_notes(config, start_step=newest or 0, steps=steps)
    return Inputs(
        config=config,
        trained=given.trained,
        inherited=given.inherited,
        source=source,
        tokenizer=tokenizer,
        preprocessing=Preprocessing.from_config(config.data, size),
        steps=steps,
        warmup_steps=warmup_steps,
        coverage=coverage,
        learned=learned,
        will_learn=will_learn,
        notes=notes,
    )


def _images_per_stream(config: TrainConfig) -> int:
    """Images of a device in a micro-batch."""
    shards = max(jax.device_count() // max(config.mesh.tensor, 1), 1)
    return max(config.batch_size // (shards * config.optim.grad_cache_chunks), 1)


def last_step(config: TrainConfig, *, start_step: int, steps: int) -> int:
    """The step after which this process ends, of a run of `steps` that it joins at `start_step`."""
    limit = config.max_steps_this_run
    return min(steps, start_step + limit) if limit else steps


def late_notes(config: TrainConfig, *, start_step: int, steps: int) -> list[str]:
    """On settings that name a step which does not come."""
    notes, last = [], last_step(config, start_step=start_step, steps=steps)
    if config.max_steps_this_run > steps - start_step >= 0:
        notes.append(
            f"without effect, as {steps - start_step} steps are left: max_steps_this_run = "
            f"{config.max_steps_this_run}"
        )
    profiled = config.logging.profile_step
    if profiled >= 0 and not start_step < max(profiled, 1) <= last:
        notes.append(
            f"without effect, as steps {start_step + 1} to {last} are trained: "
            f"logging.profile_step = {profiled}, so no trace is written"
        )
    return notes


@processes.errors_in_all()
def resume_notes(
    inputs: Inputs, workdir: AnyPath, step: int, *, change_schedule: bool
) -> list[str]:
    """What changes where the run resumes from `step`; ValueError for what may not change."""
    saved = _saved(workdir, step)
    check_same_data(saved, inputs.source, workdir)
    changed = changed_settings(saved["config"], inputs.config, workdir)
    rate = check_schedule(saved, inputs.config, step=step, workdir=workdir, allowed=change_schedule)
    return [f"changed: {setting}" for setting in [*changed, *rate]]


def _saved(workdir: AnyPath, step: int) -> dict[str, Any]:
    return run_folder.read_metadata(run_folder.checkpoints(workdir), step)


def check(config: TrainConfig, workdir: AnyPath, *, devices: str, change_schedule: bool) -> None:
    """Checks what a run needs but its devices, and says what would start; writes nothing.

    `devices`: "" where their number is not known, "16", or "2x8" for two slices (nodes) of eight.
    Raises ValueError for what the user must change.
    """
    jax.config.update("jax_platforms", "cpu")  # a login node has nothing else
    num_slices = slice_size = 1
    if devices:
        match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", devices)
        if match is None:
            raise ValueError(f"--check_devices={devices!r}: expected a number such as 16, or 2x8.")
        num_slices, slice_size = int(match[1] or 1), int(match[2])
        sizes = choose_sizes(config, num_slices=num_slices, slice_size=slice_size)
        sharding.check_slices(sizes, num_slices=num_slices, slice_size=slice_size)
        shape = sharding.mesh_shape(sizes, num_slices * slice_size)
        sharding.check_batch(config, shape)
    if buckets.in_bucket(workdir):
        buckets.check(workdir)
    newest = checkpoint.latest_in_all(workdir)
    inputs = open_inputs(config, workdir, newest)
    config, notes = inputs.config, inputs.notes
    if newest is not None:
        notes += resume_notes(inputs, workdir, newest, change_schedule=change_schedule)
    model = model_of_run(config)
    boxed = abstract_boxed_params(model, config)
    if devices:
        sharding.parameter_shardings(boxed, AbstractMesh(shape, sharding.AXES))
    params = nn.unbox(boxed)
    screen = Screen()
    rows = what_trains(config, params, num_images=len(inputs.source), steps=inputs.steps)
    screen.table(rows | data_rows(inputs) | {"run folder": folder_in_words(workdir, newest)})
    for note in notes:
        screen.note(note)
    screen.say("Checked: settings and data. Nothing was started.")


def data_rows(inputs: Inputs) -> dict[str, str]:
    """The sets of a mixture, and how many images have regions where the run needs them."""
    rows = {}
    if isinstance(inputs.source, Mixture):
        samples = inputs.steps * inputs.config.batch_size
        rows["mixture"] = mixture_in_words(inputs.source, samples=samples)
    if inputs.coverage is not None:
        rows["regions"] = inputs.coverage.sentence()
    return rows


def mixture_in_words(mixture: Mixture, *, samples: int) -> str:
    """A line for each set: its size, its part of the `samples` of a run, and its epochs in them."""
    lines = []
    for number, (name, source) in enumerate(zip(mixture.names, mixture.sources, strict=True)):
        fraction, weight = mixture.fraction(number), float(mixture.weights[number])
        lines.append(
            f"{name}: {len(source):,} images, weight {weight:g} ({100 * fraction:.3g} % of the "
            f"samples), {samples * fraction / len(source):.3g} epochs"
        )
    return "\n".join(lines)


def folder_in_words(workdir: AnyPath, step: int | None) -> str:
    """In words, for the screen; `step`: the checkpoint that is resumed from, None for a new run."""
    return str(workdir) + (f", resumed at step {step}" if step else "")


def fitting_loader(data: DataConfig, *, rows: int) -> tuple[DataConfig, list[str]]:
    """`data` with no more loader processes than this process has CPUs, and than its `rows` of each
    batch can be divided among; a note where that changed it.

    Batches stay the same, whoever makes them.
    """
    cpus, most = runtime.usable_cpus(), most_workers(data, rows)
    if data.num_workers <= min(cpus, most):
        return data, []
    given = f"data.num_workers = {data.num_workers}"
    if cpus <= most:
        return dataclasses.replace(data, num_workers=cpus), [
            f"{given}, and this process may use {cpus} of the CPUs: {cpus} loader processes are "
            "started. Ask the batch system for more CPUs where the data wait is not near 0 (Slurm: "
            "--cpus-per-task)"
        ]
    started = (
        f"{most} loader processes are started"
        if most
        else "threads of this process make the batches"
    )
    return dataclasses.replace(data, num_workers=most), [
        f"{given}, and data.prefetch_batches = {data.prefetch_batches} batches with {rows} images "
        f"of this process each are too few for so many: {started}"
    ]
