"""One training at a time in a run folder of a bucket: a lease."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from places import HELPERS, REPOSITORY

import grain_jax.train
from grain_jax import buckets
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
    monkeypatch.setattr(bucket_lock, "LEASE_SECONDS", 120.0)  # a holder here has all the time
    return run_path("gs://bucket/run")


def elsewhere(**more) -> bytes:
    """The lock of a process on another machine."""
    return json.dumps({"pid": 4711, "host": "node3", "boot": "another", **more}).encode()


class Requests:
    """Answers those of a method with `status`, None as it is; a test can wait for them."""

    def __init__(self, storage, method, status=None):
        self.method, self.status, self._arrived = method, status, threading.Semaphore(0)
        storage.refuse = self

    def __call__(self, method, path):
        if method != self.method:
            return None
        self._arrived.release()
        return self.status

    def wait_for(self, count):
        for _ in range(count):
            assert self._arrived.acquire(timeout=60)


def until(happened) -> None:
    deadline = time.monotonic() + 60
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
        Requests(storage, "POST").wait_for(3)  # so that two have been answered
        assert storage.buckets["bucket"].objects[NAME].generation >= first + 2
        held.check()
        held.confirm()
    assert storage.names("bucket") == []


@pytest.mark.parametrize(("job", "status"), [("", 2), ("SLURM_JOB_ID", 75)])
def test_a_second_training_is_refused_and_leaves_the_first_alone(
    run, storage, monkeypatch, capsys, job, status
):
    """At a terminal it is a mistake; in a job that was queued again, its former start."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    if job:
        monkeypatch.setenv(job, "7")
    with locked(run, note=pytest.fail) as held:
        assert grain_jax.train.main([f"--config={CONFIG}", f"--workdir={run}"]) == status
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


def test_a_silent_holder_elsewhere_is_gone_after_the_lease(run, storage, monkeypatch):
    monkeypatch.setattr(bucket_lock, "LEASE_SECONDS", 0.5)
    storage.put("bucket", NAME, elsewhere())
    notes = []
    start = time.monotonic()
    with locked(run, note=notes.append):
        assert time.monotonic() - start >= bucket_lock.LEASE_SECONDS
        assert json.loads(storage.read("bucket", NAME))["pid"] == os.getpid()
    assert "has the lock of another process (4711 on node3)" in notes[0]


def test_of_two_that_take_over_one_wins(run, storage, monkeypatch):
    monkeypatch.setattr(bucket_lock, "LEASE_SECONDS", 0.5)
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
        failing = Requests(storage, "POST", 403)
        failing.wait_for(3)
        before = storage.buckets["bucket"].objects[NAME].generation
        Requests(storage, "POST").wait_for(2)
        assert storage.buckets["bucket"].objects[NAME].generation > before
        held.check()


def test_a_loss_that_cannot_be_read_at_once_is_found_later(run, storage):
    """The bucket says that the lock is another's, and is out of reach when asked whose."""
    with locked(run, note=pytest.fail) as held:
        failing = Requests(storage, "GET", 503)
        storage.put("bucket", NAME, elsewhere())
        failing.wait_for(1)
        sent = len(storage.sent)  # from here on the holder cannot be read, so it is not lost yet
        until(lambda: any(request.method == "POST" for request in storage.sent[sent:]))
        assert not is_lost(held)
        storage.refuse = lambda method, path: None
        until(lambda: is_lost(held))


@pytest.fixture
def unrenewed(run, monkeypatch):
    """A lease whose thread is suspended: nothing is renewed for longer than it is certain."""
    monkeypatch.setattr(bucket_lock, "RENEW_SECONDS", 600.0)
    monkeypatch.setattr(bucket_lock, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 0.2)
    with locked(run, note=pytest.fail) as held:
        yield held


def test_before_a_write_a_lease_that_may_have_ended_is_renewed(unrenewed, storage):
    before = storage.buckets["bucket"].objects[NAME].generation
    unrenewed.confirm()
    assert storage.buckets["bucket"].objects[NAME].generation > before


def test_before_a_write_a_lost_lease_is_found(unrenewed, storage):
    storage.put("bucket", NAME, elsewhere())
    with pytest.raises(LockLost, match=r"another process \(4711 on node3\) has taken"):
        unrenewed.confirm()


def test_nothing_is_written_while_the_lease_cannot_be_confirmed(unrenewed, storage):
    storage.refuse = lambda method, path: 503
    with pytest.raises(OSError, match="Cloud Storage does not do what it is asked to"):
        unrenewed.confirm()
    storage.refuse = lambda method, path: None
    unrenewed.confirm()  # and nobody else has come


def test_a_fresh_lease_takes_no_request(run, storage, monkeypatch):
    monkeypatch.setattr(bucket_lock, "RENEW_SECONDS", 600.0)
    with locked(run, note=pytest.fail) as held:
        storage.sent.clear()
        held.confirm()
        assert storage.sent == []
