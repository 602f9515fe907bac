"""The process around a run: folder, quiet libraries, compiled programs on disk, profiler."""

import contextlib
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging as absl_logging

from grain_jax.extras import how_to_install
from grain_jax.paths import expand_home

PROFILED_STEPS = 5
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def quiet_libraries() -> None:
    """Keeps Orbax and TFDS, which log through absl, from talking over the progress bar.

    A save that fails, on a full disk say, is raised by Orbax, and reported by this project in one
    sentence; Orbax and TensorStore print over a thousand lines of tracebacks besides.
    """
    absl_logging.set_verbosity(absl_logging.ERROR)
    logger = absl_logging.get_absl_logger()
    if not any(isinstance(one, _WithoutTracebacks) for one in logger.filters):
        logger.addFilter(_WithoutTracebacks())
        logging.getLogger("asyncio").addFilter(_WithoutTracebacks())
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)


class _WithoutTracebacks(logging.Filter):
    """Drops what Orbax logs of an exception that it raises too, and what asyncio says of the other
    writes of that save, which failed alike.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        repeated = f"{os.sep}orbax{os.sep}" in record.pathname
        repeated |= "exception was never retrieved" in str(record.msg)
        return not (record.exc_info and repeated)


class _WithoutClosedLoops:
    """Leaves out what TensorStore's threads print for each write that had not ended when another
    one failed, and Orbax with it: that the event loop which waited for it is closed.
    """

    def __init__(self, shown: Callable[[Any], Any]) -> None:
        self._shown = shown

    def __call__(self, unraisable: Any, /) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._shown(unraisable)


def restart_with_huge_pages() -> None:
    """Starts this very command again with glibc's allocator asking for huge pages, where it can.

    XLA on a CPU takes its buffers anew every step; in pages of 4 KiB that is a third of a step
    (docs/experiments.md). glibc reads the setting only when a program starts. Nothing happens on
    other systems, under a debugger, where JAX_PLATFORMS leaves the CPU out, or where GLIBC_TUNABLES
    already says what to do: `glibc.malloc.hugetlb=0` keeps small pages.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    elsewhere = "cpu" not in os.environ.get("JAX_PLATFORMS", "cpu")
    if "glibc.malloc.hugetlb" in tunables or elsewhere or sys.gettrace():
        return
    if not _offers_huge_pages():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):  # small pages do
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _offers_huge_pages() -> bool:
    """Whether the kernel gives transparent huge pages to those who ask, and the C library can."""
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return False
    with contextlib.suppress(OSError):
        return "[madvise]" in HUGE_PAGES.read_text(encoding="ascii")
    return False


def open_devices() -> None:
    """Finds the devices, before anything else asks for them.

    Raises ValueError where those that JAX_PLATFORMS asks for are not there.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX itself says no more than that
        reason = f" JAX says: {error}" if str(error) else ""
        raise ValueError(
            f"No device was found (JAX_PLATFORMS={platforms or 'not set'}). {_advice(platforms)} "
            f"JAX_PLATFORMS=cpu computes on the CPU.{reason}"
        ) from error


def missing_gpu_notes() -> list[str]:
    """For the screen: that GPUs are named, and JAX went for the CPU; it says so only in its log."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    wanted = visible not in ("", "-1", "NoDevFiles") and not os.environ.get("JAX_PLATFORMS")
    if not wanted or jax.default_backend() != "cpu":
        return []
    return [
        f"CUDA_VISIBLE_DEVICES={visible} names GPUs and JAX found none, so this computes on the "
        "CPU; JAX_PLATFORMS=cuda makes that an error"
    ]


def _advice(platforms: str) -> str:
    """What to look at where JAX finds nothing of these platforms."""
    if "tpu" in platforms:
        return (
            f"Expected a TPU VM, jax for it ({how_to_install('tpu')}), and no other process that "
            "holds the TPU."
        )
    if not any(name in platforms for name in ("cuda", "gpu", "rocm")):
        return "Unset JAX_PLATFORMS, or name cpu, cuda or tpu in it."
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return (
            f"CUDA_VISIBLE_DEVICES={visible!r} leaves only these of the GPUs; expected numbers "
            f"that nvidia-smi lists, and jax for CUDA ({how_to_install('cuda')})."
        )
    return (
        f"Expected a GPU that nvidia-smi lists, and jax for CUDA ({how_to_install('cuda')}; for "
        "older drivers the extra cuda12)."
    )


def processes_on_this_machine(environment: Mapping[str, str]) -> int:
    """Tasks of the step on the fullest machine, as Open MPI or Slurm say; 1 where neither does."""
    if (count := environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")).isdigit():
        return int(count)
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # "8(x2),4"
    return max((int(count) for count in re.findall(r"(?:^|,)(\d+)", tasks)), default=1)


def usable_cpus() -> int:
    """CPUs that this process may run on: what the batch job or container gives, not the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def cache_compilations(setting: str) -> None:
    """Keeps compiled programs on disk, so that a restart need not compile again.

    `setting`: a folder, "auto" (JAX_COMPILATION_CACHE_DIR, else the user's cache) or "off".
    """
    if setting == "auto":
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            return
        compiled = user_cache("compiled")
        setting = "off" if compiled is None else str(compiled)
    folder = None if setting == "off" else expand_home(setting)
    jax.config.update("jax_compilation_cache_dir", folder)


def user_cache(name: str) -> Path | None:
    """A folder of grain_jax's in the user's cache; None without a home folder, as in a container
    that runs under a number that no account has: nothing outlives a process there.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache")
    except ValueError:
        return None
    return Path(base, "grain_jax", name)


class Profiler:
    """A trace of five steps from `first_step` on, for TensorBoard or Perfetto; -1: none."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder / "profile"
        self._first, self._last = first_step, max(first_step, 1) + PROFILED_STEPS - 1
        self._tracing = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def before(self, step: int) -> None:
        """Call before each step (counted from 1)."""
        if self._first >= 0 and step == max(self._first, 1):
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True

    def after(self, step: int, result: Any) -> None:
        """Call after each step with something it computes."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(result)
            self.stop()

    def stop(self) -> None:
        """Writes what there is. Safe to call twice."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


def source_commit() -> str:
    """Commit of the source tree this runs from, "+" where it has changes; "" when installed."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=40"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here: the version has to do
        return ""
    return result.stdout.strip()
