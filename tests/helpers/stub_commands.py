"""Stand-ins for the commands of clusters: they record their arguments, and do as they are told.

No launcher under test reaches the real ones: the stand-ins come first on the path.
"""

import os
import subprocess
import sys
from pathlib import Path

from places import REPOSITORY

LAUNCH = REPOSITORY / "launch"
# Stands in for the interpreter that checks: says what it was asked, and prints settings.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *" --check "*) echo "checked: $*" >&2; exit "${CHECK_STATUS:-0}" ;;
  *" --print_config"*) echo '{"data": {"num_workers": 16}}'; exit "${CHECK_STATUS:-0}" ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
RECORD = """#!/usr/bin/env bash
printf '%s' "${0##*/}" >> "$CALLS"; printf ' %s' "$@" >> "$CALLS"; echo >> "$CALLS"
"""


def stubs(folder: Path, **bodies: str) -> Path:
    """A folder of stand-ins: "python", and for the others what each does after it has recorded its
    arguments. Those of all clusters are there, so that none that is installed is ever called.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scripts = {"gcloud": "", "kubectl": "", "sbatch": "", "srun": "", "scontrol": "", "curl": ""}
    for name, body in {**scripts, **bodies}.items():
        (folder / name).write_text(PYTHON if name == "python" else RECORD + body)
        (folder / name).chmod(0o755)
    if "python" not in bodies:
        (folder / "python").write_text(PYTHON)
        (folder / "python").chmod(0o755)
    return folder


def launch(
    script: str, *arguments: str, bin: Path, cwd: Path, timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess:
    """A launcher with stand-ins; what they were called with is in the file `bin`/calls."""
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=stubbed(bin, cwd) | environment,
    )


def start(script: str, *arguments: str, bin: Path, cwd: Path, **environment: str):
    """As `launch`, but while it runs: a process whose stdout and stderr are one pipe."""
    return subprocess.Popen(
        ["bash", str(LAUNCH / script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=stubbed(bin, cwd) | environment,
    )


def stubbed(bin: Path, home: Path) -> dict[str, str]:
    """The environment in which the stand-ins of `bin` take the place of the commands."""
    return {
        "PATH": f"{bin}:/usr/bin:/bin",
        "HOME": str(home),
        "REAL_PYTHON": sys.executable,
        "CALLS": str(bin / "calls"),
        "USER": os.environ.get("USER", "user"),
    }


def calls(bin: Path) -> list[str]:
    """One line for each call of a stand-in."""
    path = bin / "calls"
    return path.read_text().splitlines() if path.exists() else []
