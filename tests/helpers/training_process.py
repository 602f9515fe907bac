"""Training runs in processes of their own, for tests of restarting and of several processes."""

import fcntl
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from places import HELPERS, REPOSITORY

STEPS = 12
ARGUMENTS = (f"--config={HELPERS / 'tiny_world.py'}", f"--steps={STEPS}")
CLIP = (f"--config={HELPERS / 'tiny_world.py'}:clip",)  # starts in half the time
ENDLESS = ("--steps=100000", "--checkpoint.save_interval_steps=100000")
TIMED = {"images_per_second", "data_wait", "train_seconds"}  # differ from run to run


def environment(**more: str) -> dict[str, str]:
    """Of a process that compiles fast and finds what an earlier one compiled (`conftest.py`)."""
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(REPOSITORY),
        "PYTHON": sys.executable,
        **more,
    }


def start(
    workdir: Path, *arguments: str, base: Sequence[str] = ARGUMENTS, **more: str
) -> subprocess.Popen:
    """A training process without the last evaluation."""
    return subprocess.Popen(
        [
            *(sys.executable, str(HELPERS / "train_only.py")),
            *(*base, f"--workdir={workdir}", *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**more),
        cwd=workdir.parent,
    )


def run(
    workdir: Path, *arguments: str, base: Sequence[str] = ARGUMENTS, **more: str
) -> tuple[int, str]:
    """Exit status and output of such a process."""
    process = start(workdir, *arguments, base=base, **more)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@functools.cache
def undisturbed_run() -> Path:
    """Folder of a run that nothing happened to, the same for all workers of a session."""
    folder = Path(os.environ["GRAIN_JAX_TESTS"])
    workdir = folder / "undisturbed"
    with (folder / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be making it
        if not (folder / "undisturbed.done").exists():
            status, output = run(workdir)
            assert status == 0, output
            (folder / "undisturbed.done").touch()
    return workdir


def lines(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in entry.items() if name not in TIMED} for entry in entries
    ]
