"""Metrics of a run: exact means over a window of steps, and the files and services they go to."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from grain_jax.config import LoggingConfig, TrainConfig
from grain_jax.data.batch import Batch
from grain_jax.disk import sync, write_whole
from grain_jax.extras import how_to_install
from grain_jax.results import FILE as RESULTS
from grain_jax.results import METRICS_FILE, Result, append_results, logged, read_json_lines
from grain_jax.training.step import Metrics

FILE = METRICS_FILE
SECONDS = "train_seconds"  # of training up to a line, without compiling, evaluating and saving
# Logged as their sum over the window, the others as means.
COUNTED = ("nonfinite_steps", "replaced_images", "truncated_texts")


@dataclass(frozen=True)
class Summary:
    """One window of steps."""

    step: int  # the last one
    values: dict[str, float]
    seconds: float  # of training, without compiling, evaluating and saving
    seconds_per_step: float
    nonfinite_batches: dict[int, np.ndarray]  # nonfinite step -> index in the source of each row
    consecutive_nonfinite: int  # nonfinite steps in a row at the end of the window


class Window:
    """Metrics of the steps since the last log line, on the device until the line is written."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Metrics, jax.Array]] = []
        self._wait_before = 0.0
        self._timed_steps = 0
        self._start = time.perf_counter()

    def add(self, step: int, metrics: Metrics, batch: Batch) -> None:
        """Keeps the metrics of `step`; does not wait for them."""
        index: Any = batch.index
        self._steps.append((step, metrics, index))
        self._timed_steps += 1

    def drop_after(self, step: int) -> bool:
        """Forgets the steps after `step`; whether any are left."""
        dropped = [entry for entry in self._steps if entry[0] > step]
        self._steps = self._steps[: len(self._steps) - len(dropped)]
        self._timed_steps = max(self._timed_steps - len(dropped), 0)
        return bool(self._steps)

    def restart_clock(self, *, wait_seconds: float) -> None:
        """Leaves the time up to now out: the first step of a run is mostly its compilation."""
        self._timed_steps, self._wait_before = 0, wait_seconds
        self._start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time within it out: evaluation and saving are not training."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - begin

    def results(self) -> Iterator[int]:
        """Each step of the window, once its metrics have been computed."""
        for step, metrics, _ in self._steps:
            jax.block_until_ready(metrics)
            yield step

    def close(self, *, batch_size: int, wait_seconds: float) -> Summary:
        """Waits for the window's steps and starts a new window.

        `wait_seconds` is what the loop has waited for data since it began.
        """
        fetched: list[Metrics] = jax.device_get([metrics for _, metrics, _ in self._steps])
        seconds = time.perf_counter() - self._start
        values: dict[str, float] = {}
        for name in fetched[0]:
            total = sum(float(metrics[name][0]) for metrics in fetched)
            weight = sum(float(metrics[name][1]) for metrics in fetched)
            if name in COUNTED:
                values[name] = total
            elif weight:  # without weight nothing was measured, and 0 would look perfect
                values[name] = total / weight
        counts = [float(metrics["consecutive_nonfinite"][0]) for metrics in fetched]
        values["consecutive_nonfinite"] = max(counts)
        values["images_per_second"] = self._timed_steps * batch_size / seconds
        values["data_wait"] = (wait_seconds - self._wait_before) / seconds
        summary = Summary(
            step=self._steps[-1][0],
            values=values,
            seconds=seconds,
            seconds_per_step=seconds / max(self._timed_steps, 1),
            nonfinite_batches={
                step: _whole(index)
                for (step, _, index), metrics in zip(self._steps, fetched, strict=True)
                if metrics["nonfinite_steps"][0]
            },
            consecutive_nonfinite=int(counts[-1]),
        )
        self._steps = []
        self.restart_clock(wait_seconds=wait_seconds)
        return summary


class MetricsLog:
    """metrics.jsonl always, TensorBoard and W&B as configured; silent on all but one process."""

    def __init__(self, folder: Path, config: TrainConfig, *, start_step: int) -> None:
        """Lines after `start_step`, of a run that was killed and goes on there, are dropped."""
        self.seconds_before = 0.0  # of training, that the lines kept record
        self._writer: Any = None
        self._wandb: Any = None
        self._file: TextIO | None = None
        self._results: TextIO | None = None
        if jax.process_index() != 0:
            return
        if config.logging.wandb:
            self._wandb = _start_wandb(folder, config, config.logging)
        kept = _truncate(folder / FILE, start_step)
        self.seconds_before = max((line.get(SECONDS, 0.0) for line in kept), default=0.0)
        _truncate(folder / RESULTS, start_step)
        self._file = (folder / FILE).open("a", encoding="utf-8")
        self._results = (folder / RESULTS).open("a", encoding="utf-8")
        if config.logging.tensorboard:
            from tensorboardX import SummaryWriter  # it imports torch where that is installed

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line; metrics also go to TensorBoard and W&B, other entries only into the line."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step} | dict(values)) + "\n")
        self._file.flush()
        scalars = {name: value for name, value in values.items() if isinstance(value, float)}
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        if self._wandb is not None and scalars:
            self._wandb.log(scalars, step=step)

    def write_results(self, step: int, results: Sequence[Result]) -> None:
        """Records into results.jsonl, and their values as `write` does under their keys."""
        if self._results is not None:
            append_results(self._results, step, results)
        self.write(step, logged(results))

    def sync(self) -> None:
        """Returns when all lines are on the disk, where a machine that loses power leaves them."""
        for file in (self._file, self._results):
            if file is not None:
                sync(file)

    def close(self) -> None:
        """Flushes and ends all of them. Safe to call twice."""
        if self._file is not None and self._results is not None:
            self.sync()
            self._file.close()
            self._results.close()
            self._file = self._results = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


def _truncate(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Keeps whole lines up to `last_step`; the rest was never saved and will be written again."""
    if not path.exists():
        return []
    kept = [entry for entry in read_json_lines(path) if entry["step"] <= last_step]
    write_whole(path, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept


def _start_wandb(folder: Path, config: TrainConfig, logging: LoggingConfig) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "logging.wandb is on and wandb is not installed; --logging.wandb=false, or "
            f"{how_to_install('wandb')}"
        ) from error
    identity = folder / "wandb_id"  # so that a resumed run goes on in the same curve
    if not identity.exists():
        identity.write_text(uuid.uuid4().hex, encoding="utf-8")
    return wandb.init(
        project=logging.wandb_project,
        name=config.name,
        id=identity.read_text(encoding="utf-8"),
        resume="allow",
        dir=str(folder),
        config=asdict(config),
    )


def _whole(index: jax.Array) -> np.ndarray:
    """All rows, also where other processes hold some; every process must call it."""
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(index, tiled=True))
    return np.asarray(index)
