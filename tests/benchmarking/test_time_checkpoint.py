"""What counts as the time of a save, by a clock that stand-ins for the step and the disk move."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

from grain_jax.benchmarking import checkpoints, report
from grain_jax.benchmarking import step as stepping
from grain_jax.config import TrainConfig
from grain_jax.parallel import sharding

BLOCKED, WRITTEN, RESTORED, STEP, SLOW = 0.5, 2.0, 1.5, 10.0, 12.0  # seconds


@dataclass
class Clock:
    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (checkpoints, stepping):
        monkeypatch.setattr(module, "time", clock)
    return clock


def timed(clock: Clock, monkeypatch, *, seconds: float, asynchronous: bool = True):
    """Of saves that are on disk after `seconds`, and steps of `STEP`, beside a save `SLOW`."""

    class Disk:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.ready, self.steps = 0.0, set()
            disks.append(self)

        @property
        def saving(self) -> bool:
            return clock.now < self.ready

        def save(self, state: Any, *, step: int) -> None:
            assert not self.saving
            assert step not in self.steps
            self.steps.add(step)
            self.ready = clock.now + seconds
            clock.now += BLOCKED if asynchronous else seconds

        def wait(self) -> None:
            clock.now = max(clock.now, self.ready)

        def restore(self, step: int, abstract: Any) -> None:
            assert step in self.steps
            clock.now += RESTORED

        def close(self) -> None:
            pass

    def run() -> None:
        clock.now += SLOW if disks and disks[-1].saving else STEP

    disks: list[Disk] = []
    step = SimpleNamespace(run=run, state={"w": jnp.zeros(5)}, abstract=None)
    monkeypatch.setattr(checkpoints, "open_step", lambda config, mesh: step)
    monkeypatch.setattr(checkpoints, "Checkpoints", Disk)
    config = TrainConfig()
    config.checkpoint.asynchronous = asynchronous
    mesh = sharding.make_mesh(config.mesh)
    return checkpoints.time_checkpoint(config, rounds=2, mesh=mesh, folder=None)


def test_a_save_that_is_shorter_than_a_step_takes_no_step(clock, monkeypatch):
    found = timed(clock, monkeypatch, seconds=WRITTEN)
    assert found.blocked_seconds == (BLOCKED,) * 2
    assert found.save_seconds == (WRITTEN,) * 2
    assert found.restore_seconds == (RESTORED,) * 2
    assert found.save_rate == 20 / WRITTEN
    assert found.beside_seconds == ()
    assert "none" in report.checkpoint_rows(found)["a step beside a save"]


def test_steps_go_on_for_as_long_as_a_save_takes(clock, monkeypatch):
    found = timed(clock, monkeypatch, seconds=60.0)
    assert found.save_seconds == (60.0,) * 2
    assert found.step_seconds == STEP
    assert set(found.beside_seconds) == {SLOW}
    assert 2 * 3 <= len(found.beside_seconds) <= 2 * 5
    assert "1.20 times one alone" in report.checkpoint_rows(found)["a step beside a save"]


def test_nothing_runs_beside_a_save_that_training_waits_for(clock, monkeypatch):
    found = timed(clock, monkeypatch, seconds=WRITTEN, asynchronous=False)
    assert found.blocked_seconds == found.save_seconds == (WRITTEN,) * 2
    assert "a step beside a save" not in report.checkpoint_rows(found)
