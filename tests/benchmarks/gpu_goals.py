"""The figures that this project aims at on one GPU: one command, one table.

    python tests/benchmarks/gpu_goals.py [--minutes=10] [--json=FILE] [--official=CHECKOUT]
                                         [--open_clip] [--SETTING=VALUE ...]

ViT-B/16 in bfloat16 on random batches, as `configs/grain_vitb16_cc12m.py` has it, at 512 images:
MFU of GRAIN (goal: 50 %, 40 at the least) with padded and with trimmed texts, images/s of CLIP
(goal: 3,000) with the attention that "auto" takes and with XLA's, and the largest batch with dense
and with tiled logits (layers scanned, remat full; doubled until it does not fit). Every setting of
`python -m grain_jax.train` can be given. A line is printed once it is measured; no line, and no
larger batch of one, begins after the minutes, and what has begun goes on to its end. With
--official and --open_clip the step of these codes is timed first, in turns with this one at
--peer_batch_size, by `python -m grain_jax.bench step` (goals: 2 times as fast, and as fast).
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from grain_jax import runtime
from grain_jax.benchmarking import official, open_clip_step, report
from grain_jax.benchmarking.environment import environment, environment_rows, load_averages
from grain_jax.benchmarking.sweep import Variant, measure
from grain_jax.benchmarking.synthetic_batch import validate_without_data
from grain_jax.command_line import Count, ExitStatus, NotParsed, OptionalPath, parse, status_of
from grain_jax.config import TrainConfig
from grain_jax.config.cli import SettingsOptions, read_settings
from grain_jax.parallel import sharding
from grain_jax.parallel.presets import choose_mesh

CONFIG = Path(__file__).parents[2] / "configs" / "grain_vitb16_cc12m.py"
CLIP_CONFIG = CONFIG.with_name("clip_vitb16_cc12m.py")
BATCH = "--batch_size=512"
WIDTH = 140  # columns of the table
TRIMMED = {  # as that recipe's texts and regions allow
    "data.caption_length": 40,
    "data.description_length": 16,
    "model.description_capacity_factor": 0.6,
}
ROOMY = {"model.scan_layers": True, "model.remat": "full"}
GOALS = {"GRAIN": "50 % MFU", "CLIP": "3,000 images/s"}
OFFICIAL, OPEN_CLIP = official.OfficialStep.name, open_clip_step.OpenClipStep.name
OPTIONS = (
    *("minutes", "timed_steps", "json", "official", "open_clip", "peer_batch_size"),
    "batch_size",  # which the peers have of their own
)
PEER_GOALS = {OFFICIAL: "2 times as fast", OPEN_CLIP: "as fast"}


@dataclass
class Options:
    """What to measure."""

    minutes: float = 10.0  # after which no other line begins
    timed_steps: Count = 20  # of each line; the largest batches take two
    json: OptionalPath = None  # file for all figures
    official: OptionalPath = None  # a checkout of the official code, to compare GRAIN with
    open_clip: bool = False  # compare CLIP with open_clip's
    peer_batch_size: Count = 128  # images of a step in turns with these
    config: SettingsOptions = field(default_factory=TrainConfig)


def changed(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """A copy with other settings, by path; a text is never made longer."""
    other = copy.deepcopy(config)
    for path, value in settings.items():
        owner: Any = other
        *sections, name = path.split(".")
        for section in sections:
            owner = getattr(owner, section)
        if name.endswith("_length"):
            value = min(value, getattr(owner, name))
        setattr(owner, name, value)
    return other


def lines(config: TrainConfig, steps: int) -> Iterator[tuple[str, TrainConfig, int, bool]]:
    """Name, settings, timed steps, and whether the batch is doubled until it does not fit."""
    clip = changed(config, {"model.type": "clip"})
    yield "GRAIN", config, steps, False
    yield "CLIP", clip, steps, False
    yield "GRAIN, trimmed texts", changed(config, TRIMMED), steps, False
    yield "CLIP, attention by XLA", changed(clip, {"model.attention": "xla"}), steps, False
    for logits in ("dense", "tiled"):
        large = changed(config, ROOMY | {"loss.logits": logits})
        yield f"largest batch, {logits} logits", large, 2, True


def measured(
    config: TrainConfig, steps: int, *, doubled: bool, mesh: Mesh, late: Callable[[], bool]
) -> Iterator[Variant]:
    """One batch, or one after the other up to one that does not fit."""
    while True:
        found = measure(config, num_steps=steps, mesh=mesh)
        yield found
        if not doubled or found.timing is None or late():
            return
        config = changed(config, {"batch_size": 2 * config.batch_size})


def against(peer: str, options: Options, settings: Sequence[str]) -> dict[str, Any]:
    """What `bench step` finds of a peer, in a process of its own: it holds the GPU meanwhile.

    `settings`: those that were given. Raises ValueError where it fails, with the end of its output.
    """
    config, asked = {
        OFFICIAL: (CONFIG, f"--official={options.official}"),
        OPEN_CLIP: (CLIP_CONFIG, "--open_clip"),
    }[peer]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        size = f"--batch_size={options.peer_batch_size}"
        command = [sys.executable, "-m", "grain_jax.bench", "step", f"--config={config}"]
        ended = subprocess.run(
            [*command, *settings, size, asked, f"--json={file}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
        if ended.returncode != 0:
            raise ValueError(f"bench step {asked} failed:\n{ended.stdout[-2000:]}")
        found = json.loads(file.read_text(encoding="utf-8"))
    return found[peer]


def peer_cell(found: dict[str, Any]) -> str:
    """The ratio with the least and the largest of single turns."""
    low, high = min(found["ratios"]), max(found["ratios"])
    return f"{found['ratio']:.2f} ({low:.2f}-{high:.2f}) times as fast, {len(found['own'])} turns"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    try:
        return measure_all(list(sys.argv[1:] if arguments is None else arguments))
    except NotParsed as parsed:
        return parsed.status
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return status_of(error)


def own_settings(words: Sequence[str]) -> list[str]:
    """Settings that go to `bench` too, without the options of this command.

    Raises ValueError for others than --SECTION.NAME=VALUE, which the peers' runs would not have.
    """
    found = []
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        if name in OPTIONS:
            continue
        if not equals or "." not in name:
            raise ValueError(
                f"{word}: with --official and --open_clip give settings as --SECTION.NAME=VALUE, "
                "and options with a = too."
            )
        found.append(word)
    return found


def measure_all(words: list[str]) -> int:
    """Measures and prints every line. Raises ValueError for options and settings that are wrong."""
    if not any(word.startswith("--batch_size") for word in words):
        words.append(BATCH)
    given = list(words)
    base, words = read_settings(words, default=str(CONFIG))
    options = parse(
        Options, words, command="gpu_goals", description=__doc__, default=Options(config=base)
    )
    config, load, started = options.config, load_averages(), time.monotonic()
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise ValueError(f"--json={options.json}: its folder does not exist; make it first.")
    validate_without_data(config)
    late = lambda: time.monotonic() - started > 60 * options.minutes  # noqa: E731
    peers = [*([OFFICIAL] if options.official else []), *([OPEN_CLIP] if options.open_clip else [])]
    settings, compared = own_settings(given) if peers else [], {}
    for peer in peers:  # before this process takes the GPU
        compared[peer] = None if late() else against(peer, options, settings)
    runtime.quiet_libraries()
    sharding.set_cpu_devices(config)
    runtime.open_devices()
    mesh = choose_mesh(config)
    # Wide enough for a line to stay one, to paste.
    console, found = Console(width=max(Console().width, WIDTH)), environment(load)
    table = Table("what", "goal", *report.SWEEP_COLUMNS[1:])
    stored: list[dict[str, Any]] = []
    for peer, turns in compared.items():
        name = f"against {peer}, batch {options.peer_batch_size}"
        cell = "not measured: the minutes are over" if turns is None else peer_cell(turns)
        print(name, cell, sep="  ", file=sys.stderr, flush=True)
        table.add_row(name, PEER_GOALS[peer], *[""] * 7, cell)
        stored.append({"name": name, "measured": turns})
    for name, settings, steps, doubled in lines(config, options.timed_steps):
        validate_without_data(settings)
        goal = GOALS.get(name, "")
        if late():
            table.add_row(name, goal, *[""] * 7, "not measured: the minutes are over")
            stored.append({"name": name, "measured": None})
            continue
        for variant in measured(settings, steps, doubled=doubled, mesh=mesh, late=late):
            cells = report.sweep_cells(variant, is_best=False)[1:]
            print(name, *filter(None, cells), sep="  ", file=sys.stderr, flush=True)
            table.add_row(name, goal, *cells)
            stored.append({"name": name, "measured": report.sweep_figures([variant])})
    for name, value in environment_rows(found).items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(table)
    if options.json is not None:
        figures = {"lines": stored, **found, "config": report.settings(config)}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
