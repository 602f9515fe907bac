"""Addresses in buckets, and what is said where a bucket cannot be used."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY
from storage_server import forget_client

import grain_jax
import grain_jax.evaluate
import grain_jax.train
from grain_jax import buckets
from grain_jax.paths import absolute, run_path


def said(capsys) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.split())


def test_a_path_of_this_machine_stays_one(tmp_path):
    assert run_path(str(tmp_path)) == tmp_path
    assert not buckets.in_bucket(tmp_path)
    assert absolute(Path("runs")) == Path("runs").absolute()


@pytest.mark.usefixtures("storage")
def test_an_address_is_a_path_of_etils():
    path = run_path("gs://bucket/runs/first/")
    assert str(path / "report.md") == "gs://bucket/runs/first/report.md"
    assert absolute(path) == path
    assert buckets.split(path) == ("bucket", "runs/first")
    assert run_path(path) == path  # of one who has it already


@pytest.mark.parametrize("address", ["gs://bucket", "gs://bucket/", "gs:///run", "gs://b//run"])
def test_an_address_without_a_folder_is_refused(address):
    with pytest.raises(ValueError, match="does not name a folder in a bucket; expected gs://"):
        run_path(address)


def test_other_stores_are_refused():
    with pytest.raises(ValueError, match="'s3://bucket/run' is an address"):
        grain_jax.load("s3://bucket/run")


def test_without_the_extra_the_command_that_installs_it_is_named():
    """In a process of its own, as what is imported once stays."""
    code = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from grain_jax.paths import run_path\n"
        "try: run_path('gs://bucket/run')\n"
        "except ValueError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert said.stdout.startswith("gs://... takes gcsfs, which is not installed ("), said.stderr
    assert "[gcs]'" in said.stdout


def test_files_are_written_read_listed_and_removed(storage):
    run = run_path("gs://bucket/run")
    assert buckets.files(run) == []
    data = os.urandom(100_000) + b"\r\n--"
    buckets.write(run / "a.bin", data)
    buckets.write(run / "deeper" / "b.txt", b"b")
    assert buckets.read(run / "a.bin") == data
    assert buckets.files(run) == ["a.bin"]
    buckets.remove(run / "a.bin")
    buckets.remove(run / "a.bin")
    assert storage.names("bucket") == ["run/deeper/b.txt"]
    with pytest.raises(FileNotFoundError, match=r"There is no gs://bucket/run/a\.bin"):
        buckets.read(run / "a.bin")


@pytest.mark.parametrize("command", ["train", "check", "evaluate", "load"])
def test_a_bucket_that_does_not_exist_is_named(storage, command, capsys):
    address = "gs://no-such-bucket/run"
    if command == "load":
        with pytest.raises(ValueError, match="There is no bucket 'no-such-bucket', in gs://"):
            grain_jax.load(address)
        return
    if command == "evaluate":
        assert grain_jax.evaluate.main([f"--checkpoint={address}"]) == 2
    else:
        check = ["--check"] if command == "check" else []
        assert grain_jax.train.main(["--config=demo:smoke", f"--workdir={address}", *check]) == 2
    printed = said(capsys)
    assert "There is no bucket 'no-such-bucket', in gs://no-such-bucket/run" in printed
    assert "gcloud storage buckets create gs://no-such-bucket" in printed


def test_an_account_that_is_not_known_is_one_sentence(storage, capsys):
    storage.refuse = lambda method, path: 401
    assert grain_jax.train.main(["--config=demo:smoke", "--workdir=gs://bucket/run"]) == 2
    printed = said(capsys)
    assert "Cloud Storage takes an account, and this process has none" in printed
    assert "`gcloud auth application-default login`" in printed


def test_denied_access_is_one_sentence(storage, capsys):
    storage.refuse = lambda method, path: 403
    assert grain_jax.train.main(["--config=demo:smoke", "--workdir=gs://bucket/run"]) == 2
    printed = said(capsys)
    assert "no access to gs://bucket/run" in printed
    assert "give it roles/storage.objectUser on the bucket 'bucket'" in printed
    with pytest.raises(ValueError, match="no access to gs://bucket/run"):
        grain_jax.load("gs://bucket/run")


def test_a_bucket_that_may_only_be_read_is_no_run_folder(storage, capsys):
    storage.refuse = lambda method, path: 403 if method != "GET" else None
    assert grain_jax.train.main(["--config=demo:smoke", "--workdir=gs://bucket/run"]) == 2
    assert "no access to gs://bucket/run" in said(capsys)


def test_a_network_that_is_lost_is_one_sentence(storage, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(buckets, "FIRST_SECONDS", 1.0)
    forget_client()
    assert grain_jax.train.main(["--config=demo:smoke", "--workdir=gs://bucket/run"]) == 75
    assert "Cloud Storage cannot be reached for gs://bucket/run" in said(capsys)
    with pytest.raises(OSError, match="Cloud Storage cannot be reached"):
        grain_jax.load("gs://bucket/run")


def test_a_service_that_fails_for_a_moment_is_asked_again(storage):
    failures = iter([503, 429, 500])
    storage.refuse = lambda method, path: next(failures, None)
    buckets.write(run_path("gs://bucket/run") / "a.txt", b"a")
    assert storage.read("bucket", "run/a.txt") == b"a"


@pytest.mark.usefixtures("storage")
def test_a_folder_without_a_run_says_so():
    with pytest.raises(ValueError, match="no run folder with a complete checkpoint in gs://bucket"):
        grain_jax.load("gs://bucket/run")
