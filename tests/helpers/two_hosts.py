"""Two processes that take themselves for two machines: each sees a boot id of its own.

XLA tells machines apart by it, so what runs here meets what runs on two hosts: two slices.
"""

import functools
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from training_process import environment

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def _allowed() -> bool:
    try:
        command = ["unshare", "-m", "mount", "--bind", "/dev/null", str(BOOT_ID)]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


needs_mount_namespace = pytest.mark.skipif(
    not _allowed(), reason="a second boot id takes a mount namespace: Linux, and root or the like"
)


def start_two_hosts(folder: Path, *command: str, hide: Path | None = None):
    """Both processes of the Python `command`, joined; `hide`: a folder the second sees empty."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    other = folder / f"boot_id_{uuid.uuid4().hex}"
    other.write_text(f"{uuid.uuid4()}\n")
    script = f"mount --bind {other} {BOOT_ID}"
    if hide is not None:
        empty = folder / "nothing"
        empty.mkdir()
        script += f" && mount --bind {empty} {hide}"
    elsewhere = ("unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh")
    joined = (f"--coordinator=localhost:{port}", "--num_processes=2")
    return [
        subprocess.Popen(
            [*(elsewhere if i else ()), sys.executable, *command, *joined, f"--process_id={i}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            cwd=folder,
        )
        for i in range(2)
    ]


def outputs(started, *, timeout: float = 500) -> list[tuple[int, str]]:
    """Exit status and output of each; both are killed where one does not end in time."""
    try:
        return [(process.wait(timeout), process.stdout.read()) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
