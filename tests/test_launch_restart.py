"""The launchers start again what was preempted, hung or killed, and no mistake of a user."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from stub_commands import LAUNCH, calls, launch, stubs

from grain_jax.command_line import ExitStatus
from grain_jax.parallel import processes

# Ends its nth start as the nth word of ENDS says: "75", "kill", or of two processes "2,75".
TRAINER = """
import os, signal, sys
number = os.environ.get("SLURM_PROCID", "0")
for argument in sys.argv:
    if argument.startswith("--process_id="):
        number = argument.partition("=")[2]
name = f"starts-{number}"
start = len(open(name).read()) if os.path.exists(name) else 0
open(name, "a").write("x")
print("process", number, "start", start, *sys.argv[1:], flush=True)
end = os.environ["ENDS"].split()[start].split(",")
end = end[int(number) % len(end)]
if end == "frozen":
    os.kill(os.getpid(), signal.SIGSTOP)
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(end))
"""
SRUN = """
shift
pids=()
for ((i = 0; i < ${TASKS:-2}; i++)); do
  SLURM_PROCID=$i "$@" & pids+=($!)
done
code=0
for pid in "${pids[@]}"; do
  wait "$pid"; one=$?; if ((one > code)); then code=$one; fi
done
exit $code
"""
SBATCH = """
cat > job.sh
SLURM_JOB_ID=7 bash job.sh > slurm-7.log 2>&1
echo $? > job.status
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    return tmp_path


@pytest.fixture
def run(folder):
    bin = stubs(folder / "bin", srun=SRUN, sbatch=SBATCH)

    def run_launcher(script, *arguments, **environment):
        more = {"PYTHONPATH": str(folder), "MODULE": "trainer", **environment}
        return launch(script, *arguments, bin=bin, cwd=folder, **more)

    return run_launcher


def starts(folder, number=0):
    return len((folder / f"starts-{number}").read_text())


def test_the_status_is_the_same_in_all_places():
    common = (LAUNCH / "lib" / "common.sh").read_text()
    (shell,) = re.findall(r"^AGAIN=(\d+)", common, re.MULTILINE)
    assert int(shell) == ExitStatus.AGAIN == processes.AGAIN
    (saved,) = re.findall(r"^SAVED=(\d+)", common, re.MULTILINE)
    assert int(saved) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        ("0 0", "0"),
        ("0 75", "again"),
        ("143 143", "again"),
        ("137 75", "again"),
        ("134 139", "again"),
        ("75 2", "2"),  # a mistake of one outweighs what it did to the others
        ("1 137 2", "2"),
        ("137 1", "1"),
        ("130 75", "130"),
        ("127 75", "127"),  # no such command
    ],
)
def test_statuses_of_all_processes_have_one_meaning(statuses, verdict):
    code = f". {LAUNCH}/lib/common.sh; judge {statuses}; echo $verdict"
    printed = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=20)
    assert printed.stdout.strip() == verdict


def test_a_signal_does_not_replace_the_status_of_a_process_that_ends_at_once():
    code = f"""
        . {LAUNCH}/lib/common.sh
        sleep 20 & child=$!
        trap 'kill -KILL $child; sleep 0.5' USR1  # gone before the shell looks for it again
        (sleep 0.5; kill -USR1 $$) &
        wait_for $child
        echo "$status"
    """
    printed = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=20)
    assert printed.stdout.strip() == "137"


@pytest.mark.parametrize(
    ("ends", "status", "started"),
    [
        ("75 kill 143 0", 0, 4),
        ("2", 2, 1),
        ("1", 1, 1),
        ("75 75 75 75", 75, 4),  # RETRIES in a row
    ],
)
def test_one_process_is_started_again(folder, run, ends, status, started):
    result = run("gpus.sh", "all", "--a=b c", ENDS=ends)
    assert result.returncode == status, result.stderr
    assert starts(folder) == started
    assert result.stdout.count("--a=b c") == started
    assert result.stderr.count("starts it again") == started - 1
    log = (folder / "logs" / "process-0.log").read_text()
    assert [f"process 0 start {start}" in log for start in range(started)] == [True] * started


@pytest.mark.slow
def test_nothing_is_started_again_where_retries_are_0(folder, run):
    assert run("gpus.sh", "all", ENDS="75 0", RETRIES="0").returncode == 75
    assert starts(folder) == 1
    wrong = run("gpus.sh", "all", ENDS="0", RETRIES="many")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "RETRIES=many" in wrong.stderr


def test_processes_of_a_machine_are_started_again_together(folder, run):
    result = run("local.sh", "2", ENDS="75,kill 0,75 0,0")
    assert result.returncode == 0, result.stderr
    assert (starts(folder, 0), starts(folder, 1)) == (3, 3)
    assert "process 1 start" not in result.stdout  # the screen is the lead's
    assert "process 0 start 2" in result.stdout
    log = (folder / "logs" / "process-1.log").read_text()
    assert [f"process 1 start {start}" in log for start in range(3)] == [True] * 3
    assert (folder / "logs" / "process-1.status").read_text() == "0\n"
    assert "Process 1 ended with exit status 137" in result.stderr


@pytest.mark.slow
def test_a_process_that_stands_still_is_killed_after_another_has_failed(folder, run):
    result = run("local.sh", "2", ENDS="75,frozen 0,0", GRACE="1")
    assert result.returncode == 0, result.stderr
    assert "process 1 has not ended 1 s after another one failed, and is killed" in result.stderr
    assert "Process 1 ended with exit status 137" in result.stderr
    assert (starts(folder, 0), starts(folder, 1)) == (2, 2)
    assert run("local.sh", "2", ENDS="0", GRACE="soon").returncode == 2


@pytest.mark.slow
def test_the_mistake_of_one_process_is_not_repeated(folder, run):
    result = run("local.sh", "2", ENDS="75,2 0,0")
    assert result.returncode == 2
    assert (starts(folder, 0), starts(folder, 1)) == (1, 1)
    assert "process 1 start 0" in result.stderr  # its last lines, as they say what is wrong


def test_a_slurm_job_starts_its_step_again(folder, run):
    result = run("slurm.sh", "2", "1", "--a=b c", ENDS="75,kill 0,0", LOGS="my logs")
    assert result.returncode == 0, result.stderr
    assert (folder / "job.status").read_text() == "0\n"
    assert (starts(folder, 0), starts(folder, 1)) == (2, 2)
    logs = folder / "my logs" / "7"
    assert "start 1 --distributed --a=b c" in (logs / "process-1.log").read_text()
    screen = (folder / "slurm-7.log").read_text()
    assert "process 0 start 1" in screen
    assert "process 1 start 1" not in screen
    assert not [call for call in calls(folder / "bin") if call.startswith("scontrol")]


@pytest.mark.slow
def test_a_preempted_slurm_job_queues_itself_again(folder, run):
    run("slurm.sh", "2", "1", ENDS="143,143")
    assert (folder / "job.status").read_text() == "143\n"
    assert "scontrol requeue 7" in calls(folder / "bin")
    assert starts(folder) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "status"), [("2,75", 2), ("143,2", 2), ("kill,1", 1)])
def test_a_slurm_job_with_a_mistake_ends(folder, run, ends, status):
    run("slurm.sh", "2", "1", ENDS=ends)
    assert (folder / "job.status").read_text() == f"{status}\n"
    assert not [call for call in calls(folder / "bin") if call.startswith("scontrol")]
    assert starts(folder) == 1


WAITING = """
import os, signal, sys, time
def stop(number, frame):
    print("stopped by", number, flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("waits", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "argument", "sent", "status"),
    [
        ("gpus.sh", "all", signal.SIGTERM, 143),
        ("gpus.sh", "all", signal.SIGINT, 130),
        ("gpus.sh", "all", signal.SIGHUP, 143),  # its terminal was closed: it saves
        ("local.sh", "2", signal.SIGTERM, 143),
        ("local.sh", "2", signal.SIGINT, 143),
    ],
)
def test_a_signal_to_the_launcher_stops_for_good(folder, script, argument, sent, status):
    (folder / "waiting.py").write_text(WAITING)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHON": sys.executable}
    process = subprocess.Popen(
        ["bash", str(LAUNCH / script), argument],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**environment, "MODULE": "waiting"},
    )
    shown = ""
    while "waits" not in shown:
        shown += process.stdout.readline()
    last = folder / "logs" / ("process-1.log" if script == "local.sh" else "process-0.log")
    deadline = time.monotonic() + 60
    while not last.exists() or "waits" not in last.read_text():  # the other process too
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, shown + output
    assert "stopped by" in output
    assert "again" not in output
