"""A run that stands still is reported with the stacks of all threads, and ends for a launcher."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import tiny_config
from training_process import CLIP, ENDLESS, environment, lines, run
from two_processes import launch_two

import grain_jax.train
from grain_jax.command_line import ExitStatus
from grain_jax.parallel import processes
from grain_jax.trainer.watchdog import SLOW_FACTOR, Watchdog, watchdog
from grain_jax.training import checkpoint

pytestmark = pytest.mark.multiprocess

# A loop that hangs as its argument says, watched with a limit of 0.3 seconds (2 where it is slow),
# until the watchdog has said what is waited for.
LOOP = """
import ctypes, sys, threading, time
from grain_jax.trainer.watchdog import Watchdog

def a_loader_that_blocks():
    threading.Event().wait()

class Heard:
    def __init__(self):
        self.events = {"no progress": threading.Event(), "it moves again": threading.Event()}
    def write(self, text):
        sys.stderr.write(text)
        for words, event in self.events.items():
            if words in text:
                event.set()
    def flush(self):
        sys.stderr.flush()
    def fileno(self):
        return 2
    def wait(self, words):
        assert self.events[words].wait(30), words

threading.Thread(target=a_loader_that_blocks, daemon=True).start()
how, log = sys.argv[1:]
heard = Heard()
limit = 2 if how == "slow" else 0.3
with Watchdog(
    limit, end=how in ("exit", "endless"), name=" of process 3", stream=heard
) as watching:
    watching.at(2, "computing", slow=how == "slow", endless=how == "endless")
    if how == "lock":  # keeps the interpreter's lock, and so every thread
        command = f"timeout 30 sh -c 'until grep -q module {log}; do sleep .1; done'"
        ctypes.PyDLL(None).system(command.encode())
    elif how == "slow":
        time.sleep(2.5)
    elif how == "exit":
        time.sleep(60)
    else:
        heard.wait("no progress")
        watching.at(3, "ending")
        heard.wait("it moves again")
print("done")
"""


@pytest.fixture
def loop(tmp_path):
    """Runs the loop: its status, output and what it said."""

    def run_loop(how):
        log = tmp_path / "log"
        with log.open("w") as error:
            done = subprocess.run(
                [sys.executable, "-c", LOOP, how, str(log)],
                stdout=subprocess.PIPE,
                stderr=error,
                text=True,
                timeout=100,
                env=environment(),
            )
        return done.returncode, done.stdout, log.read_text()

    return run_loop


def test_a_hung_step_ends_the_process_with_a_status_that_launchers_repeat(loop):
    status, _, error = loop("exit")
    assert status == ExitStatus.AGAIN, error
    assert re.search(
        r"Watchdog of process 3: no progress for \d seconds, in step 2, computing", error
    )
    assert "ends with exit status 75" in error
    assert "in a_loader_that_blocks" in error  # every thread's stack
    assert re.search(r'File "<string>", line 37 in <module>', error)  # and the loop's


@pytest.mark.parametrize("how", ["report", pytest.param("endless", marks=pytest.mark.slow)])
def test_one_that_only_reports_goes_on_and_says_so(loop, how):
    status, output, error = loop(how)
    assert (status, output) == (0, "done\n"), error
    assert "no progress for" in error
    assert "it moves again, at step" in error
    assert "exit status" not in error


@pytest.mark.slow
def test_what_is_known_to_be_slow_has_longer(loop):
    assert SLOW_FACTOR * 2 > 2.5 > 2
    assert loop("slow") == (0, "done\n", "")


@pytest.mark.slow
def test_stacks_come_even_where_no_thread_of_python_runs(loop):
    status, output, error = loop("lock")
    assert (status, output) == (0, "done\n"), error
    assert "Timeout" in error  # faulthandler's own words
    assert re.search(r'File "<string>", line 33 in <module>', error)


@pytest.mark.parametrize(
    ("action", "many", "ends"),
    [
        ("auto", False, False),
        ("auto", True, True),
        ("exit", False, True),
        ("report", True, False),
    ],
)
def test_the_settings_decide_what_follows(monkeypatch, capfd, action, many, ends):
    monkeypatch.setattr(processes, "are_many", lambda: many)
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    config = tiny_config().logging
    config.hang_timeout_seconds, config.hang_action = 0.1, action
    with watchdog(config) as watching:
        watching.at(1, "computing")
        said, deadline = "", time.monotonic() + 30
        while said.count("no progress") < 2:  # after the first it has ended the process, or not
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
            said += capfd.readouterr().err
    assert set(left) == ({75} if ends else set())


def test_a_start_that_hangs_is_reported(tmp_path, monkeypatch, capfd):
    """Restoring, and the first that all processes do together."""

    def hang(*given, **more):
        time.sleep(0.1 * SLOW_FACTOR + 0.4)
        raise ValueError("it goes on")

    monkeypatch.setattr(grain_jax.train, "set_up", hang)
    arguments = [*CLIP, "--logging.hang_timeout_seconds=0.1", f"--workdir={tmp_path / 'run'}"]
    assert grain_jax.train.main(arguments) == 2
    error = capfd.readouterr().err
    assert re.search(r"Watchdog: no progress for \d seconds, in step 0, setting up", error)


def test_a_limit_of_0_watches_nothing():
    stream = io.StringIO()
    with Watchdog(0, end=True, stream=stream) as watching:
        watching.at(1, "computing")
        time.sleep(0.1)
    assert stream.getvalue() == ""


@pytest.mark.slow
def test_a_run_whose_loop_hangs_ends_and_resumes(tmp_path):
    workdir = tmp_path / "run"
    arguments = ("--logging.hang_timeout_seconds=6", "--logging.hang_action=exit")
    more = ("--steps=12", "--checkpoint.save_interval_steps=4")
    status, output = run(workdir, *more, *arguments, base=CLIP, TRAIN_HANG_AT="10")
    assert status == ExitStatus.AGAIN, output
    assert "in step 10, waiting for its result" in output
    assert "in write_and_hang" in output
    assert checkpoint.complete_steps(workdir / "checkpoints")[-1] == 8
    status, output = run(workdir, *more, *arguments, base=CLIP)
    assert status == 0, output
    assert "resumed at step 8" in output
    assert lines(workdir)[-1]["step"] == 12


@pytest.mark.slow
def test_a_process_that_stands_still_is_reported_by_the_other(tmp_path):
    """SIGSTOP to one of two: the other waits for it in a step, says so, and ends."""
    workdir = tmp_path / "two"
    arguments = ("--logging.hang_timeout_seconds=10", "--logging.log_interval_steps=1")
    process = launch_two(workdir, *ENDLESS, *arguments, base=CLIP, RETRIES="0", GRACE="1")
    while not (workdir / "metrics.jsonl").exists() or len(lines(workdir)) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    second = trainer_of(workdir, "--process_id=1")
    os.kill(second, signal.SIGSTOP)
    status = tmp_path / "logs" / "process-0.status"
    begun = time.monotonic()
    while not status.exists():
        assert time.monotonic() - begun < 60
        time.sleep(0.1)
    output, _ = process.communicate(timeout=60)  # the launcher kills the second
    assert status.read_text() == f"{ExitStatus.AGAIN}\n"
    assert process.returncode in (ExitStatus.AGAIN, 128 + signal.SIGKILL), output
    assert re.search(r"Watchdog of process 0: no progress for 1\d seconds, in step \d+", output)
    assert "in train" in output  # the stack of the loop
    assert "resumes from the newest checkpoint" in output


def trainer_of(workdir, argument):
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        ours = f"--workdir={workdir}".encode() in command and argument.encode() in command
        if ours and command[0] == sys.executable.encode():
            return int(folder.name)
    raise AssertionError(argument)


def test_a_stream_without_a_file_gets_the_stacks_too():
    """As of a notebook, or of a program that collects what is printed."""
    stream = io.StringIO()
    with Watchdog(0.05, end=False, stream=stream) as watching:
        watching.at(7, "computing")
        for _ in range(200):
            if "test_a_stream_without_a_file" in stream.getvalue():
                break
            time.sleep(0.05)
    assert "in step 7, computing" in stream.getvalue()
    assert "test_a_stream_without_a_file" in stream.getvalue()
