"""How a run ends: which exit status, and that it is closed whatever the screen does."""

from types import SimpleNamespace

import pytest
from tiny_run import tiny_config
from training_process import lines, start, undisturbed_run

import grain_jax.train
from grain_jax import buckets
from grain_jax.trainer.watchdog import Watchdog
from grain_jax.training.bucket_lock import LockLost
from grain_jax.training.checkpoint import SaveFailed
from grain_jax.training.progress import Screen


@pytest.fixture
def run(tmp_path):
    """A run that notes whether it was closed."""
    closed = []
    return SimpleNamespace(
        config=tiny_config(),
        files=SimpleNamespace(folder=tmp_path),
        last_step=4,
        kept=lambda: "step 2 is saved",
        closed=closed,
        close=lambda: closed.append(True),
    )


def ended(run, monkeypatch, error, screen=None):
    """The exit status of a run whose training raises `error`."""

    def train(*given):
        raise error

    monkeypatch.setattr(grain_jax.train, "train", train)
    return grain_jax.train.run_to_end(run, screen or Screen(), Watchdog(0, end=False))


def saving_failed(cause):
    error = SaveFailed("a checkpoint could not be written")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (buckets.Unreachable("no network"), 75),
        (saving_failed(buckets.Unreachable("no network")), 75),
        (saving_failed(OSError("No space left on device")), 1),
        (LockLost("another process has taken it over"), 1),
        (OSError("No space left on device"), 1),
    ],
)
def test_a_bucket_out_of_reach_is_tried_again(run, monkeypatch, capsys, error, status):
    assert ended(run, monkeypatch, error) == status
    assert run.closed == [True]
    assert f"Stopped: {error}" in capsys.readouterr().out


def test_a_run_is_closed_though_its_screen_fails(run, monkeypatch):
    screen = Screen()
    monkeypatch.setattr(screen, "stop", lambda: (_ for _ in ()).throw(OSError("no screen")))
    with pytest.raises(OSError, match="no screen"):
        ended(run, monkeypatch, RuntimeError("unexpected"), screen)
    assert run.closed == [True]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_whose_reader_has_left_trains_on_and_logs_the_same(tmp_path):
    """As of `python -m grain_jax.train | head -1`."""
    process = start(tmp_path / "run")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert lines(tmp_path / "run") == lines(undisturbed_run())
