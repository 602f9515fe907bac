"""Memory of a process."""

from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes_of_process(status: Path = STATUS) -> int | None:
    """Most memory that this process has held, libraries and compilations included.

    Of Linux's `VmHWM`, which unlike `ru_maxrss` begins anew when a program starts; None elsewhere.
    """
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return int(found[0][1]) * 1024 if found else None
