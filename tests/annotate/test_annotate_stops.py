"""`annotate describe` that is stopped, by whatever it is, and continues."""

import errno
import os
import resource
import signal
import time

import pytest
from chat_server import chat_server
from described import check, describe, names, start, wait_for_rows
from PIL import Image

pytest.importorskip("pyarrow")

from grain_jax.data.annotation_files import StageFiles, read_annotations

pytestmark = pytest.mark.multiprocess


@pytest.mark.parametrize("mode", ["401", "403"])
def test_an_expired_key_stops_and_the_command_continues(
    images, server, tmp_path, capsys, monkeypatch, mode
):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    option = "--api_key_env=MY_KEY"
    assert describe(images, tmp_path, server, option, "--shard=0/2") == 0
    server.behave(mode)
    assert describe(images, tmp_path, server, option) == 1
    error = capsys.readouterr().err
    assert f"refuses the key (HTTP {mode}" in error
    assert "MY_KEY" in error
    assert "very-secret" not in error
    assert not any(each.errors for each in read_annotations(tmp_path))
    server.behave("ok")
    assert describe(images, tmp_path, server, option) == 0
    check(images, tmp_path)


def test_a_dead_endpoint_stops_and_the_command_continues(images, tmp_path, capsys):
    with chat_server() as server:
        assert describe(images, tmp_path, server, "--shard=1/3") == 0
    assert describe(images, tmp_path, server) == 1
    error = capsys.readouterr().err
    assert "The endpoint does not answer: no connection" in error
    assert "it continues" in error
    with chat_server(server.port):
        assert describe(images, tmp_path, server) == 0
    check(images, tmp_path)


def test_a_full_disk_stops_and_the_command_continues(images, server, tmp_path, capsys):
    """A limit on the size of files stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))
    try:
        assert describe(images, tmp_path, server) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = " ".join(capsys.readouterr().err.split())
    assert os.strerror(errno.EFBIG) in error
    assert "The same command continues once it can write" in error
    kept = len(StageFiles(tmp_path, "describe"))
    assert 0 < kept < 12
    assert describe(images, tmp_path, server) == 0
    check(images, tmp_path)
    assert len(StageFiles(tmp_path, "describe")) == 12


def test_an_endpoint_that_only_fails_stops_without_rows(images, server, tmp_path, capsys):
    server.behave("503")
    assert describe(images, tmp_path, server) == 1
    assert "HTTP 503" in capsys.readouterr().err
    assert len(StageFiles(tmp_path, "describe")) == 0


def test_requests_that_are_all_refused_stop_the_run(server, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(60):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    server.behave("400")
    assert describe(folder, tmp_path / "ann", server) == 1
    error = capsys.readouterr().err
    assert "The last 20 requests failed" in error
    assert "status 400" in error
    assert len(read_annotations(tmp_path / "ann")) < 30


@pytest.mark.parametrize(("mode", "said"), [("404", "no model 'tiny'"), ("moved", "elsewhere")])
def test_a_wrong_address_or_model_is_said(images, server, tmp_path, capsys, mode, said):
    server.behave(mode)
    assert describe(images, tmp_path, server) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_loses_and_repeats_no_row(images, server, tmp_path, signal_number):
    """Its rows are those of an undisturbed run."""
    output = tmp_path / "ann"
    server.behave("ok", delay=0.15)
    process = start(images, output, server)
    wait_for_rows(output, 3, process)
    process.send_signal(signal_number)
    assert process.wait(30) == (-9 if signal_number == signal.SIGKILL else 130)
    process.communicate()
    files = StageFiles(output, "describe")
    committed = [files.row(i) for i in range(len(files))]
    assert 3 <= len(committed) < 12
    server.behave("ok")
    assert describe(images, output, server) == 0
    check(images, output)
    files = StageFiles(output, "describe")
    rows = [files.row(i) for i in range(len(files))]
    assert rows[: len(committed)] == committed
    assert sorted(row.image for row in rows) == names(images)


def test_two_runs_at_once_share_or_refuse(images, server, tmp_path, capsys):
    server.behave("ok", delay=0.3)
    process = start(images, tmp_path, server)
    deadline = time.monotonic() + 60
    while not (tmp_path / "describe" / ".lock-0-of-1").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    assert describe(images, tmp_path, server) == 2
    assert f"Another process ({process.pid} on " in capsys.readouterr().err
    server.behave("ok")
    assert process.wait(60) == 0
    process.communicate()
    check(images, tmp_path)
