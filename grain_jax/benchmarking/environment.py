"""What a figure was measured on: versions, devices, processor, memory, load, commit."""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import grain_jax
from grain_jax.runtime import source_commit, usable_cpus

PACKAGES = (
    *("jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("torch", "torchvision", "timm", "open_clip_torch"),
)
SHOWN = ("grain_jax", "jax", "python")


def environment(load: Sequence[float] | None) -> dict[str, Any]:
    """Versions, hardware and commit, as JSON; `load`: `load_averages()` before the measurement."""
    versions = {"grain_jax": grain_jax.__version__, "python": platform.python_version()}
    versions["jax"] = jax.__version__
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    device = jax.devices()[0]
    return {
        "versions": versions | {"platform": device.client.platform_version},
        "hardware": {
            "devices": jax.device_count(),
            "device_kind": device.device_kind,
            "processor": processor(),
            "cpus": usable_cpus(),
            "memory_bytes": _memory(),
            "load_before": None if load is None else list(load),
        },
        "commit": source_commit(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "huge_pages": "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
    }


def environment_rows(found: dict[str, Any]) -> dict[str, str]:
    """`environment` as rows of a table."""
    hardware, versions = found["hardware"], found["versions"]
    load = hardware["load_before"]
    gib = (
        "" if hardware["memory_bytes"] is None else f", {hardware['memory_bytes'] / 2**30:.0f} GiB"
    )
    busy = "" if load is None else f"; load {load[0]:.2f} before"
    rows = {
        "devices": f"{hardware['devices']} x {hardware['device_kind']}",
        "host": f"{hardware['cpus']} CPUs of {hardware['processor']}{gib}{busy}",
        "versions": ", ".join(
            f"{name} {versions[name]}" for name in ("grain_jax", "jax", "python")
        ),
        "commit": found["commit"] or "of an installed package",
    }
    return rows | ({"XLA_FLAGS": found["xla_flags"]} if found["xla_flags"] else {})


def load_averages() -> tuple[float, float, float] | None:
    """Of the last minute, 5 and 15; None where the system has none."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def processor() -> str:
    """The name of the CPU, as well as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    """Bytes of the host."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
