"""Data that fails in the middle of a run: what was trained is saved, and all processes stop."""

import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import TinyRun, averaged_config, random_batch
from training_process import CLIP, ENDLESS, lines, run, start
from two_processes import launch_two

from grain_jax.training import checkpoint

pytestmark = pytest.mark.multiprocess

ONE_LOADER = (
    *ENDLESS,
    "--logging.log_interval_steps=1",
    "--data.num_workers=1",
    "--data.cache=none",
)


def loader_processes(parent: int) -> list[int]:
    """Processes that multiprocessing has spawned below `parent`, its children's too."""
    parents, spawned = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        number = int(folder.name)
        parents[number] = int(stat.rpartition(")")[2].split()[1])
        if b"spawn_main" in command:
            spawned.append(number)

    def below(number: int) -> bool:
        while number in parents and number != parent:
            number = parents[number]
        return number == parent

    return [number for number in spawned if below(number)]


def kill_a_loader(process, workdir: Path) -> str:
    """Output of the run, one of whose loader processes is killed once it trains."""
    while not (workdir / "metrics.jsonl").exists() or len(lines(workdir)) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(loader_processes(process.pid)[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "was killed, as Linux does when memory runs out" in output
    assert "Traceback" not in output
    return output


@pytest.mark.slow
def test_a_run_saves_when_a_loader_process_is_killed(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    output = kill_a_loader(start(workdir, *ONE_LOADER, base=CLIP), workdir)
    (saved,) = checkpoint.complete_steps(workdir / "checkpoints")
    assert f"step {saved} is saved" in output
    assert lines(workdir)[-1]["step"] == saved


@pytest.mark.slow
def test_two_processes_save_the_same_step_and_lose_nothing(tmp_path: Path) -> None:
    workdir = tmp_path / "two"
    output = kill_a_loader(launch_two(workdir, *ONE_LOADER, base=CLIP), workdir)
    assert "saving before stopping" in output
    (saved,) = checkpoint.complete_steps(workdir / "checkpoints")
    threads = ("--data.num_workers=0",)
    status, output = run(workdir, *ONE_LOADER, *threads, "--max_steps_this_run=2", base=CLIP)
    assert status == 0, output
    whole = tmp_path / "whole"
    end = f"--max_steps_this_run={saved + 2}"
    status, output = run(whole, *ONE_LOADER, *threads, end, base=CLIP)
    assert status == 0, output
    for found, expected in zip(lines(workdir), lines(whole), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_a_step_without_a_record_in_one_row_changes_nothing() -> None:
    tiny, batch = TinyRun(averaged_config()), random_batch()
    before = jax.device_get(tiny.state)
    batch = batch.replace(index=np.where(np.arange(16) == 5, -1, batch.index))
    (metrics,) = tiny.train([batch])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(tiny.state), before)
    assert metrics["nonfinite_steps"] == 0
