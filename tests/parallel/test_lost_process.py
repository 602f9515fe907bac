"""One of two processes is lost: the other ends with a message, and the command resumes."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import start_hosts
from places import HELPERS
from training_process import CLIP, lines, run

from grain_jax.command_line import ExitStatus
from grain_jax.parallel.processes import HEARTBEAT_TIMEOUT_SECONDS
from grain_jax.training import checkpoint

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

COMMAND = (
    *(*CLIP, "--mesh.cpu_devices=1", "--steps=100000"),
    *("--checkpoint.save_interval_steps=10", "--logging.log_interval_steps=1"),
)
LEFT = "Stopped: another process has left or cannot be reached ("
ABORTED = -signal.SIGABRT  # by JAX's service, which launchers repeat as they do 75
MINUTE = 60


@dataclass
class Lost:
    """What the other process did: its status, output and how long it went on."""

    status: int
    output: str
    seconds: float


def lose(workdir: Path, number: int, sent: signal.Signals, *, after: int) -> Lost:
    """Sends process `number` of two a signal once they have written the line of step `after`."""
    before = written(workdir)
    started = start_hosts(
        workdir.parent,
        *(str(HELPERS / "train_only.py"), *COMMAND, f"--workdir={workdir}"),
        own_boot_ids=False,
    )
    other = started[1 - number]
    try:
        while (now := written(workdir)) == before or len(now) < after:  # a resumed run drops some
            for process in started:
                assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        begun = time.monotonic()
        os.kill(started[number].pid, sent)
        try:
            output, _ = other.communicate(timeout=2 * MINUTE)
        except subprocess.TimeoutExpired:
            other.kill()
            pytest.fail(f"still there after two minutes: {other.communicate()[0]}")
        return Lost(other.returncode, output, time.monotonic() - begun)
    finally:
        for process in started:
            process.kill()
            process.communicate()


def written(workdir: Path) -> list[str]:
    """The whole lines of metrics.jsonl, one a step."""
    file = workdir / "metrics.jsonl"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def resumes_on_half_the_hosts(workdir: Path) -> None:
    """The same command in one process: two steps from the newest checkpoint, and none twice."""
    newest = checkpoint.complete_steps(workdir / "checkpoints")[-1]
    status, output = run(workdir, *COMMAND, "--max_steps_this_run=2", base=())
    assert status == 0, output
    assert f"resumed at step {newest}" in " ".join(output.split())
    assert [line["step"] for line in lines(workdir)] == list(range(1, newest + 3))


def test_a_killed_process_ends_the_other_and_the_run_resumes(tmp_path):
    """In a step, and as a save begins, whose collectives fail elsewhere and as other errors."""
    workdir = tmp_path / "run"
    lost = lose(workdir, 1, signal.SIGKILL, after=13)
    assert lost.status == ExitStatus.AGAIN, lost.output
    assert LEFT in lost.output
    assert lost.seconds < MINUTE

    newest = checkpoint.complete_steps(workdir / "checkpoints")[-1]
    lost = lose(workdir, 1, signal.SIGKILL, after=newest + 10)  # the same command
    assert f"resumed at step {newest}" in " ".join(lost.output.split())
    assert lost.status == ExitStatus.AGAIN, lost.output
    assert LEFT in lost.output
    assert lost.seconds < MINUTE
    resumes_on_half_the_hosts(workdir)


def test_a_process_that_stands_still_or_was_the_first_ends_the_other(tmp_path):
    """No connection closes over one that is stopped: its heartbeats are what fails to come."""
    workdir = tmp_path / "run"
    lost = lose(workdir, 1, signal.SIGSTOP, after=13)
    assert lost.status == ABORTED, lost.output
    assert "unhealthy (stopped sending heartbeats)" in lost.output
    assert HEARTBEAT_TIMEOUT_SECONDS / 2 < lost.seconds < MINUTE

    # The first process keeps the service by which the others know: its connections close too, and
    # either a step or the service notices first.
    lost = lose(workdir, 0, signal.SIGKILL, after=16)
    assert lost.status in (ExitStatus.AGAIN, ABORTED), lost.output
    assert LEFT in lost.output or "another task died" in lost.output
    assert lost.seconds < MINUTE
    assert checkpoint.complete_steps(workdir / "checkpoints")[-1] == 10
    resumes_on_half_the_hosts(workdir)
