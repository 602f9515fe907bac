"""Times saving and restoring the state of a run, and how long the step is blocked by it."""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from grain_jax.benchmarking.step import OpenStep, one_ahead, one_ahead_while, open_step
from grain_jax.config import TrainConfig
from grain_jax.config.cli import config_to_json
from grain_jax.runtime import source_commit
from grain_jax.training.checkpoint import Checkpoints

STEPS = 3  # that are timed with nothing beside them


@dataclass(frozen=True)
class CheckpointTiming:
    """Seconds of each save and restore; all bytes of the state, of all devices together."""

    num_bytes: int
    asynchronous: bool  # checkpoint.asynchronous
    blocked_seconds: tuple[float, ...]  # until training may go on
    save_seconds: tuple[float, ...]  # until all is on disk, with nothing beside it
    restore_seconds: tuple[float, ...]  # of the newest, which the system may still have in memory
    step_seconds: float  # of a step with nothing beside it, median
    # Of each step whose time began while another save was written; none where all ended before.
    beside_seconds: tuple[float, ...]
    folder: str

    @property
    def save_rate(self) -> float:
        """Bytes a second, median."""
        return self.num_bytes / statistics.median(self.save_seconds)

    @property
    def restore_rate(self) -> float:
        """Bytes a second, median."""
        return self.num_bytes / statistics.median(self.restore_seconds)


def time_checkpoint(
    config: TrainConfig, *, rounds: int, mesh: Mesh, folder: Path | None
) -> CheckpointTiming:
    """Saves and restores the state `rounds` times, in a new folder that is deleted at the end.

    In the background it saves as often again, and steps until that is on disk.

    `folder`: where to make it, so that the disk of the run folder is the one that is timed; None:
    the system's temporary folder. Raises ValueError where it does not exist, and `SaveFailed`.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"--workdir={folder}: there is no such folder; make it first.")
    step = open_step(config, mesh)
    jax.block_until_ready(step.run())
    alone, _ = one_ahead(step.run, STEPS)
    blocked, saved, restored = [], [], []
    beside: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench_checkpoint_", dir=folder) as made:
        metadata = {"commit": source_commit(), "config": json.loads(config_to_json(config))}
        checkpoints = Checkpoints(Path(made), config.checkpoint, metadata=metadata)
        for number in range(1, rounds + 1):
            started = time.perf_counter()
            checkpoints.save(step.state, step=number)
            blocked.append(time.perf_counter() - started)
            checkpoints.wait()
            saved.append(time.perf_counter() - started)
            restored.append(_restore(checkpoints, step, number))
        for number in range(rounds + 1, 2 * rounds + 1) if config.checkpoint.asynchronous else ():
            checkpoints.save(step.state, step=number)
            seconds, _ = one_ahead_while(step.run, lambda _: checkpoints.saving)
            beside += seconds[:-1]  # the last began after the save
            checkpoints.wait()
        checkpoints.close()
    return CheckpointTiming(
        num_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(step.state)),
        asynchronous=config.checkpoint.asynchronous,
        blocked_seconds=tuple(blocked),
        save_seconds=tuple(saved),
        restore_seconds=tuple(restored),
        step_seconds=statistics.median(alone),
        beside_seconds=tuple(beside),
        folder=str(folder or tempfile.gettempdir()),
    )


def _restore(checkpoints: Checkpoints, step: OpenStep, number: int) -> float:
    started = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(number, step.abstract))
    return time.perf_counter() - started
