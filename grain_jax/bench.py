"""Times training on these devices: images a second, MFU, memory, compilation.

  python -m grain_jax.bench step --config=FILE [--SETTING=VALUE ...] [--timed_steps=N]

  step  the training step alone, on a random batch that stays on the devices

Every setting of `python -m grain_jax.train` can be given. No data is read and nothing is saved.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
from rich.console import Console
from rich.table import Table
from tyro.conf import arg

import grain_jax
from grain_jax import runtime
from grain_jax.benchmarking.hardware import peak_of
from grain_jax.benchmarking.step import StepTiming, time_step
from grain_jax.benchmarking.synthetic_batch import validate_without_data
from grain_jax.command_line import (
    Count,
    ExitStatus,
    NotParsed,
    OptionalPath,
    end,
    parse,
    status_of,
)
from grain_jax.config import TrainConfig
from grain_jax.config.cli import SettingsOptions, config_to_json, read_settings
from grain_jax.parallel import sharding
from grain_jax.parallel.presets import choose_mesh
from grain_jax.terminal import escape_unprintable

GIB = 2**30


@dataclass
class Options:
    """What `bench step` takes."""

    timed_steps: Count = 20  # steps that are timed, after two that warm up
    json: OptionalPath = None  # file for the figures
    # folder for a profiler trace of five more steps
    profile: Annotated[OptionalPath, arg(metavar="DIR")] = None
    config: SettingsOptions = field(default_factory=TrainConfig)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    escape_unprintable()
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True)
    try:
        if words[:1] not in (["step"], ["--help"], ["-h"]):
            given = words[0] if words else "nothing"
            raise ValueError(f"Expected `step` after the command, given: {given}.")
        base, words = read_settings([word for word in words if word != "step"])
        options = parse(
            Options, words, command="bench step", description=__doc__, default=Options(config=base)
        )
        config = options.config
        validate_without_data(config)
        if options.json is not None and not options.json.resolve().parent.is_dir():
            raise ValueError(f"--json={options.json}: its folder does not exist; make it first.")
        runtime.quiet_libraries()
        sharding.set_cpu_devices(config)
        runtime.open_devices()
        mesh = choose_mesh(config)
        sharding.check_batch(config, mesh.devices.shape)
        timing = time_step(
            config, num_steps=options.timed_steps, mesh=mesh, profile=_profiler(options.profile)
        )
        print_table(timing, config, Console())  # first: the file may fail
        if options.json is not None:
            text = json.dumps(figures(timing, config), indent=1) + "\n"
            options.json.write_text(text, encoding="utf-8")
    except NotParsed as parsed:
        return parsed.status
    except (ValueError, OSError) as error:
        console.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        return status_of(error)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return ExitStatus.INTERRUPTED
    return ExitStatus.DONE


def _profiler(folder: Path | None) -> Callable[[], Any] | None:
    if folder is None:
        return None
    return lambda: jax.profiler.trace(str(folder))


def figures(timing: StepTiming, config: TrainConfig) -> dict[str, Any]:
    """All that was measured, with hardware, versions and settings, as JSON."""
    return {
        "images_per_second": timing.images_per_second,
        "images_per_second_per_device": timing.images_per_second / timing.num_devices,
        "percentiles": {
            "p10": timing.percentile(10),
            "p50": timing.median,
            "p90": timing.percentile(90),
        },
        "mfu": timing.mfu(timing.flops),
        "mfu_without_padding": timing.mfu(timing.useful_flops),
        **dataclasses.asdict(timing),
        "versions": {
            "grain_jax": grain_jax.__version__,
            "jax": jax.__version__,
            "platform": jax.devices()[0].client.platform_version,
        },
        "config": json.loads(config_to_json(config)),
    }


def print_table(timing: StepTiming, config: TrainConfig, console: Console) -> None:
    """Prints what was measured, two columns."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    each = timing.images_per_second / timing.num_devices
    median, low, high = (
        1e3 * value for value in (timing.median, timing.percentile(10), timing.percentile(90))
    )
    flops = timing.flops.total
    counted, useful = (
        each.total / timing.images / 1e9 for each in (timing.flops, timing.useful_flops)
    )
    rows = {
        "devices": f"{timing.num_devices} x {timing.device_kind}",
        "model": f"{config.model.type}, {config.model.dtype}, batch {timing.images:,}",
        "step": f"{median:,.1f} ms (10-90 %: {low:,.1f}-{high:,.1f})",
        "images/s": f"{timing.images_per_second:,.0f} ({each:,.0f} a device)",
        "GFLOP an image": f"{counted:,.2f} ({useful:,.2f} without padding)",
        "TFLOP/s a device": f"{flops / timing.median / timing.num_devices / 1e12:,.3g}",
        "MFU": _utilization(timing),
        "memory": _memory(timing),
        "compilation": f"{timing.compile_seconds:,.1f} s",
        "versions": f"grain_jax {grain_jax.__version__}, jax {jax.__version__}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def _utilization(timing: StepTiming) -> str:
    peak, all_positions = peak_of(timing.device_kind), timing.mfu(timing.flops)
    if peak is None:
        return "unknown: no published peak for this device"
    if all_positions is None:
        return "not counted: some parameters are frozen"
    useful = timing.mfu(timing.useful_flops)
    return f"{all_positions:.1%} of {peak.bfloat16 / 1e12:,.0f} TFLOP/s ({useful:.1%} w/o padding)"


def _memory(timing: StepTiming) -> str:
    compiled = (
        f"{timing.argument_bytes / GIB:.2f} GiB state and batch, "
        f"{timing.temporary_bytes / GIB:.2f} temporary"
    )
    if timing.peak_bytes is None:
        return compiled
    return f"{timing.peak_bytes / GIB:.2f} GiB peak; {compiled}"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        end(main())
