"""`launch/slurm.sh` from the login node to the end, under a scheduler that really starts two nodes.

The stand-ins of sbatch, srun and scontrol run what they are given on this machine; the second node
sees a boot id of its own, so that XLA takes it for another machine.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from hosts import BOOT_ID, needs_mount_namespace
from stub_commands import LAUNCH, RECORD, calls
from training_process import CLIP, environment, lines

from grain_jax.training import checkpoint

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, needs_mount_namespace]

# The job, and again each time that scontrol has queued it.
SBATCH = r"""
cat >"$WORK/job.sh"
count=0
while true; do
  rm -f "$WORK/requeued"
  SLURM_JOB_ID=$JOB SLURM_RESTART_COUNT=$count bash "$WORK/job.sh" >>"$WORK/job.log" 2>&1
  code=$?
  echo $code >>"$WORK/job.statuses"
  [ -f "$WORK/requeued" ] || exit 0
  count=$((count + 1))
done
"""
SCONTROL = 'touch "$WORK/requeued"\n'
# Two nodes of one task; a task that ends badly ends the other, as with --kill-on-bad-exit=1.
SRUN = r"""
shift
export SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_LOCALID=0
export SLURM_STEP_TASKS_PER_NODE="1(x2)"
elsewhere="mount --bind $WORK/boot_id $BOOT_ID && exec \"\$@\""
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 unshare -m sh -c "$elsewhere" sh "$@" & second=$!
echo "$first $second" >"$WORK/tasks"
highest=0
for ((i = 0; i < 2; i++)); do
  wait -n "$first" "$second" || {
    code=$?
    ((code > highest)) && highest=$code
    kill -KILL $first $second 2>/dev/null
  }
done
exit $highest
"""


@pytest.fixture
def job(tmp_path):
    """Submits a training on two nodes; the process of sbatch, which ends with the job."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, body in {"sbatch": SBATCH, "scontrol": SCONTROL, "srun": SRUN}.items():
        (bin / name).write_text(RECORD + body)
        (bin / name).chmod(0o755)
    (tmp_path / "boot_id").write_text(f"{uuid.uuid4()}\n")
    started = []

    def submit(*arguments, **more):
        variables = environment(
            CALLS=str(bin / "calls"),
            WORK=str(tmp_path),
            BOOT_ID=str(BOOT_ID),
            JOB=str(os.getpid()),  # from which JAX makes the port where they meet
            PATH=os.pathsep.join([str(bin), os.environ["PATH"]]),
            JAX_PLATFORMS="cpu",
            **more,
        )
        command = ["bash", str(LAUNCH / "slurm.sh"), "2", "1", *CLIP, *arguments]
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path / 'run'}", "--mesh.cpu_devices=1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables,
            cwd=tmp_path,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield submit
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_steps(process, workdir, number):
    while not (workdir / "metrics.jsonl").exists() or len(lines(workdir)) < number:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def log(tmp_path):
    return (tmp_path / "job.log").read_text()


def trainer_of(workdir, *, task):
    """The training process of a task: the one whose command begins with the interpreter."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is not ours
            continue
        trains = command[0] == sys.executable.encode() and b"grain_jax.train" in command
        ours = f"--workdir={workdir}".encode() in command
        if trains and ours and f"SLURM_PROCID={task}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"task {task} has no training process")


def test_a_preempted_job_saves_queues_itself_and_ends_as_if_undisturbed(job, tmp_path):
    """SIGTERM to one of the nodes, which both save over; then the same job again, to its end."""
    process = job("--steps=60")
    wait_for_steps(process, tmp_path / "run", 2)
    second = int((tmp_path / "tasks").read_text().split()[1])
    os.kill(second, signal.SIGTERM)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output + log(tmp_path)
    assert (tmp_path / "job.statuses").read_text().split() == ["143", "0"], log(tmp_path)
    assert f"scontrol requeue {os.getpid()}" in calls(tmp_path / "bin")
    shown = log(tmp_path)
    assert "2 x cpu of 2 processes" in shown
    (saved,) = set(re.findall(r"Stopped; step (\d+) is saved", shown))
    assert f"resumed at step {saved}" in shown
    assert (tmp_path / "run" / "report.md").exists()
    steps = [line["step"] for line in lines(tmp_path / "run") if "loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == 60
    logs = tmp_path / "logs" / str(os.getpid())
    assert "step 60/60" in (logs / "process-0.log").read_text()
    assert "step 60/60" not in (logs / "process-1.log").read_text()


def test_a_killed_node_starts_the_step_again_in_the_same_job(job, tmp_path):
    process = job("--steps=40", "--checkpoint.save_interval_steps=4")
    workdir = tmp_path / "run"
    while not checkpoint.complete_steps(workdir / "checkpoints"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    log_of_second = tmp_path / "logs" / str(os.getpid()) / "process-1.log"
    assert log_of_second.exists()
    os.kill(trainer_of(workdir, task=1), signal.SIGKILL)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output + log(tmp_path)
    assert (tmp_path / "job.statuses").read_text().split() == ["0"], log(tmp_path)
    assert not [call for call in calls(tmp_path / "bin") if call.startswith("scontrol")]
    shown = log(tmp_path)
    assert "starts it again, number 1 of 3" in shown
    assert "resumed at step" in shown
    assert "step 40/40" in shown
    assert json.loads((workdir / "config.json").read_text())["steps"] == 40


def test_a_mistake_ends_before_a_job_is_submitted(job, tmp_path):
    process = job("--steps=10", "--batch_size=15")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "batch_size = 15" in output
    assert not calls(tmp_path / "bin")
