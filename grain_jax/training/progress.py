"""What a run shows: lines at the start, a progress bar on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from grain_jax.config import TrainConfig
from grain_jax.data.source import data_source
from grain_jax.terminal import may_be_gone
from grain_jax.training.logits import dense_bytes, logits_form
from grain_jax.training.state import count_parameters
from grain_jax.training.trainable import patterns_of_frozen, split_frozen

SHOWN = {  # metric -> its name on the line
    "loss": "loss",
    "contrastive": "contrastive",
    "box_l1": "L1",
    "box_giou": "GIoU",
    "region": "region",
    "auxiliary_box": "earlier boxes",
    "image_description": "descriptions",
    "match_iou": "IoU",
}


class Screen:
    """Speaks for the run; silent on all but one process, and where its terminal is gone."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=jax.process_index() != 0)
        self._live: Live | None = None
        self._bar = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            console=self.console,
        )
        self._figures = Text(overflow="fold")
        self._steps = 0

    def say(self, text: str, *, style: str | None = None) -> None:
        """One line, as it is: never broken, never coloured by its content."""
        with may_be_gone():
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Something to know that stops nothing; `text` is a sentence without its full stop."""
        self.say(f"Note: {text}.")

    def table(self, rows: Mapping[str, str]) -> None:
        """What runs, as two columns."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in rows.items():
            grid.add_row(name, value)
        with may_be_gone():
            self.console.print(grid, highlight=False, markup=False)

    def start(self, *, done: int, steps: int) -> None:
        """Begins to show progress, at `done` of `steps`."""
        self._steps = steps
        if self.console.is_terminal:
            self._bar.add_task("", total=steps, completed=done, pace="compiling the step ...")
            shown = Group(self._figures, self._bar)
            self._live = Live(shown, console=self.console, transient=True, refresh_per_second=4)
            with may_be_gone():
                self._live.start()

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._live is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def metrics(self, step: int, values: Mapping[str, float], *, seconds_left: float) -> None:
        """Shows a window's metrics."""
        terms = ", ".join(f"{SHOWN[name]} {values[name]:.3f}" for name in SHOWN if name in values)
        pace = (
            f"{values['images_per_second']:,.0f} images/s, data wait {values['data_wait']:.0%}, "
            f"{duration(seconds_left)} left"
        )
        if self._live is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, pace=pace)
            self._figures.plain = terms
        else:
            self.say(f"step {step}/{self._steps}: {terms}, {pace}")

    def stop(self) -> None:
        """Takes the bar away. Safe to call twice."""
        if self._live is not None:
            live, self._live = self._live, None
            with may_be_gone():
                live.stop()


def duration(seconds: float) -> str:
    """1:02:03 or 2:03, whole seconds."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def introduction(
    config: TrainConfig, mesh: Mesh, params: Any, *, num_images: int, steps: int
) -> dict[str, str]:
    """What is trained on what, and where: the lines at the start of a run."""
    kinds = ", ".join(sorted({device.device_kind for device in mesh.devices.flat}))
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        {"devices": f"{mesh.size} x {kinds}{processes}; mesh {axes}"}
        | what_trains(config, params, num_images=num_images, steps=steps)
        | {"logits": _logits_row(config, mesh)}
    )


def what_trains(config: TrainConfig, params: Any, *, num_images: int, steps: int) -> dict[str, str]:
    """The lines of `introduction` that are the same on any devices; `params` may be abstract.

    Raises ValueError for settings of what is trained that do not fit the parameters.
    """
    model, data, batch = config.model, config.data, config.batch_size
    location = data_source(data, image_size=model.image_size).location
    return {
        "model": f"{'GRAIN' if model.type == 'grain' else 'CLIP'}, "
        f"{_counted(params)}, computing in {model.dtype}",
        **_frozen_row(config, params),
        **_loss_row(config),
        "data": f"{num_images:,} images of {data.dataset}/{data.train_split}{location}",
        "training": f"{steps:,} steps of batch {batch:,} "
        f"({steps * batch / num_images:.1f} epochs)"
        + (
            f" in {config.optim.grad_cache_chunks} micro-batches"
            if config.optim.grad_cache_chunks > 1
            else ""
        ),
    }


def _frozen_row(config: TrainConfig, params: Any) -> dict[str, str]:
    """How many parameters are trained, where some are not."""
    trained, frozen = split_frozen(params, config.optim)
    if not frozen:
        return {}
    row = f"{_counted(trained)}; frozen, without gradient and optimizer state: {_counted(frozen)}"
    if unread := patterns_of_frozen(params, config.optim):
        row += f"; without effect, as what they name is frozen: {', '.join(map(repr, unread))}"
    return {"trained": row}


def _loss_row(config: TrainConfig) -> dict[str, str]:
    """How images and captions are contrasted, where it is not by softmax."""
    if config.loss.image_caption == "softmax":
        return {}
    return {"loss": "images and captions by sigmoid (SigLIP), scale and bias learned"}


def _counted(params: Any) -> str:
    """The number of parameters, and those of the large parts."""
    parts = ", ".join(
        f"{name} {count_parameters(part) / 1e6:.2f} M"
        for name, part in sorted(params.items())
        if count_parameters(part) >= 1e4
    )
    total = f"{count_parameters(params) / 1e6:.2f} M parameters"
    return f"{total} ({parts})" if parts else total


def _logits_row(config: TrainConfig, mesh: Mesh) -> str:
    size = f"{_size(dense_bytes(config, mesh))} a device, of the whole batch in float32"
    if not logits_form(config, mesh).tiled:
        return size
    return f"in tiles; all at once they would be {size}"


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} GiB"
