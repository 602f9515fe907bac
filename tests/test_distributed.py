"""Two processes on loopback do what one does; when a process thinks it is one of several."""

import json
import signal
import socket
import subprocess
import time

import pytest
from training_process import ARGUMENTS, REPOSITORY, environment, lines, undisturbed_run

from grain_jax.training import checkpoint, processes


def launch_two(workdir, *arguments):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return subprocess.Popen(
        [
            *("bash", str(REPOSITORY / "launch" / "local.sh"), "2"),
            *(*ARGUMENTS, "--config.mesh.cpu_devices=1", f"--workdir={workdir}", *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(PORT=str(port)),
        cwd=workdir.parent,
    )


def evaluated(workdir):
    """The final results: the last line."""
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


def test_two_processes_train_and_evaluate_as_one(tmp_path):
    workdir = tmp_path / "two"
    process = launch_two(workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "2 x cpu of 2 processes" in output
    assert output.count("step 12/12") == 1  # one process speaks

    trained = [line for line in lines(workdir) if "loss" in line]
    for found, expected in zip(trained, lines(undisturbed_run()), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)

    # The same command in one process: the run is finished and has no report, so it is evaluated.
    (workdir / "report.md").unlink()
    two = evaluated(workdir)
    alone = subprocess.run(
        [environment()["PYTHON"], "-m", "grain_jax.train", *ARGUMENTS, f"--workdir={workdir}"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert (workdir / "report.md").exists()
    assert evaluated(workdir) == pytest.approx(two, abs=1e-4)


def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
    workdir = tmp_path / "stopped"
    process = launch_two(workdir, "--config.steps=100000", "--config.checkpoint.every_steps=100000")
    while not (workdir / "metrics.jsonl").exists() or not lines(workdir):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    (saved,) = checkpoint.complete_steps(workdir / "checkpoints")
    assert f"step {saved} is saved" in output


@pytest.mark.parametrize(
    ("variables", "many"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # a shell inside an allocation
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host:1"}, True),
    ],
)
def test_many_processes_are_detected_and_one_is_left_alone(variables, many):
    assert processes.is_one_of_many(variables) == many


def test_a_process_needs_all_three_numbers():
    with pytest.raises(
        ValueError, match=r"--coordinator, --process_id given without --num_processes"
    ):
        processes.join_processes(
            distributed=False, coordinator="host:1", num_processes=None, process_id=0
        )
