"""Training runs in processes of their own, for tests of restarting and of several processes."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
STEPS = 12
ARGUMENTS = (f"--config={TESTS / 'tiny_world.py'}", f"--config.steps={STEPS}")
TIMED = {"images_per_second", "data_wait", "train_seconds"}  # differ from run to run


@functools.cache
def shared_folder() -> Path:
    """For the session: compiled programs, and the run that nothing happens to."""
    return Path(tempfile.mkdtemp(prefix="grain_jax_tests_"))


def environment(**more: str) -> dict[str, str]:
    """Of a process that compiles fast and finds what an earlier one compiled."""
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(shared_folder() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHON": sys.executable,
        **more,
    }


def start(workdir: Path, *arguments: str, **more: str) -> subprocess.Popen:
    """A training process without the last evaluation."""
    return subprocess.Popen(
        [
            *(sys.executable, str(TESTS / "train_only.py")),
            *(*ARGUMENTS, f"--workdir={workdir}", *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**more),
        cwd=workdir.parent,
    )


def run(workdir: Path, *arguments: str, **more: str) -> tuple[int, str]:
    """Exit status and output of such a process."""
    process = start(workdir, *arguments, **more)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@functools.cache
def undisturbed_run() -> Path:
    """Folder of a run that nothing happened to."""
    workdir = shared_folder() / "undisturbed"
    status, output = run(workdir)
    assert status == 0, output
    return workdir


def lines(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in entry.items() if name not in TIMED} for entry in entries
    ]
