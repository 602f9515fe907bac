"""The memory limit of this process: of the machine, or of its container or batch job."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def memory_limit() -> int:
    """Bytes: of the machine, or the smallest limit of the process's control groups (v1, v2)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _limit_files():
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(file.read_text(encoding="ascii")))
    return min(limits)


def _limit_files() -> Iterator[Path]:
    """Files that may hold a limit, from the group of the process up to the root."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number == "0" and not controllers:
            root, file = CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, file = CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / name.lstrip("/")
        # In a container the path may be the host's, of which only the root is seen here.
        for folder in (group, *group.parents):
            yield folder / file
            if folder == root:
                break
