"""The small files of a run, on a disk and in a bucket."""

import json

import pytest
from tiny_run import tiny_config

from grain_jax import buckets
from grain_jax.paths import run_path
from grain_jax.training import run_files
from grain_jax.training.bucket_lock import LockLost
from grain_jax.training.metrics import FILE, MetricsLog
from grain_jax.training.run_files import RunFiles


def test_on_a_disk_they_are_where_they_belong(tmp_path):
    files = RunFiles(tmp_path)
    assert files.folder == tmp_path
    assert files.address(tmp_path / "report.md") == tmp_path / "report.md"
    files.publish(wait=True)
    files.close()
    assert tmp_path.is_dir()


def test_changes_are_written_whole(storage):
    run = run_path("gs://bucket/run")
    files = RunFiles(run)
    (files.folder / "metrics.jsonl").write_text("1\n")
    (files.folder / "tensorboard").mkdir()
    (files.folder / "tensorboard" / "events").write_bytes(b"\0")
    (files.folder / "wandb").mkdir()
    (files.folder / "wandb" / "log").write_text("its service has it")
    assert str(files.address(files.folder / "report.md")) == "gs://bucket/run/report.md"
    files.publish()
    assert storage.names("bucket") == []  # the interval has not passed
    files.publish(wait=True)
    assert storage.names("bucket") == ["run/metrics.jsonl", "run/tensorboard/events"]
    storage.sent.clear()
    files.publish(wait=True)
    assert storage.sent == []  # nothing has changed
    with (files.folder / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    local = files.folder
    files.close()
    assert storage.read("bucket", "run/metrics.jsonl") == b"1\n2\n"
    assert not local.exists()


def test_the_next_start_continues_them_and_removes_what_it_removed(storage):
    storage.put("bucket", "run/metrics.jsonl", b"1\n")
    storage.put("bucket", "run/report.md", b"of a shorter run")
    storage.put("bucket", "run/.lock", b"{}")
    storage.put("bucket", "run/checkpoints/4/params/d", b"not fetched")
    files = RunFiles(run_path("gs://bucket/run"))
    assert sorted(path.name for path in files.folder.iterdir()) == ["metrics.jsonl", "report.md"]
    (files.folder / "report.md").unlink()
    files.close()
    left = [".lock", "checkpoints/4/params/d", "metrics.jsonl"]
    assert storage.names("bucket") == [f"run/{name}" for name in left]
    other = RunFiles(run_path("gs://bucket/run"), fetch=False)  # of a process that is not the first
    assert list(other.folder.iterdir()) == []
    other.close()
    assert storage.names("bucket") == [f"run/{name}" for name in left]


def test_in_the_background_a_failure_is_tried_again(storage, monkeypatch):
    monkeypatch.setattr(run_files, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 0.2)
    files = RunFiles(run_path("gs://bucket/run"))
    (files.folder / "a").write_text("a")
    storage.refuse = lambda method, path: 503
    files.publish()
    with pytest.raises(
        OSError, match="Cloud Storage does not do what it is asked to for gs://bucket/run/a"
    ):
        files.publish(wait=True)
    assert storage.names("bucket") == []
    storage.refuse = lambda method, path: None
    files.publish(wait=True)
    assert storage.read("bucket", "run/a") == b"a"
    files.close()


def test_nothing_is_written_once_the_lock_is_lost(storage):
    lost = []

    def check():
        if lost:
            raise LockLost("gone")

    files = RunFiles(run_path("gs://bucket/run"), check=check)
    (files.folder / "a").write_text("a")
    lost.append(True)
    with pytest.raises(LockLost):
        files.publish()
    files.close()
    assert storage.names("bucket") == []


def test_a_lock_that_is_lost_unnoticed_is_found_before_a_write(storage):
    """Also before a checkpoint at which no file has changed."""

    def confirm():
        raise LockLost("gone")

    files = RunFiles(run_path("gs://bucket/run"), confirm=confirm)
    with pytest.raises(LockLost):
        files.publish(wait=True)
    (files.folder / "a").write_text("a")
    files.close()
    assert storage.names("bucket") == []


def test_a_log_in_a_bucket_that_was_cut_is_continued(storage):
    """A kill between two writings leaves whole lines; one that was copied there may be cut."""
    run, config = run_path("gs://bucket/run"), tiny_config()
    config.logging.tensorboard = False
    storage.put("bucket", f"run/{FILE}", b'{"step": 2, "loss": 1.0}\n{"step": 4, "lo\xe2\x80')
    files = RunFiles(run)
    log = MetricsLog(files.folder, config, start_step=2)
    log.write(4, {"loss": 0.5})
    log.sync()
    files.publish(wait=True)
    lines = storage.read("bucket", f"run/{FILE}").decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 2, "loss": 1.0},
        {"step": 4, "loss": 0.5},
    ]
    log.close()
    files.close()
