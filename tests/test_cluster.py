"""Addresses of clusters, and machines that do not see what the others see."""

import contextlib
import http.server
import json
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

import grain_jax
from grain_jax import annotate, prepare
from grain_jax.cluster import (
    ClusterFailed,
    check_address,
    cluster_address,
    import_ray,
    look_at,
    size_of,
    wait_until_seen,
)


@pytest.mark.parametrize("text", ["auto", "head:6379", "10.0.0.1:6379", "[::1]:6379"])
def test_an_address_of_a_cluster(text):
    assert cluster_address(text) == text


@pytest.mark.parametrize("text", ["", "head", "head:", ":6379", "head:x", "head:70000", "Auto"])
def test_what_is_not_an_address_is_refused(text):
    with pytest.raises(ValueError, match="should be 'auto', or the address"):
        cluster_address(text)


def test_the_address_for_programs_outside_of_a_cluster_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"on a machine of the cluster, with --ray=auto or"):
        cluster_address("ray://head:10001")
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ValueError, match=r"RAY_ADDRESS: 'ray://head:10001' is for"):
        check_address("auto")


def test_an_empty_variable_is_as_none(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert check_address("auto") == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert check_address("auto") == "local"


@pytest.fixture
def silent():
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def web():
    """A web server."""
    with http.server.HTTPServer(("127.0.0.1", 0), QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def closed():
    """An address where nothing is."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("place", "said"),
    [("silent", "does not answer"), ("web", "not a Ray cluster"), ("closed", "does not answer")],
)
def test_an_address_without_a_cluster_is_an_error_in_seconds(place, said, request, monkeypatch):
    pytest.importorskip("ray")
    address = request.getfixturevalue(place)
    started = time.monotonic()
    with pytest.raises(ValueError, match=said):
        check_address(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=address):
        check_address("auto")
    assert time.monotonic() - started < 15


def test_an_address_of_ipv6_is_looked_for_without_its_brackets():
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"--ray=\[::1\]:9 does not answer") as raised:
        check_address("[::1]:9")
    assert "not known" not in str(raised.value)  # as of a name


def test_the_commands_refuse_an_address_without_a_cluster(tmp_path, closed, capsys):
    pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.png", "captions": ["one"]}))
    prepared = [f"--input={tmp_path / 'a.jsonl'}", f"--images={tmp_path}"]
    command = ["--from=jsonl", *prepared, f"--output={tmp_path / 'out'}", f"--ray={closed}"]
    assert prepare.main(command) == 2
    assert f"--ray={closed} does not answer" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
    asked = ["--endpoint=http://127.0.0.1:9/v1", "--model=m", f"--ray={closed}"]
    places = [f"--images={tmp_path}", f"--output={tmp_path / 'ann'}"]
    for options in ([], ["--dry_run"]):
        assert annotate.main(["describe", *places, *asked, *options]) == 2
        assert f"--ray={closed} does not answer" in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "ann").exists()


def test_options_of_a_cluster_without_one_are_refused(tmp_path, capsys):
    given = [f"--images={tmp_path}", f"--output={tmp_path / 'ann'}", "--model=m"]
    command = ["describe", *given, "--endpoint=http://127.0.0.1:9/v1"]
    for option, said in (
        ("--workers=2", "--workers is for --ray"),
        ("--num_gpus=1", "--num_gpus is for --ray"),
        ("--num_gpus=1.5", "a fraction such as 0.5, or a whole number"),
    ):
        assert annotate.main([*command, option]) == 2
        assert said in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert annotate.main([*command, "--ray=auto", "--num_gpus=1"]) == 2
    assert "put none there" in " ".join(capsys.readouterr().err.split())


def test_without_ray_the_way_to_install_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"\[ray\]"):
        import_ray()


def look(folder: Path, paths: dict[str, Path], *, token=None, version=grain_jax.__version__) -> str:
    sizes = {name: (str(path), size_of(path)) for name, path in paths.items()}
    with contextlib.chdir(folder):
        return look_at(str(folder), version, sizes, token)


def test_a_machine_that_sees_the_same_takes_part(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "seen").write_text("17")
    paths = {"--input": tmp_path / "a.txt", "--images": tmp_path, "pattern": Path("*.tar")}
    assert look(tmp_path, paths, token=(str(tmp_path / "seen"), "17")) == ""
    with contextlib.chdir(tmp_path):
        sizes = {"--input": ("a.txt", 3)}
        assert look_at(str(tmp_path), grain_jax.__version__, sizes, None) == ""


@pytest.mark.parametrize(("path", "size"), [("gone.txt", 3), ("a.txt", 4), ("a.txt", -1), (".", 3)])
def test_a_machine_that_sees_other_files_is_named(tmp_path, path, size):
    (tmp_path / "a.txt").write_text("abc")
    with contextlib.chdir(tmp_path):
        said = look_at(str(tmp_path), grain_jax.__version__, {"--input": (path, size)}, None)
    assert f"does not see --input={path}" in said


def test_a_machine_with_a_folder_of_its_own_is_named(tmp_path):
    (tmp_path / "seen").write_text("18")
    for path in (tmp_path / "seen", tmp_path / "other"):
        assert "does not see what this one writes" in look(tmp_path, {}, token=(str(path), "17"))


def test_a_machine_with_another_version_is_named(tmp_path):
    assert "and 0.0.1 was started" in look(tmp_path, {}, version="0.0.1")


def test_a_file_of_another_machine_is_waited_for(tmp_path):
    late = threading.Timer(0.3, (tmp_path / "late").touch)
    late.start()
    wait_until_seen(tmp_path / "late", 10.0)
    late.join()
    with pytest.raises(ClusterFailed, match="is not seen here"):
        wait_until_seen(tmp_path / "never", 0.3)
