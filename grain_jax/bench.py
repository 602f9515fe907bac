"""Times training on these devices: images a second, MFU, memory, compilation.

  python -m grain_jax.bench step       the training step alone, on a random batch
  python -m grain_jax.bench loader     the loader alone, on the data of --config
  python -m grain_jax.bench full       the step on batches of the loader, and its wait for data
  python -m grain_jax.bench eval       images and texts of a zero-shot set, with random weights
  python -m grain_jax.bench checkpoint saving and restoring, and how long they block the step
  python -m grain_jax.bench sweep      batch sizes and remat, up to what does not fit

Each takes --config=FILE and every setting of `python -m grain_jax.train`, and prints a table;
--json=FILE has all figures. Weights are random, and nothing is kept but what is asked for. Settings
of what is not measured, as of evaluations in bench step, change nothing. It takes one process with
all devices of its host: a slice of several hosts is not timed. On a CPU under Linux it starts
itself again with huge pages, as training does.
"""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Annotated, Any

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from grain_jax import runtime
from grain_jax.benchmarking import official, open_clip_step, report
from grain_jax.benchmarking.candidates import Candidate
from grain_jax.benchmarking.checkpoints import time_checkpoint
from grain_jax.benchmarking.compiled_step import OutOfMemoryError, refusal
from grain_jax.benchmarking.environment import environment, environment_rows, load_averages
from grain_jax.benchmarking.evaluation import random_set, time_evaluation
from grain_jax.benchmarking.loading import time_full, time_loader
from grain_jax.benchmarking.official import OfficialStep
from grain_jax.benchmarking.open_clip_step import OpenClipStep
from grain_jax.benchmarking.peer_process import peer_process
from grain_jax.benchmarking.profile import PAGE
from grain_jax.benchmarking.step import open_step, time_open_step
from grain_jax.benchmarking.sweep import FIRST, best, sweep
from grain_jax.benchmarking.synthetic_batch import validate_without_data
from grain_jax.benchmarking.turns import Peer, time_in_turns
from grain_jax.command_line import (
    Count,
    ExitStatus,
    NotParsed,
    OptionalPath,
    end,
    given_options,
    may_be_cut,
    parse,
    refuse_unread,
    status_of,
)
from grain_jax.config import DataConfig, TrainConfig, validate
from grain_jax.config.cli import SettingsOptions, read_settings
from grain_jax.config.schema import Remat
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.parallel import sharding
from grain_jax.parallel.presets import choose_mesh
from grain_jax.parallel.processes import ProcessOptions, is_one_of_many
from grain_jax.terminal import escape_unprintable
from grain_jax.trainer.inputs import fitting_loader
from grain_jax.training.checkpoint import SaveFailed

_FOLDER = arg(metavar="DIR")
WIDE = 110  # columns of the table of a sweep
# Settings of a run that no kind reads, with what to do instead; those of one kind are in `KINDS`.
UNREAD = {
    "--max_steps_this_run": "leave it out",
    "--logging.profile_step": "give --profile=DIR of bench step in its place",
    "--logging.compilation_cache": "leave it out, as the compilation is timed",
    "--logging.plan": "leave it out; a run prints its plan beside what it measures",
}
TIMED = dict.fromkeys(("--steps", "--epochs"), "give --timed_steps in its place")
ROUNDS = dict.fromkeys(("--steps", "--epochs"), "give --rounds in its place")


@dataclass
class Options:
    """What every kind of measurement takes."""

    json: OptionalPath = None  # file for all figures, to paste
    config: SettingsOptions = field(default_factory=TrainConfig)


@dataclass
class TimedOptions(Options):
    """What `bench loader` and `bench full` take."""

    timed_steps: Count = 20  # steps or batches that are timed, after those that warm up


@dataclass
class StepOptions(TimedOptions):
    """What `bench step` takes."""

    # folder for a profiler trace of five more steps, and a page on where their time goes
    profile: Annotated[OptionalPath, _FOLDER] = None
    # checkout of the official code, whose step is timed in turns with this one (needs torch)
    official: Annotated[OptionalPath, _FOLDER] = None
    open_clip: bool = False  # likewise the step of open_clip's CLIP, for model.type=clip
    turns: Count = 5  # of each code, with official and open_clip


@dataclass
class EvalOptions(Options):
    """What `bench eval` takes."""

    set: Annotated[OptionalPath, _FOLDER] = None  # a zero-shot set; without: random JPEG images
    num_images: Count = 512  # of the random set
    num_classes: Count = 100  # of the random set
    rounds: Count = 2  # after the first, which compiles


@dataclass
class CheckpointOptions(Options):
    """What `bench checkpoint` takes."""

    # where to write, into a folder that is deleted; without: the system's temporary folder
    workdir: Annotated[OptionalPath, _FOLDER] = None
    rounds: Count = 3  # saves and restores


@dataclass
class SweepOptions(TimedOptions):
    """What `bench sweep` takes."""

    batch_sizes: tuple[Count, ...] = ()  # as 64 128 256; without: doubled until one does not fit
    remats: tuple[Remat, ...] = ("none", "dots", "full")  # values of model.remat


@dataclass(frozen=True)
class Measured:
    """What is shown and stored of a measurement."""

    rows: dict[str, str]
    figures: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    escape_unprintable()
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True)
    try:
        if words[:1] in (["--help"], ["-h"]):
            with may_be_cut():
                print(__doc__)
            return ExitStatus.DONE
        if not words or words[0] not in KINDS:
            given = words[0] if words else "nothing"
            raise ValueError(
                f"Expected one of {', '.join(KINDS)} after the command, given: {given}."
            )
        kind, load = KINDS[words[0]], load_averages()
        options = _parse(words[0], kind.options, words[1:])
        measured = _measure(kind, options)
        found = environment(load)
        model = report.model_row(options.config, with_batch=kind.takes_batch)
        # First: the file may fail.
        with may_be_cut():
            print_table(environment_rows(found) | {"model": model} | measured.rows, Console())
        if options.json is not None:
            stored = {"measured": words[0], **measured.figures, **found}
            stored["config"] = report.settings(options.config)
            options.json.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    except NotParsed as parsed:
        return parsed.status
    except SaveFailed as error:
        console.print(f"Stopped: {error}", style="red", markup=False, soft_wrap=True)
        return ExitStatus.STOPPED
    except (ValueError, OSError) as error:
        console.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        return status_of(error)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return ExitStatus.INTERRUPTED
    return ExitStatus.DONE


def _parse(kind: str, options: type[Options], words: Sequence[str]) -> Any:
    base, words = read_settings(words)
    given = given_options(words)
    _refuse_several(any(f"--{one.name}" in given for one in fields(ProcessOptions)))
    refuse_unread(given, UNREAD | KINDS[kind].unread, command=f"bench {kind}")
    parsed = parse(
        options, words, command=f"bench {kind}", description=__doc__, default=options(config=base)
    )
    _refuse_unread_together(parsed, given)
    if parsed.json is not None and not parsed.json.resolve().parent.is_dir():
        raise ValueError(f"--json={parsed.json}: its folder does not exist; make it first.")
    return parsed


def _refuse_unread_together(options: Options, given: Collection[str]) -> None:
    """Raises ValueError for options that others leave without effect."""
    if isinstance(options, StepOptions) and options.official is None and not options.open_clip:
        add = "add --official=CHECKOUT or --open_clip"
        refuse_unread(given, {"--turns": add}, command="bench step without another code")
    if isinstance(options, EvalOptions) and options.set is not None:
        own = f"leave it out, as --set={options.set} has its own"
        sizes = {"--num_images": own, "--num_classes": own}
        refuse_unread(given, sizes, command="a set that is given")


def _measure(kind: "Kind", options: Options) -> Measured:
    """Raises ValueError with what to change where the memory of a device does not suffice."""
    try:
        return kind.measure(options)
    except (OutOfMemoryError, jax.errors.JaxRuntimeError) as error:
        found = error if isinstance(error, OutOfMemoryError) else refusal(str(error))
        if not isinstance(found, OutOfMemoryError):
            raise
        raise ValueError(
            f"The memory of a device does not suffice: {found}. Next to try: {kind.smaller}."
        ) from error


def _open_mesh(config: TrainConfig, *, batch_sizes: Sequence[int]) -> Mesh:
    """The devices that training takes.

    Raises ValueError where they do not fit the settings, or do not divide one of `batch_sizes`, and
    in one of several processes.
    """
    _refuse_several(is_one_of_many(os.environ))
    runtime.quiet_libraries()
    sharding.set_cpu_devices(config)
    runtime.open_devices()
    _refuse_several(jax.process_count() > 1)  # hosts of a TPU slice know each other without asking
    mesh = choose_mesh(config)
    for size in batch_sizes:
        sharding.check_batch(replace(config, batch_size=size), mesh.devices.shape)
    return mesh


def _refuse_several(several: bool) -> None:
    if several:
        raise ValueError(
            "bench measures one process with the devices of its host, and this is one of several "
            "processes; start it once, in a step of one task, on a host with devices of its own. "
            "A run of several hosts logs its own images/s."
        )


def measure_step(options: StepOptions) -> Measured:
    """Of the step alone, or in turns with other codes."""
    config = options.config
    validate_without_data(config)
    if options.official is not None or options.open_clip:
        # JAX would take most of a GPU's memory for itself.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    mesh = _open_mesh(config, batch_sizes=[config.batch_size])
    builders: dict[str, Callable[[], Peer]] = {}
    if options.official is not None:
        official.check_settings(config)
        builders[OfficialStep.name] = partial(OfficialStep, options.official, config)
    if options.open_clip:
        open_clip_step.check_settings(config)
        builders[OpenClipStep.name] = partial(OpenClipStep, config)
    if builders and mesh.size > 1:
        raise ValueError(
            f"--official and --open_clip compare one device with one, and there are {mesh.size}; "
            "leave one, as with --mesh.cpu_devices=1 or CUDA_VISIBLE_DEVICES=0."
        )
    with contextlib.ExitStack() as processes:
        peers = [  # first: what they need may be missing
            processes.enter_context(peer_process(name, build)) for name, build in builders.items()
        ]
        step = open_step(config, mesh)
        timing = time_open_step(step, num_steps=options.timed_steps, profile=options.profile)
        rows, figures = report.step_rows(timing), report.step_figures(timing)
        if options.profile is not None:
            rows["profile"] = str(options.profile / PAGE)
        for peer in peers:
            turns = time_in_turns(step, peer, num_turns=options.turns)
            rows |= report.turns_rows(turns)
            figures[peer.name] = report.turns_figures(turns)
    return Measured(rows, figures)


def _open_loader(config: TrainConfig) -> tuple[Mesh, DataConfig, list[str]]:
    """The devices, the loader's settings as training has them, and notes on what was changed."""
    _validate_with_data(config)
    mesh = _open_mesh(config, batch_sizes=[config.batch_size])
    rows = sharding.local_rows(sharding.batch_sharding(mesh), config.batch_size)
    return mesh, *fitting_loader(config.data, rows=len(rows))


def measure_loader(options: TimedOptions) -> Measured:
    """Of the loader alone."""
    config = options.config
    mesh, loader, notes = _open_loader(config)
    timing = time_loader(config, loader, num_batches=options.timed_steps, mesh=mesh)
    return Measured(report.loader_rows(timing) | _noted(notes), report.loader_figures(timing))


def measure_full(options: TimedOptions) -> Measured:
    """Of the step on batches of the loader."""
    config = options.config
    mesh, loader, notes = _open_loader(config)
    timing = time_full(config, loader, num_steps=options.timed_steps, mesh=mesh)
    return Measured(report.step_rows(timing) | _noted(notes), report.step_figures(timing))


def measure_evaluation(options: EvalOptions) -> Measured:
    """Of encoding and classifying a zero-shot set."""
    config = options.config
    validate_without_data(config)
    mesh = _open_mesh(config, batch_sizes=[])
    if options.set is None:
        dataset = random_set(config, num_images=options.num_images, num_classes=options.num_classes)
    else:
        dataset = load_zero_shot(options.set, note=lambda text: None)
    timing = time_evaluation(config, dataset, rounds=options.rounds, mesh=mesh)
    return Measured(report.evaluation_rows(timing), report.evaluation_figures(timing))


def measure_checkpoint(options: CheckpointOptions) -> Measured:
    """Of saving and restoring."""
    config = options.config
    validate_without_data(config)
    mesh = _open_mesh(config, batch_sizes=[config.batch_size])
    timing = time_checkpoint(config, rounds=options.rounds, mesh=mesh, folder=options.workdir)
    return Measured(report.checkpoint_rows(timing), report.checkpoint_figures(timing))


def measure_sweep(options: SweepOptions) -> Measured:
    """Of batch sizes and remat; prints each line once it is there, as a sweep takes long."""
    config = options.config
    if not options.remats:
        raise ValueError("--remats: at least one, as --remats none full.")
    sizes = sorted(set(options.batch_sizes))
    first = FIRST * config.optim.grad_cache_chunks
    for remat, size in itertools.product(options.remats, sizes or [first]):
        validate_without_data(Candidate(None, remat, size).config(config))
    mesh, found, console = _open_mesh(config, batch_sizes=sizes), [], Console(stderr=True)
    for variant in sweep(
        config,
        batch_sizes=sizes or None,
        remats=options.remats,
        num_steps=options.timed_steps,
        mesh=mesh,
    ):
        found.append(variant)
        console.print("  ".join(report.sweep_cells(variant, is_best=False)), highlight=False)
    table = Table(*report.SWEEP_COLUMNS)
    top = best(found)
    for variant in found:
        table.add_row(*report.sweep_cells(variant, is_best=variant is top))
    Console(width=max(Console().width, WIDE)).print(table)  # a line stays one, to paste
    return Measured({}, report.sweep_figures(found))


def _validate_with_data(config: TrainConfig) -> None:
    if config.pretrained:
        validate_without_data(config)  # says that weights are random here
    validate(config)


def _noted(notes: Sequence[str]) -> dict[str, str]:
    return {"note": "\n".join(notes)} if notes else {}


SPLIT = "more devices with --mesh.preset=fsdp"


@dataclass(frozen=True)
class Kind:
    """A kind of measurement: its options, and how it is done."""

    options: type[Options]
    measure: Callable[[Any], Measured]
    takes_batch: bool = True  # batch_size and model.remat of the settings
    # What to change where the memory of a device does not suffice.
    smaller: str = f"a smaller --batch_size, --model.remat=full, or {SPLIT}"
    # Settings that it does not read, with what to do instead.
    unread: dict[str, str] = field(default_factory=lambda: TIMED)


KINDS = {
    "step": Kind(StepOptions, measure_step),
    "loader": Kind(TimedOptions, measure_loader),
    "full": Kind(TimedOptions, measure_full),
    "eval": Kind(
        EvalOptions,
        measure_evaluation,
        takes_batch=False,
        smaller=f"a smaller --evaluation.batch_size, or {SPLIT}",
        unread=ROUNDS
        | {"--batch_size": "give --evaluation.batch_size in its place"}
        | {"--evaluation.zero_shot": "give --set=DIR in its place"},
    ),
    "checkpoint": Kind(
        CheckpointOptions,
        measure_checkpoint,
        smaller=f"a smaller --batch_size, or {SPLIT}, as a restore holds the state twice",
        unread=ROUNDS,
    ),
    "sweep": Kind(
        SweepOptions,
        measure_sweep,
        takes_batch=False,
        unread=TIMED
        | {"--batch_size": "give --batch_sizes in its place"}
        | {"--model.remat": "give --remats in its place"},
    ),
}


def print_table(rows: Mapping[str, str], console: Console) -> None:
    """Prints what was measured, two columns."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


if __name__ == "__main__":
    runtime.restart_with_huge_pages()
    end(main())
