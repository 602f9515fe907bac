"""A Ray cluster of several machines, as processes of this one, for as long as a test runs.

python ray_machines.py GPUS CORES [CORES ...]   (prints its address; ends when its input ends)
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import HELPERS, REPOSITORY

STORE_BYTES = 80 * 2**20  # of shared memory a machine; the least that Ray takes


@contextlib.contextmanager
def ray_machines(*cores: int, gpus: int = 0) -> Iterator[str]:
    """The address of a cluster with as many machines, each with that many cores.

    gpus: that Ray gives out on each of them, whether they exist or not.
    """
    pytest.importorskip("ray")
    process = subprocess.Popen(
        [sys.executable, __file__, str(gpus), *map(str, cores)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{HELPERS}", "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert process.stdout is not None
    try:
        address = next((line for line in process.stdout if line.startswith("address ")), "")
        assert address, "the cluster did not start"
        yield address.split()[1]
    finally:
        process.communicate(timeout=60)


def worker_pids(class_name: str) -> list[int]:
    """Processes on this machine in which an actor of that class runs."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if (folder / "cmdline").read_bytes().startswith(f"ray::{class_name}".encode()):
                    found.append(int(folder.name))
    return sorted(found)


def main(gpus: int, cores: list[int]) -> None:
    # Short, as paths of sockets must be; and by this variable, so that `--ray=auto` elsewhere does
    # not find the cluster.
    folder = os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for count in cores:
            cluster.add_node(
                num_cpus=count,
                num_gpus=gpus,
                object_store_memory=STORE_BYTES,
                include_dashboard=False,
            )
        print("address", cluster.address, flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(text) for text in sys.argv[2:]])
