"""The launch scripts: what they would run, and what they refuse."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))


# Stands in for the interpreter: says what it was asked to check, and prints settings.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
  *" --check "*) echo "checked: $*" >&2; exit "${CHECK_STATUS:-0}" ;;
  *" --print_config"*) echo '{"data": {"num_workers": 16}}' ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text(FAKE_PYTHON)
    path.chmod(0o755)
    return path


@pytest.fixture
def launch(python):
    def run(script, *arguments, **environment):
        return subprocess.run(
            ["bash", str(LAUNCH / script), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": f"{python.parent}:/usr/bin:/bin", "REAL_PYTHON": sys.executable}
            | environment,
        )

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck(script):
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=beside_python)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; it comes with the extra dev")
    subprocess.run([shellcheck, str(LAUNCH / script)], check=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_to_launch_shows_the_usage(script, launch):
    result = launch(script)
    assert result.returncode == 2
    assert "usage" in result.stderr


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
    assert r"srun --kill-on-bad-exit=1 python -m grain_jax.train --distributed --workdir=/a\ b" in (
        result
    )
    assert "143" in result
    assert "requeue" in result


def test_tpu_runs_on_all_workers(launch):
    lines = launch("tpu_vm.sh", "--dry-run", "pod", "zone", PROJECT="p").stdout.splitlines()
    assert len(lines) == 4
    assert all("--worker=all --project=p" in line for line in lines)
    assert "grain_jax.train --distributed" in lines[-1]
    assert "nohup" in lines[-1]


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


def test_slurm_submits_nothing_that_fails_the_check(launch):
    result = launch("slurm.sh", "2", "8", CHECK_STATUS="2")
    assert result.returncode == 2
    assert "sbatch" not in result.stderr  # it is not installed here: calling it would say so


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
    lines = launch("tpu_vm.sh", "--dry-run", "pod", "zone", MODULE="grain_jax.evaluate").stdout
    assert "-m grain_jax.evaluate --distributed" in lines


@pytest.mark.parametrize("given", [("pod", "--config=x"), ("--config=x", "zone"), ("pod", "-v")])
def test_an_option_is_no_tpu_name_or_zone(given, launch):
    result = launch("tpu_vm.sh", "--dry-run", *given)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"given: {' '.join(given)}" in result.stderr
