"""A run of two processes on one machine."""

import socket
import subprocess

from places import REPOSITORY
from training_process import ARGUMENTS, environment


def launch_two(workdir, *arguments, base=ARGUMENTS, **more):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return subprocess.Popen(
        [
            *("bash", str(REPOSITORY / "launch" / "local.sh"), "2"),
            *(*base, "--mesh.cpu_devices=1", f"--workdir={workdir}", *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(PORT=str(port), **more),
        cwd=workdir.parent,
    )
