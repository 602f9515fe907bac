"""How to install what only some commands need: no package index has grain_jax itself."""

import importlib.metadata
import re
import shlex
from pathlib import Path

CPU_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def how_to_install(extra: str) -> str:
    """The command that installs an optional dependency of `pyproject.toml`, to end an error with.

    From a checkout it names the checkout; an installed wheel is asked for the packages themselves.
    """
    root = Path(__file__).parents[1]
    if (root / "pyproject.toml").is_file():
        command = f"pip install -e {shlex.quote(f'{root}[{extra}]')}"
    else:
        command = f"pip install {' '.join(map(shlex.quote, _requirements(extra)))}"
    if extra == "torch":
        command += f" (several GB of CUDA included; without an NVIDIA GPU first {CPU_TORCH})"
    return command


def _requirements(extra: str) -> list[str]:
    found = []
    for line in importlib.metadata.requires("grain_jax") or []:
        requirement, _, marker = line.partition(";")
        if re.search(rf"extra == ['\"]{extra}['\"]", marker):
            found.append(requirement.strip())
    return found
