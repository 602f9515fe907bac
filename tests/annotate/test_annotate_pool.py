"""`annotate describe` with several endpoints, each a process of its own that can be killed."""

import signal
import time
from pathlib import Path

import pytest
from chat_server import chat_server
from described import check, command, start, wait_for_rows, write_images

pytest.importorskip("pyarrow")

from grain_jax import annotate
from grain_jax.data.annotation_files import StageFiles

pytestmark = pytest.mark.multiprocess
COUNT = 40
QUICK = ("--retries=1", "--timeout=5", "--concurrency=2")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), COUNT)


def describe(images: Path, output: Path, *servers) -> int:
    return annotate.main([*command(images, output, *servers), *QUICK])


def check_rows(images: Path, output: Path) -> None:
    """A row for each image, none twice, each what the endpoints say of the image."""
    assert len(StageFiles(output, "describe")) == COUNT
    check(images, output)


def most_at_once(server, log_before: int = 0) -> int:
    """How many requests the server had at one moment."""
    return max(each["at_once"] for each in server.log()[log_before:])


def test_images_are_shared_and_each_endpoint_has_its_bound(images, tmp_path):
    with chat_server() as quick, chat_server() as slow:
        quick.behave("ok", delay=0.02)
        slow.behave("ok", delay=0.2)
        assert describe(images, tmp_path, quick, slow) == 0
        check_rows(images, tmp_path)
        asked = [server.log() for server in (quick, slow)]
        assert sum(map(len, asked)) == 2 * COUNT
        assert len(asked[0]) > 2 * len(asked[1]) > 0
        assert most_at_once(quick) == most_at_once(slow) == 2
        # The second question of an image is asked where the first was.
        for log in asked:
            assert [each["messages"] for each in log].count(2) == len(log) / 2


def test_an_endpoint_that_is_killed_is_put_aside_and_no_row_is_lost(images, tmp_path):
    with chat_server() as first, chat_server() as second:
        for server in (first, second):
            server.behave("ok", delay=0.1)
        process = start(images, tmp_path, first, second, options=QUICK)
        wait_for_rows(tmp_path, 8, process)
        second.stop()
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0
        assert error.count(f"{second.url} is put aside") == 1
        assert "with 1 of 2 endpoints left" in error
    check_rows(images, tmp_path)


@pytest.mark.slow
def test_the_run_stops_when_none_is_left_and_continues(images, tmp_path):
    with chat_server() as first, chat_server() as second:
        for server in (first, second):
            server.behave("ok", delay=0.1)
        process = start(images, tmp_path, first, second, options=QUICK)
        wait_for_rows(tmp_path, 4, process)
        for server in (first, second):
            server.stop()
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "None of the 2 endpoints is left" in error
        assert "no connection" in error
    kept = len(StageFiles(tmp_path, "describe"))
    assert 4 <= kept < COUNT
    with chat_server(first.port), chat_server(second.port):
        assert describe(images, tmp_path, first, second) == 0
    check_rows(images, tmp_path)


def test_a_key_that_one_endpoint_refuses_leaves_the_other(images, tmp_path, capsys):
    with chat_server() as first, chat_server() as second:
        second.behave("401")
        assert describe(images, tmp_path, first, second) == 0
        error = " ".join(capsys.readouterr().err.split())
        assert f"{second.url} refuses the key (HTTP 401" in error
    check_rows(images, tmp_path)


def test_keys_that_all_refuse_stop_the_run(images, tmp_path, capsys):
    with chat_server() as first, chat_server() as second:
        for server in (first, second):
            server.behave("401")
        assert describe(images, tmp_path, first, second) == 1
        assert len(first.log()) + len(second.log()) < 12
    error = " ".join(capsys.readouterr().err.split())
    assert "None of the 2 endpoints is left" in error
    assert len(StageFiles(tmp_path, "describe")) == 0


@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_waits_for_room(images, tmp_path):
    with chat_server() as first, chat_server() as second:
        first.behave("ok", delay=1.0)
        second.behave("ok", delay=0.05)
        process = start(images, tmp_path, first, second, options=QUICK)
        wait_for_rows(tmp_path, 3, process)
        second.stop()
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://a/v1,http://a/v1", "given twice"),
        ("http://a/v1,http://A/v1/", "'http://a/v1' and 'http://A/v1/' are one"),
        ("http://a/v1,http://[::1/v1", "Invalid IPv6 URL"),
        ("http://a:x/v1,http://b/v1", "Port could not be cast"),
        ("http://a/v1,", "commas between"),
        ("http://a/v1,b:8000", "'b:8000' should be an address"),
    ],
)
def test_a_wrong_list_is_named(images, tmp_path, capsys, endpoint, said):
    given = [f"--images={images}", f"--output={tmp_path / 'ann'}", "--model=tiny"]
    assert annotate.main(["describe", *given, f"--endpoint={endpoint}"]) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not (tmp_path / "ann").exists()
