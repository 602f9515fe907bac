"""A run that trains: what it holds, and what is done to it between its steps."""

from dataclasses import dataclass
from typing import NoReturn

import jax
import numpy as np

from grain_jax.config import TrainConfig
from grain_jax.data.batch import Batch
from grain_jax.data.loader import DevicePrefetch, void_batch
from grain_jax.data.records import Source
from grain_jax.inference.encoder import Encoder
from grain_jax.models.learned import Learned, learned_in
from grain_jax.parallel import processes, sharding
from grain_jax.paths import AnyPath
from grain_jax.trainer.planned import Planned, device_memory
from grain_jax.training import metrics
from grain_jax.training.checkpoint import Checkpoints
from grain_jax.training.metrics import MetricsLog, Summary, Window
from grain_jax.training.progress import Screen
from grain_jax.training.run_files import RunFiles
from grain_jax.training.state import TrainState
from grain_jax.training.step import TrainStep

STEPS_WITHOUT_BOX = 200  # in a row, of GRAIN, after which the run says so


class RunStopped(RuntimeError):
    """The run cannot continue; the message says why and what to change. Raised in every process."""


class StoppedAlone(RunStopped):
    """The run cannot continue, and where there are other processes, they do not know it."""


@dataclass
class Run:
    """What `set_up` opens; `state`, `best` and `seconds` change while it trains."""

    config: TrainConfig
    workdir: AnyPath
    mesh: jax.sharding.Mesh
    source: Source
    steps: int  # of the whole schedule
    last_step: int  # where this run ends: `steps`, or earlier by `max_steps_this_run`
    start_step: int
    train_step: TrainStep
    state: TrainState
    batches: DevicePrefetch[Batch]
    encoder: Encoder
    checkpoints: Checkpoints
    best: float  # highest held-out score that was saved
    files: RunFiles  # of the run folder; they are in `files.folder` while the run lasts
    log: MetricsLog
    seconds: float  # of training, earlier starts included
    learned: Learned  # what of the decoder has been taught so far
    last_box_step: int  # the newest log line whose steps had a box
    planned: Planned | None  # forecast that is still to be printed

    def void_batch(self) -> Batch:
        """A batch whose rows of this process are without a record."""
        size, total = self.config.model.image_size, self.config.batch_size
        rows = sharding.local_rows(sharding.batch_sharding(self.mesh), total)
        local = void_batch(self.config.data, size, len(rows))
        return sharding.put_batch(local, self.mesh, batch_size=total)

    def kept(self) -> str:
        """What the same command would resume from."""
        step = self.checkpoints.latest()
        if step is None:
            return f"nothing is saved in {self.workdir} yet."
        return f"step {step} is saved in {self.workdir}, and the same command resumes from it."

    def save(self, *, step: int, score: float | None = None) -> None:
        """Starts to save a checkpoint, once the log up to it is where a crash leaves it."""
        self.log.sync()
        self.files.publish(wait=True)
        self.checkpoints.save(self.state, step=step, score=score)

    def close(self) -> None:
        """Ends loader threads, log files and the saving in the background."""
        self.batches.close()
        self.log.close()
        self.files.close()
        self.checkpoints.close()


def stop_over_data(
    run: Run, window: Window, screen: Screen, *, done: int, failure: ValueError | None
) -> NoReturn:
    """Logs and saves what was trained up to step `done`; raises `RunStopped`, in every process.

    `failure` is what this process met; with other processes one of them has met something.
    """
    screen.stop()
    if window.drop_after(done):
        log_window(
            run,
            window.close(batch_size=run.config.batch_size, wait_seconds=run.batches.wait_seconds),
            screen,
        )
    screen.say(f"The data has failed after step {done}: saving before stopping ...")
    save_before_stopping(run)
    try:
        processes.raise_in_all(failure)
    except ValueError as error:
        raise RunStopped(f"{error} {run.kept()}") from error
    raise RunStopped(f"the data has failed after step {done}. {run.kept()}")


def save_before_stopping(run: Run) -> None:
    """Saves what is not saved yet and waits for it; every process calls it.

    Weights while steps are nonfinite are not saved: they would push out good ones, and the
    next start would resume from them.
    """
    step = int(run.state.step)
    newest = processes.from_first(run.checkpoints.latest())
    if step > (newest or 0) and not int(run.state.consecutive_nonfinite):
        run.save(step=step)
    run.checkpoints.wait()


def log_window(run: Run, summary: Summary, screen: Screen) -> None:
    """Writes a window's line, names the images of nonfinite steps, stops after too many."""
    run.seconds += summary.seconds
    epoch = summary.step * run.config.batch_size / len(run.source)
    run.log.write(summary.step, summary.values | {"epoch": epoch, metrics.SECONDS: run.seconds})
    left = (run.last_step - summary.step) * summary.seconds_per_step
    screen.metrics(summary.step, summary.values, seconds_left=left)
    for step, rows in summary.nonfinite_batches.items():
        ids = _ids(run.source, rows)
        run.log.write(step, {"nonfinite_batch_index": rows.tolist(), "nonfinite_batch_ids": ids})
        shown = ", ".join(ids[:8]) + (", ..." if len(ids) > 8 else "")
        screen.say(f"Step {step} changed nothing: loss or gradient not finite. Its images: {shown}")
    if run.planned is not None and summary.seconds_per_step > 0:
        screen.say(run.planned.beside(summary.seconds_per_step, device_memory()))
        run.planned = None
    follow_regions(run, summary, screen)
    run.files.publish()
    if replaced := int(summary.values["replaced_images"]):
        screen.say(f"Up to step {summary.step}, {replaced} unreadable images were replaced.")
    if summary.consecutive_nonfinite >= run.config.optim.max_consecutive_nonfinite:
        run.checkpoints.wait()
        raise RunStopped(
            f"loss or gradient was not finite for {summary.consecutive_nonfinite} steps in "
            f"a row, up to step {summary.step}. Lower optim.learning_rate, set "
            "optim.clip_grad_norm=1, or look at "
            f"the images named in {run.workdir / metrics.FILE}; {run.kept()}"
        )


def _ids(source: Source, rows: np.ndarray) -> list[str]:
    """Of the records; their numbers where they cannot be read."""
    try:
        return [source[int(row)].id for row in rows]
    except (ValueError, OSError, RuntimeError):
        return [f"record {row}" for row in rows.tolist()]


def follow_regions(run: Run, summary: Summary, screen: Screen) -> None:
    """Keeps what the steps have taught of the decoder, and says where they had no box for long."""
    run.learned = run.learned | learned_in(summary.values, run.config)
    run.checkpoints.set_learned(run.learned)
    if run.config.model.type != "grain" or "box_l1" in summary.values:
        run.last_box_step = summary.step
    elif (steps := summary.step - run.last_box_step) >= STEPS_WITHOUT_BOX:
        run.last_box_step = summary.step
        run.log.write(summary.step, {"steps_without_boxes": steps})
        screen.say(f"Up to step {summary.step}, {steps} steps had no box to learn from.")
