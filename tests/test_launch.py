"""The launch scripts: what they would run, and what they refuse."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))


def launch(script, *arguments, **environment):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck(script):
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=beside_python)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; it comes with the extra dev")
    subprocess.run([shellcheck, str(LAUNCH / script)], check=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_to_launch_shows_the_usage(script):
    result = launch(script)
    assert result.returncode == 2
    assert "usage" in result.stderr


def test_local_starts_each_process_with_its_number():
    lines = launch("local.sh", "--dry-run", "3", "--workdir=w", PORT="99").stdout.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines):
        assert "--workdir=w --coordinator=localhost:99" in line
        assert line.endswith(f"--num_processes=3 --process_id={number}")


def test_gpus_selects_devices():
    chosen = launch("gpus.sh", "--dry-run", "0,3", "--workdir=w").stdout
    assert "CUDA_VISIBLE_DEVICES=0,3 python -m grain_jax.train --workdir=w" in chosen
    assert "CUDA_VISIBLE_DEVICES" not in launch("gpus.sh", "--dry-run", "all").stdout


def test_slurm_submits_one_task_a_gpu_and_goes_on_after_a_signal():
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


def test_tpu_runs_on_all_workers():
    lines = launch("tpu_vm.sh", "--dry-run", "pod", "zone", PROJECT="p").stdout.splitlines()
    assert len(lines) == 4
    assert all("--worker=all --project=p" in line for line in lines)
    assert "grain_jax.train --distributed" in lines[-1]
    assert "nohup" in lines[-1]
