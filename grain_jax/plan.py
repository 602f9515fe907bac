"""Compiles a training step for devices that need not be there, and says whether it fits.

  python -m grain_jax.plan --topology=NAME --config=FILE [--SETTING=VALUE ...]
  python -m grain_jax.plan --topology=NAME --config=FILE --sweep [--sweep_batch_sizes 4096 8192]

  NAME  v5e:16x16, v5p:8x8x8, v6e:16x16, v4:8x8x8: by the TPU compiler, on any machine (extra: tpu)
        h100x8, h200x1: GPUs of a node, by XLA's compiler for them, on any machine with jax's
        plugin for CUDA (extra: cuda), else by that for CPUs in its place; the table says which
        cpu:8: host devices

`--num_slices` takes several slices or nodes. Every setting of `python -m grain_jax.train` can be
given. No data is read and nothing is run. To compile for a TPU takes minutes and some GiB of
memory, less with model.scan_layers=true.

`--sweep` tries presets of the mesh with every model.remat. What the command line gives of these
stays as given, and the rest is tried, as with --model.remat=full or --mesh.fsdp=4. A mesh that the
file of --config gives stays too.
"""

import dataclasses
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

import grain_jax
from grain_jax import runtime
from grain_jax.benchmarking.candidates import Candidate, candidates
from grain_jax.benchmarking.compiled_step import (
    CompiledStep,
    axes_of,
    run_length,
    whole_bytes,
)
from grain_jax.benchmarking.forecast import Forecast
from grain_jax.benchmarking.hardware import Peak
from grain_jax.benchmarking.pace import Pace, has_frozen, paces
from grain_jax.benchmarking.planning import (
    GIB,
    Plan,
    has_other_attention,
    images_per_second,
    make_plan,
    sweep,
    verdict,
)
from grain_jax.benchmarking.synthetic_batch import validate_without_data
from grain_jax.benchmarking.topology import Topology, open_topology
from grain_jax.command_line import (
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
from grain_jax.config import TrainConfig
from grain_jax.config.cli import SettingsOptions, config_to_json, read_settings
from grain_jax.config.schema import Preset, Remat
from grain_jax.config.validation import memory_notes
from grain_jax.data.text_lengths import text_positions
from grain_jax.terminal import escape_unprintable
from grain_jax.training.logits import DENSE_BYTES, dense_bytes, logits_form, tiled_from

MIB = 2**20
# Settings of a run that a plan does not read, with what to give in their place.
UNREAD = {
    "--mesh.cpu_devices": "give their number with --topology=cpu:N",
    "--logging.compilation_cache": "give --save=FOLDER to keep the program there",
    "--logging.plan": "give --json=FILE to write one",
}


@dataclass
class Options:
    """What `plan` takes."""

    topology: str = ""  # devices to compile for, as v5e:16x16, h100x8 or cpu:8
    num_slices: int = 1  # of the TPU, or nodes of GPUs
    num_images: int = 0  # of the data set, where the length of the run is in epochs
    json: OptionalPath = None  # file for the figures
    hlo: OptionalPath = None  # file for the text of the compiled program
    save: OptionalPath = None  # folder for the program: logging.compilation_cache of a run
    # compile with each of these, and every model.remat where none is given here, and rank them
    sweep: bool = False
    sweep_presets: tuple[Preset, ...] = ("dp", "fsdp")  # of the mesh, where nothing of it is given
    sweep_batch_sizes: tuple[int, ...] = ()  # of a sweep: global batches; none: batch_size alone
    config: SettingsOptions = field(default_factory=TrainConfig)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 where the step fits, 1 where it does not."""
    escape_unprintable()
    console = Console(stderr=True)
    try:
        base, words = read_settings(list(sys.argv[1:] if arguments is None else arguments))
        options = parse(
            Options, words, command="plan", description=__doc__, default=Options(config=base)
        )
        config = options.config
        settings = _settings(options, given_options(words))
        for one in [setting.config(config) for setting in settings] or [config]:
            validate_without_data(one)  # before minutes are spent on the first
        _check(options, given_options(words))
        runtime.quiet_libraries()
        topology = open_topology(options.topology, options.num_slices)
        if options.save is not None:
            _save_to(options, topology)
        if not options.sweep:  # which tries other values of model.remat, unless it is given
            for note in memory_notes(config) if _is_tpu(topology) else ():
                console.print(f"Note: {note}.", markup=False, highlight=False, soft_wrap=True)
        said = compilation_in_words(config, topology, count=len(settings) or 1)
        console.print(said, markup=False, highlight=False, soft_wrap=True)
        if options.sweep:
            return _sweep(options, settings, topology, console)
        plan = make_plan(config, topology, num_images=options.num_images, text_file=options.hlo)
        with may_be_cut():
            print_plan(plan, Console())
        if options.json is not None:
            options.json.write_text(json.dumps(figures(plan), indent=1) + "\n", encoding="utf-8")
    except NotParsed as parsed:
        return parsed.status
    except (ValueError, OSError) as error:
        console.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        return status_of(error)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return ExitStatus.INTERRUPTED
    return ExitStatus.STOPPED if plan.fits is False else ExitStatus.DONE


def _settings(options: Options, given: Collection[str]) -> list[Candidate]:
    """What a sweep compiles; none without `--sweep`. Raises ValueError for what is given twice."""
    for name in ("--sweep_presets", "--sweep_batch_sizes"):
        if name in given and not options.sweep:
            raise ValueError(f"{name} is of --sweep; give that too.")
    if not options.sweep:
        return []
    if not options.sweep_presets:
        raise ValueError("--sweep_presets: at least one, as --sweep_presets dp fsdp.")
    if "--batch_size" in given and options.sweep_batch_sizes:
        raise ValueError("--batch_size and --sweep_batch_sizes both choose the batch; give either.")
    config, mesh = options.config, options.config.mesh
    sizes = mesh.data, mesh.fsdp, mesh.tensor
    fixed = mesh.preset != "auto" or sizes != (-1, 1, 1)
    fixed = fixed or any(name.startswith("--mesh.") for name in given)
    if fixed and "--sweep_presets" in given:
        raise ValueError("--sweep_presets: the settings of mesh choose one already; give either.")
    return candidates(
        presets=[None] if fixed else options.sweep_presets,
        remats=[config.model.remat] if "--model.remat" in given else get_args(Remat),
        batch_sizes=options.sweep_batch_sizes or [config.batch_size],
    )


def _check(options: Options, given: Collection[str]) -> None:
    """Raises ValueError for what would fail after minutes, or be ignored."""
    refuse_unread(given, UNREAD, command="plan")
    for name in ("json", "hlo"):
        file = getattr(options, name)
        if file is None:
            continue
        if not file.resolve().parent.is_dir():
            raise ValueError(f"--{name}={file}: its folder does not exist; make it first.")
        if file.is_dir():
            raise ValueError(f"--{name}={file} is a folder; give the name of a file.")
    if options.num_images < 0:
        raise ValueError(f"--num_images={options.num_images}: 0 (not known) or more.")
    if "--num_images" in given and run_length(options.config, 0) is not None:
        raise ValueError(
            "--num_images has no effect on a run whose length and warm-up are in steps; leave it "
            "out, or give --steps=0 and --epochs."
        )
    if options.sweep and (options.hlo is not None or options.save is not None):
        raise ValueError(
            "--sweep compiles many programs: give --hlo and --save for one, without it."
        )


def _sweep(
    options: Options, settings: Sequence[Candidate], topology: Topology, console: Console
) -> int:
    """Prints each setting as it is compiled, then all by rank."""
    if topology.peak is None:
        raise ValueError(
            f"--sweep ranks by published rates, and there are none of {topology.name}; give a TPU "
            "or GPUs."
        )
    found = []
    compiled = sweep(options.config, topology, settings, num_images=options.num_images)
    for number, (setting, plan) in enumerate(compiled, start=1):
        console.print(
            f"{number} of {len(settings)}: {setting.flags}", markup=False, highlight=False
        )
        if plan is None:
            console.print("  Not compiled: it needs more memory than one that did not fit.")
            continue
        console.print(f"  {verdict(plan)}", markup=False, soft_wrap=True)
        found.append((setting, plan))
    ranked = sorted(found, key=lambda one: -images_per_second(one[1]))
    with may_be_cut():
        print_ranks(ranked, Console())
    if options.json is not None:
        rows = [{"flags": setting.flags} | figures(plan) for setting, plan in ranked]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    fits = any(plan.fits for _, plan in ranked)
    return ExitStatus.DONE if fits else ExitStatus.STOPPED


def print_ranks(ranked: Sequence[tuple[Candidate, Plan]], console: Console) -> None:
    """The best setting first, in a line and in a table."""
    best, plan = ranked[0]
    said = f"Best: {best.flags}" if plan.fits else "None of them fits. The first did not: "
    console.print(said if plan.fits else said + verdict(plan), style="bold", soft_wrap=True)
    table = Table("settings", title_justify="left")
    for name in ("GiB a device", "left", "ms a step", "of it network", "images/s", "MFU"):
        table.add_column(name, justify="right")
    for setting, one in ranked:
        if one.times is None or one.limit is None or one.memory is None or not one.fits:
            needed = "more" if one.memory is None else f"{one.memory / GIB:.3g}"
            table.add_row(setting.flags, needed, "does not fit")
            continue
        rate = images_per_second(one)
        seconds = one.config.batch_size / rate
        mfu = one.times.mfu(seconds, num_devices=one.mesh.size, peak=_peak(one))
        table.add_row(
            setting.flags,
            f"{one.memory / GIB:.3g}",
            f"{1 - one.memory / one.limit:.0%}",
            f"{1e3 * seconds:,.3g}",
            f"{1e3 * one.times.network:,.3g}",
            f"{rate:,.0f}",
            "-" if has_frozen(one.config) else f"{mfu:.0%}",
        )
    console.print(table)
    if plan.topology.is_gpu:
        said = "; ".join([_compiler(plan.topology), *compiler_notes(plan)])
        console.print(f"All {said}", markup=False, soft_wrap=True)


def _peak(plan: Plan) -> Peak:
    assert plan.topology.peak is not None  # as there are times only with one
    return plan.topology.peak


def _save_to(options: Options, topology: Topology) -> None:
    """Has the compiler keep its program in the folder `options.save`.

    Raises ValueError where a run would not compile the same program: of GPUs, which hosts stand for
    here or which products are not tuned for, and of a run whose length, a constant of the program,
    is not known.
    """
    if topology.is_gpu:
        why = "by XLA's compiler for CPUs. GPUs cannot run that"
        if not topology.is_stand_in:
            why = "without a GPU to tune products on. A run would compile another program"
        raise ValueError(
            f"--save: {topology.name} is compiled for {why}. A run keeps its own program "
            "(logging.compilation_cache)."
        )
    if run_length(options.config, options.num_images) is None:
        raise ValueError(
            "--save: the learning rate depends on the length of the run, which is part of the "
            "program; give --num_images, or --steps and --optim.warmup_steps."
        )
    assert options.save is not None
    options.save.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(options.save.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _is_tpu(topology: Topology) -> bool:
    return topology.peak is not None and topology.peak.is_tpu


def compilation_in_words(config: TrainConfig, topology: Topology, *, count: int) -> str:
    """What is compiled, and how long such a thing takes (docs/scale.md)."""
    programs = (
        "Compiling" if count == 1 else f"Compiling up to {count} programs, one after the other,"
    )
    took = "seconds for a small model, minutes for a large one or beside other work"
    if _is_tpu(topology):
        took = "two to six minutes for ViT-B/16 with model.scan_layers=true on two idle cores"
        unrolled = "unrolled layers take longer"
        took += f"; {unrolled}{'' if config.model.scan_layers else ', as here'}"
    return f"{programs} for {topology.name}, {len(topology.devices)} devices: {took}."


def print_plan(plan: Plan, console: Console) -> None:
    """Prints the verdict, then what it comes from."""
    console.print(verdict(plan), style="bold" if plan.fits is not False else "bold red")
    if plan.step is None:
        return
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _rows(plan, plan.step).items():
        table.add_row(name, value)
    console.print(table)
    console.print(_exchange_table(plan, plan.step))
    for one in plan.step.largest:
        shapes = " ".join(f"{kind}{list(shape)}" for kind, shape in one.made[:2])
        console.print(
            f"  {whole_bytes(one) / MIB:,.2f} MiB {one.opcode} over {axes_of(one, plan.mesh)}: "
            f"{shapes}",
            markup=False,
        )


def _rows(plan: Plan, step: CompiledStep) -> dict[str, str]:
    config, mesh = plan.config, plan.mesh
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    kind = plan.topology.devices[0].device_kind
    if plan.topology.is_stand_in:
        kind = plan.topology.name
    count = plan.topology.num_slices
    apart = f" in {count} slices or nodes" if count > 1 else ""
    rows = {
        "devices": f"{mesh.size} x {kind}{apart}; mesh {sizes}",
        "model": f"{config.model.type}, {config.model.dtype}, batch {config.batch_size:,} "
        f"({config.batch_size / mesh.size:g} a device), remat {config.model.remat}",
        "logits of the losses": _logits(config, mesh),
        "memory of a device": f"{step.state / GIB:.3g} GiB state ({step.optimizer / GIB:.3g} of it "
        f"optimizer), {step.batch / GIB:.3g} batch, "
        f"{step.temporary / GIB:.3g} temporary; {step.peak / GIB:.3g} at the peak",
        "compilation": f"{step.seconds:,.0f} s; jax {jax.__version__}, "
        f"grain_jax {grain_jax.__version__}",
    }
    if plan.topology.is_gpu:
        rows["compiler"] = "; ".join([_compiler(plan.topology), *compiler_notes(plan)])
    return rows if plan.times is None else rows | _times(plan, plan.times)


def _logits(config: TrainConfig, mesh: Mesh) -> str:
    """Their form, and from which batch on the other one is worth it."""
    form = "in tiles" if logits_form(config, mesh).tiled else "dense"
    given = "" if config.loss.logits == "auto" else ", as loss.logits says"
    size, limit = dense_bytes(config, mesh) / GIB, DENSE_BYTES / GIB
    return (
        f"{config.loss.image_caption}, {form}{given}: dense they have {size:.3g} GiB a device at "
        f"this batch; loss.logits=auto takes tiles above {limit:g} GiB, here from batch_size "
        f"{tiled_from(config, mesh):,}"
    )


def _compiler(topology: Topology) -> str:
    by = f"compiled by {topology.compiler}"
    return f"{by} as a stand-in" if topology.is_stand_in else by


def compiler_notes(plan: Plan) -> list[str]:
    """How the program differs from that of a run; empty where it does not."""
    topology = plan.topology
    if not topology.is_gpu:
        return []
    notes = []
    if topology.is_stand_in:
        notes.append("bfloat16 is held as float32")
    else:
        off = ", ".join(name.removeprefix("xla_gpu_") for name in topology.compiler_options)
        notes.append(
            "times are rooflines only" + (f", as {off} take a GPU and are off" * bool(off))
        )
    if has_other_attention(plan):
        notes.append("attention by XLA, which takes more memory than cuDNN's of a run")
    return [*notes, topology.no_compiler] if topology.no_compiler else notes


def _times(plan: Plan, times: Forecast) -> dict[str, str]:
    config, count = plan.config, plan.mesh.size
    found = paces(plan)
    low, high, cycles = found["at_least"], found["one_after_the_other"], found["by_cycles"]
    assert low is not None
    assert high is not None
    per_second = low.images_per_second
    mfu = "not counted: some parameters are frozen, so less is spent"
    if low.mfu is not None and high.mfu is not None:
        mfu = f"{low.mfu:.0%} at most, {high.mfu:.0%} without overlap"
    rows = {
        "TFLOP a step": f"{times.useful_flops / 1e12:,.4g} useful, {times.spent_flops / 1e12:,.4g} "
        "spent",
        "texts": _texts(config, times),
        "a step at published rates": f"compute {1e3 * times.compute:,.3g} ms (bfloat16), memory "
        f"{1e3 * times.memory:,.3g}, network {1e3 * times.network:,.3g}{_between(plan.topology)}",
        "by the compiler's cycles": _estimate(plan, times),
        "the network after them": "" if cycles is None else _in_words(cycles, count),
        "images/s": f"{per_second:,.0f} at most ({per_second / count:,.0f} a device)",
        "MFU": mfu,
    }
    if times.estimated is None:
        del rows["by the compiler's cycles"], rows["the network after them"]
    return rows | {"this run": _length(plan, low=low, high=high, cycles=cycles)}


def _in_words(pace: Pace, count: int) -> str:
    mfu = "" if pace.mfu is None else f", MFU {pace.mfu:.0%}"
    each = pace.images_per_second / count
    rate = f"{pace.images_per_second:,.0f} images/s ({each:,.0f} a device)"
    return f"{1e3 * pace.seconds:,.3g} ms a step, {rate}{mfu}"


def _length(plan: Plan, *, low: Pace, high: Pace, cycles: Pace | None) -> str:
    """How long the run takes, by the better of the estimates, and the bound of the other."""
    if plan.length is None:
        return "give --num_images, how many the data set has, for its steps and hours"
    best, by = high, "published rates, without overlap"
    if cycles is not None:
        best, by = cycles, "the compiler's cycles, the network after them"
    return (
        f"{plan.length:,} steps: {best.hours:,.3g} hours, {best.device_hours:,.3g} device hours by "
        f"{by}; at published rates {low.hours:,.3g} and {low.device_hours:,.3g} at least"
    )


def _texts(config: TrainConfig, times: Forecast) -> str:
    """What the text tower takes; what of it is padding, only the data say."""
    laid = "end to end" if config.model.text_tokens_per_image else "each in a padded row"
    return (
        f"{text_positions(config):,.4g} positions an image, {laid}: "
        f"{times.text_flops / times.useful_flops:.0%} of the useful TFLOP, with their padding"
    )


def _between(topology: Topology) -> str:
    """What the network's time leaves out."""
    if topology.num_slices == 1 or topology.peak is None or topology.peak.between_rate:
        return ""
    return " within slices; between them no rate is published"


def _estimate(plan: Plan, times: Forecast) -> str:
    """What the TPU compiler takes for the time of each kind of operation."""
    if times.estimated is None or plan.step is None:
        return ""
    schedule = plan.step.schedule
    assert schedule.cycles
    kinds: dict[str, float] = {}
    for one in schedule.by_part.values():
        for kind, cycles in one.items():
            kinds[kind] = kinds.get(kind, 0.0) + cycles / schedule.cycles
    parts = {part: sum(one.values()) / schedule.cycles for part, one in schedule.by_part.items()}
    listed = (
        ", ".join(f"{name} {share:.0%}" for name, share in sorted(of.items(), key=lambda x: -x[1]))
        for of in (kinds, parts)
    )
    kernels = f", {schedule.kernels} kernels at their roofline" if schedule.kernels else ""
    clock = f"{_peak(plan).clock / 1e9:.3g} GHz, derived from the peak rate"
    return (
        f"{1e3 * times.estimated:,.3g} ms at {clock}, without network{kernels}; {'; '.join(listed)}"
    )


def _exchange_table(plan: Plan, step: CompiledStep) -> Table:
    peak, slices = plan.topology.peak, plan.topology.num_slices
    table = Table("collective", "over", "where", title="exchanged in a step", title_justify="left")
    for name in ("count", "below 64 KiB", "MiB", "MiB a step", "ms"):
        table.add_column(name, justify="right")
    for one in step.exchanges:
        table.add_row(
            one.kind,
            one.axes,
            "in loops" if one.in_loop else "outside",
            str(one.count),
            str(one.tiny),
            f"{one.num_bytes / MIB:,.2f}",
            "?" if one.step_bytes is None else f"{one.step_bytes / MIB:,.2f}",
            "" if peak is None else f"{1e3 * one.seconds(peak, num_slices=slices):,.2f}",
        )
    return table


def _paces(plan: Plan) -> dict[str, Any]:
    return {
        name: None if pace is None else dataclasses.asdict(pace)
        for name, pace in paces(plan).items()
    }


def figures(plan: Plan) -> dict[str, Any]:
    """All that was found, with versions and settings, as JSON."""
    step = plan.step
    return {
        "topology": plan.topology.name,
        "num_slices": plan.topology.num_slices,
        "compiler": plan.topology.compiler,
        "compiler_options": dict(plan.topology.compiler_options),
        "compiler_notes": compiler_notes(plan),
        "fits": plan.fits,
        "verdict": verdict(plan),
        "memory_bytes": plan.memory,
        "limit_bytes": plan.limit,
        "mesh": dict(plan.mesh.shape),
        "step": None
        if step is None
        else {
            name: getattr(step, name)
            for name in ("seconds", "state", "optimizer", "batch", "arguments", "temporary", "peak")
        }
        | {"schedule": dataclasses.asdict(step.schedule)}
        | {"exchanges": [dataclasses.asdict(one) for one in step.exchanges]},
        "logits": {
            "tiled": logits_form(plan.config, plan.mesh).tiled,
            "dense_bytes": dense_bytes(plan.config, plan.mesh),
            "tiled_from_batch_size": tiled_from(plan.config, plan.mesh),
        },
        "steps": plan.length,
        "forecast": None if plan.times is None else dataclasses.asdict(plan.times) | _paces(plan),
        "versions": {"grain_jax": grain_jax.__version__, "jax": jax.__version__},
        "config": json.loads(config_to_json(plan.config)),
    }


if __name__ == "__main__":
    end(main())
