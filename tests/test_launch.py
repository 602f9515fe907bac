"""The launch scripts: what they would run, and what they refuse."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY
from stub_commands import LAUNCH, calls, stubs
from stub_commands import launch as launch_with_stubs

SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
LIBRARY = sorted(f"lib/{path.name}" for path in (LAUNCH / "lib").glob("*.sh"))


@pytest.fixture(scope="module")
def bin(tmp_path_factory):
    return stubs(tmp_path_factory.mktemp("launch") / "bin")


@pytest.fixture
def launch(bin, tmp_path):
    def run(script, *arguments, **environment):
        return launch_with_stubs(script, *arguments, bin=bin, cwd=tmp_path, **environment)

    return run


@pytest.mark.parametrize("script", [*SCRIPTS, *LIBRARY])
def test_shellcheck(script):
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=beside_python)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; it comes with the extra dev")
    subprocess.run([shellcheck, "-x", f"launch/{script}"], check=True, timeout=60, cwd=REPOSITORY)


@pytest.mark.parametrize("script", [*SCRIPTS, *sorted(set(LIBRARY) - {"lib/common.sh"})])
def test_nothing_to_launch_shows_the_usage(script, launch):
    result = launch(script)
    assert result.returncode == 2
    assert "usage" in result.stderr


@pytest.mark.parametrize("script", [*SCRIPTS, *sorted(set(LIBRARY) - {"lib/common.sh"})])
def test_an_option_in_place_of_a_word_is_named(script, launch):
    result = launch(script, *["--config=x"] * 4)
    assert result.returncode == 2
    assert "usage" in result.stderr
    assert "no option may stand before these; given: --config=x" in result.stderr


def test_local_starts_each_process_with_its_number(launch):
    lines = launch("local.sh", "--dry-run", "3", "--workdir=w", PORT="99").stdout.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines):
        assert "--workdir=w --coordinator=localhost:99" in line
        assert line.endswith(f"--num_processes=3 --process_id={number}")


def test_gpus_selects_devices(launch):
    chosen = launch("gpus.sh", "--dry-run", "0,3", "--workdir=w").stdout
    assert "CUDA_VISIBLE_DEVICES=0,3 python -m grain_jax.train --workdir=w" in chosen
    assert "CUDA_VISIBLE_DEVICES" not in launch("gpus.sh", "--dry-run", "all").stdout


def test_slurm_submits_one_task_a_gpu_and_goes_on_after_a_signal(launch):
    result = launch(
        "slurm.sh", "--dry-run", "2", "8", "--workdir=/a b", SBATCH_ARGS="--partition=gpu"
    ).stdout
    assert "sbatch" in result
    assert "--nodes=2 --ntasks-per-node=8" in result
    assert "--partition=gpu" in result
    assert "--signal=TERM@600 --requeue" in result
    assert r"slurm_job.sh logs python -m grain_jax.train --distributed --workdir=/a\ b" in result


GPUS_OF = {"gpus.sh": ("0,3",), "slurm.sh": ("2", "8"), "local.sh": ("2",)}


@pytest.mark.parametrize(
    ("script", "devices"), [("gpus.sh", "2"), ("slurm.sh", "2x8"), ("local.sh", "")]
)
def test_a_dry_run_checks_and_shows_nothing_where_the_check_fails(script, devices, launch):
    good = launch(script, "--dry-run", *GPUS_OF[script], "--config=c.py")
    assert good.returncode == 0
    assert f"--check --check_devices={devices} --config=c.py" in good.stderr
    assert "grain_jax.train" in good.stdout
    bad = launch(script, "--dry-run", *GPUS_OF[script], "--config=c.py", CHECK_STATUS="2")
    assert (bad.returncode, bad.stdout) == (2, "")


def test_slurm_submits_nothing_that_fails_the_check(launch, bin):
    assert launch("slurm.sh", "2", "8", CHECK_STATUS="2").returncode == 2
    assert not [call for call in calls(bin) if call.startswith("sbatch")]


def test_the_check_is_the_trainer_s_own(tmp_path):
    """Through the real interpreter: a data set that is not there, and a batch for 3 devices."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(LAUNCH.parent)}
    result = subprocess.run(
        ["bash", str(LAUNCH / "gpus.sh"), "--dry-run", "0,1,2", "--config=demo:smoke"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "batch_size = 16" in result.stderr
    assert "multiple of 3" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_slurm_asks_for_the_cpus_of_the_loader_processes(launch):
    asked = launch("slurm.sh", "--dry-run", "2", "8", SBATCH_ARGS="--cpus-per-task=9").stdout
    assert "--cpus-per-task=17 " in asked
    assert asked.index("--cpus-per-task=17") < asked.index("--cpus-per-task=9")  # the last counts


def test_gpu_memory_is_used_and_the_share_can_be_chosen(launch):
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert f"{name}=.95" in launch("gpus.sh", "--dry-run", "all").stdout
    assert f"{name}=.5" in launch("gpus.sh", "--dry-run", "all", **{name: ".5"}).stdout
    assert f'{name}="${{{name}:-.95}}"' in launch("slurm.sh", "--dry-run", "1", "8").stdout


def test_evaluation_is_launched_on_several_machines_too(launch):
    for script in ("slurm.sh", "local.sh", "gpus.sh"):
        arguments = ("--dry-run", *GPUS_OF[script], "--checkpoint=a b")
        result = launch(script, *arguments, MODULE="grain_jax.evaluate")
        assert result.returncode == 0, result.stderr
        assert r"python -m grain_jax.evaluate" in result.stdout
        assert r"--checkpoint=a\ b" in result.stdout
        assert "cpu_devices" not in result.stdout
        assert "checks what it is given when it starts" in result.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_options_have_the_same_names_in_all_launchers(script):
    """What comes from the environment is said in common.sh or in the launcher's own first lines."""
    text = (LAUNCH / script).read_text()
    said = text[: text.index("set -euo pipefail")] + (LAUNCH / "lib" / "common.sh").read_text()
    for name in re.findall(r"(?<!\\)\$\{([A-Z_]+):?-", text):
        assert re.search(rf"\b{name}\b", said) or name == "JAX_PLATFORMS", name
