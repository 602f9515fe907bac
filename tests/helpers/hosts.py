"""Processes that take themselves for as many machines: each sees a boot id of its own.

XLA tells machines apart by it, so what runs here meets what runs on several hosts: as many slices.
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


def start_hosts(
    folder: Path,
    *command: str,
    count: int = 2,
    own_boot_ids: bool = True,
    hide: Path | None = None,
):
    """All processes of the Python `command`, joined.

    `own_boot_ids` takes `needs_mount_namespace`; without them, all are on one machine. `hide`: a
    folder that all but the first see empty.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    joined = (f"--coordinator=localhost:{port}", f"--num_processes={count}")
    return [
        subprocess.Popen(
            [
                *(_elsewhere(folder, hide) if i and own_boot_ids else ()),
                *(sys.executable, *command, *joined, f"--process_id={i}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            cwd=folder,
        )
        for i in range(count)
    ]


def _elsewhere(folder: Path, hide: Path | None) -> tuple[str, ...]:
    """What starts the command after it as if on another machine, under the id of its process."""
    boot_id = folder / f"boot_id_{uuid.uuid4().hex}"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    script = f"mount --bind {boot_id} {BOOT_ID}"
    if hide is not None:
        empty = folder / "nothing"
        empty.mkdir(exist_ok=True)
        script += f" && mount --bind {empty} {hide}"
    return ("unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh")


def outputs(started, *, timeout: float = 500) -> list[tuple[int, str]]:
    """Exit status and output of each; all are killed where one does not end in time."""
    try:
        return [(process.wait(timeout), process.stdout.read()) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
