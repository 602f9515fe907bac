"""One training at a time in a run folder of a bucket: a lease."""

import json
import os
import subprocess
import sys
import time

import pytest
from places import HELPERS, REPOSITORY

import grain_jax.train
from grain_jax.paths import run_path
from grain_jax.training import bucket_lock
from grain_jax.training.bucket_lock import FILE, LockLost
from grain_jax.training.lock import locked

CONFIG = HELPERS / "tiny_world.py"
NAME = f"run/{FILE}"
HOLD = "import sys, time; from grain_jax.training.lock import locked\n"
HOLD += "from grain_jax.paths import run_path\n"
HOLD += "with locked(run_path(sys.argv[1]), note=print): print('held', flush=True); time.sleep(600)"


@pytest.fixture
def run(storage, monkeypatch):
    monkeypatch.setattr(bucket_lock, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(bucket_lock, "LEASE_SECONDS", 1.0)
    return run_path("gs://bucket/run")


def elsewhere(**more) -> bytes:
    """The lock of a process on another machine."""
    return json.dumps({"pid": 4711, "host": "node3", "boot": "another", **more}).encode()


def until(happened) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_lost(held) -> bool:
    try:
        held.check()
    except LockLost:
        return True
    return False


def test_a_lock_is_held_renewed_and_removed(run, storage):
    with locked(run, note=pytest.fail) as held:
        first = storage.buckets["bucket"].objects[NAME].generation
        assert json.loads(storage.read("bucket", NAME))["pid"] == os.getpid()
        until(lambda: storage.buckets["bucket"].objects[NAME].generation > first + 1)
        held.check()
    assert storage.names("bucket") == []


def test_a_second_training_is_refused_and_leaves_the_first_alone(run, storage, capsys):
    with locked(run, note=pytest.fail) as held:
        assert grain_jax.train.main([f"--config={CONFIG}", f"--workdir={run}"]) == 2
        error = capsys.readouterr().err
        assert f"Another process ({os.getpid()} on " in error
        assert "trains in gs://bucket/run. Let it finish" in error
        held.check()
        assert storage.names("bucket") == [NAME]


def test_a_killed_process_of_this_machine_holds_nothing(run, storage):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.communicate()
    assert json.loads(storage.read("bucket", NAME))["pid"] == holder.pid
    with locked(run, note=pytest.fail):  # at once, without the lease
        assert json.loads(storage.read("bucket", NAME))["pid"] == os.getpid()


def test_a_silent_holder_elsewhere_is_gone_after_the_lease(run, storage):
    storage.put("bucket", NAME, elsewhere())
    notes = []
    start = time.monotonic()
    with locked(run, note=notes.append):
        assert time.monotonic() - start >= bucket_lock.LEASE_SECONDS
        assert json.loads(storage.read("bucket", NAME))["pid"] == os.getpid()
    assert "has the lock of another process (4711 on node3)" in notes[0]


def test_of_two_that_take_over_one_wins(run, storage):
    storage.put("bucket", NAME, elsewhere())
    storage.refuse = lambda method, path: (
        storage.put("bucket", NAME, elsewhere(pid=4712)) and None
        if "upload" in path and "ifGenerationMatch" in path
        else None
    )
    with pytest.raises(ValueError, match=r"Another process \(4712 on node3\) trains"):
        locked(run, note=lambda _: None).__enter__()


def test_a_lock_that_was_taken_over_is_lost(run, storage):
    with locked(run, note=pytest.fail) as held:
        storage.put("bucket", NAME, elsewhere())
        until(lambda: is_lost(held))
        with pytest.raises(LockLost, match=r"another process \(4711 on node3\) has taken"):
            held.check()
    assert storage.read("bucket", NAME) == elsewhere()  # the other's is left alone


def test_a_service_that_fails_does_not_lose_the_lock(run, storage):
    with locked(run, note=pytest.fail) as held:
        storage.refuse = lambda method, path: 403
        storage.sent.clear()
        until(lambda: len(storage.sent) > 2)
        storage.refuse = lambda method, path: None
        before = storage.buckets["bucket"].objects[NAME].generation
        until(lambda: storage.buckets["bucket"].objects[NAME].generation > before)
        held.check()
