"""One training at a time in a run folder."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from places import HELPERS, REPOSITORY

import grain_jax.train
from grain_jax.training.lock import FILE, locked

pytestmark = pytest.mark.multiprocess

CONFIG = HELPERS / "tiny_world.py"
HOLD = "import sys, time; from pathlib import Path; from grain_jax.training.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1]), note=print): print('held', flush=True); time.sleep(600)"


@contextlib.contextmanager
def holding(workdir):
    """A process that has the lock."""
    root = str(REPOSITORY)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    try:
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_a_second_training_is_refused_and_leaves_the_first_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    workdir = tmp_path / "run"
    with holding(workdir) as holder:
        (workdir / "metrics.jsonl").write_text("of the first\n")
        half_saved = workdir / "checkpoints" / "4"  # would be put aside
        half_saved.mkdir(parents=True)
        assert grain_jax.train.main([f"--config={CONFIG}", f"--workdir={workdir}"]) == 2
        error = capsys.readouterr().err
        assert f"Another process ({holder.pid} on " in error
        assert f"trains in {workdir}" in error
        assert error.count("\n") == 1
        assert (workdir / "metrics.jsonl").read_text() == "of the first\n"
        assert half_saved.exists()
        assert not (workdir / "config.json").exists()


def test_a_killed_process_holds_nothing(tmp_path):
    with holding(tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(tmp_path, note=pytest.fail):
        assert str(os.getpid()) in (tmp_path / FILE).read_text()


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    notes = []
    with locked(tmp_path, note=notes.append):
        (note,) = notes
    assert "No locks available" in note
    assert "second training" in note


def test_a_start_that_is_refused_leaves_no_folder(tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = [f"--config={CONFIG}", f"--workdir={workdir}", "--batch_size=64"]
    assert grain_jax.train.main(arguments) == 2
    assert "fewer than one batch" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
