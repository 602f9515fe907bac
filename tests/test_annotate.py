"""`python -m grain_jax.annotate describe` against an endpoint in another process."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chat_server import EXPECTED_TOKENS, caption_of, chat_server, features_of
from PIL import Image
from places import REPOSITORY

pytest.importorskip("pyarrow")

from grain_jax import annotate
from grain_jax.annotation.images import as_jpeg, load_image
from grain_jax.data.annotation_files import StageFiles, read_annotations
from grain_jax.data.transforms import decode_image

pytestmark = pytest.mark.multiprocess

QUICK = ("--retries=1", "--timeout=5", "--concurrency=4")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve images, one of them in a subfolder, and a file that is not one."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "inner").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
        name = f"inner/{number:02d}.png" if number == 11 else f"{number:02d}.png"
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def shared_server():
    with chat_server() as server:
        yield server


@pytest.fixture
def server(shared_server):
    shared_server.behave("ok")
    return shared_server


def describe(images: Path, output: Path, server, *options: str, quick=QUICK) -> int:
    command = ["describe", f"--images={images}", f"--output={output}", f"--endpoint={server.url}"]
    return annotate.main([*command, "--model=tiny", *quick, *options])


def sent(images: Path, name: str) -> bytes:
    """The JPEG that the endpoint gets of a small image."""
    return as_jpeg(load_image(name, images), 768)


def names(images: Path) -> list[str]:
    return sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))


def check(images: Path, output: Path, *, failed: tuple[str, ...] = ()) -> None:
    """Every image is described as the endpoint describes it, but for those that failed."""
    found = {each.image: each for each in read_annotations(output)}
    assert sorted(found) == names(images)
    for name, each in found.items():
        if name in failed:
            assert set(each.errors) == {"describe"}
            continue
        assert not each.errors, name
        assert each.captions == (caption_of(sent(images, name)),)
        assert each.primary_subject == "mark"
        assert each.descriptions == tuple(features_of(sent(images, name)))


def test_every_image_is_described_once(images, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRAIN_JAX_API_KEY", "sk-very-secret")
    before = len(server.log())
    assert describe(images, tmp_path, server, "--price_prompt=10", "--price_completion=50") == 0
    check(images, tmp_path)
    asked = server.log()[before:]
    assert len(asked) == 24
    assert {each["key"] for each in asked} == {"Bearer sk-very-secret"}
    assert {each["format"] for each in asked} == {"json_schema"}
    assert {each["messages"] for each in asked} == {2, 4}
    printed = capsys.readouterr().out
    assert f"{24 * EXPECTED_TOKENS[0]:,}" in printed
    assert "0.05" in printed  # 2,400 tokens of 10 and 480 of 50 a million
    assert not any(b"very-secret" in path.read_bytes() for path in tmp_path.rglob("*.*"))
    row = read_annotations(tmp_path).rows(0)["describe"]
    assert row.provenance.model == "tiny"
    assert json.loads(row.provenance.sampling)["max_tokens"] == 512
    assert row.outputs["prompt_tokens"] == 2 * EXPECTED_TOKENS[0]
    # Given again, nothing is left.
    assert describe(images, tmp_path, server) == 0
    assert len(server.log()) == before + 24


def test_structured_output_is_given_up_where_the_server_refuses_it(images, server, tmp_path):
    for mode, expected in (("no schema", "json_object"), ("no format", None)):
        before = len(server.log())
        server.behave(mode)
        output = tmp_path / mode
        assert describe(images, output, server, quick=("--concurrency=1",)) == 0
        check(images, output)
        formats = [each["format"] for each in server.log()[before:]]
        assert formats.count(expected) == 24
        assert formats[-20:] == [expected] * 20


@pytest.mark.parametrize(
    "mode", ["429", "500", "503", "half", "html", "not json", "no choices", "drop", "huge"]
)
def test_what_passes_is_tried_again(images, server, tmp_path, mode):
    server.behave(mode, times=2)
    assert describe(images, tmp_path, server, quick=("--retries=4", "--concurrency=2")) == 0
    check(images, tmp_path)


def test_a_slow_answer_is_tried_again(images, server, tmp_path):
    server.behave("hang", times=1)
    assert describe(images, tmp_path, server, quick=("--timeout=0.7", "--retries=2")) == 0
    check(images, tmp_path)


def test_garbage_is_rows_with_errors_and_can_be_tried_again(images, server, tmp_path, capsys):
    server.behave("garbage")
    assert describe(images, tmp_path, server) == 3
    found = list(read_annotations(tmp_path))
    assert [each.image for each in found] == names(images)
    reasons = {each.errors["describe"].partition(":")[0] for each in found}
    assert {"refusal", "empty answer", "no subject"} <= reasons
    assert "--retry_errors tries them again" in capsys.readouterr().out
    server.behave("ok")
    assert describe(images, tmp_path, server) == 0  # nothing to do
    assert all(each.errors for each in read_annotations(tmp_path))
    assert describe(images, tmp_path, server, "--retry_errors") == 0
    check(images, tmp_path)


def test_an_answer_at_the_limit_of_tokens_loses_its_last_phrase(images, server, tmp_path):
    server.behave("limit")
    assert describe(images, tmp_path, server, "--shard=0/2") == 0
    for each in read_annotations(tmp_path):
        assert each.descriptions == tuple(features_of(sent(images, each.image))[:-1])


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


def test_a_request_that_is_refused_is_a_row_with_an_error(images, server, tmp_path):
    server.behave("413", times=1)
    assert describe(images, tmp_path, server, quick=("--concurrency=1",)) == 0
    (failed,) = (each for each in read_annotations(tmp_path) if each.errors)
    assert failed.errors["describe"].startswith("HTTP 413: status 413")
    check(images, tmp_path, failed=(failed.image,))


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


def test_images_that_cannot_be_read_are_rows_with_errors(server, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:40])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>404</html>")
    os.symlink("nowhere", folder / "link.png")
    assert describe(folder, tmp_path / "ann", server) == 0
    found = {each.image: each.errors for each in read_annotations(tmp_path / "ann")}
    assert sorted(found) == ["cut.png", "empty.jpg", "good.png", "page.jpg"]
    assert found["good.png"] == {}
    assert "HTML page" in found["page.jpg"]["describe"]
    assert all(
        found[name]["describe"].startswith("corrupt image: ") for name in ("cut.png", "empty.jpg")
    )


def test_large_images_are_sent_small_and_upright(server, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (400, 100), (200, 30, 30)).save(folder / "a.jpg", exif=exif)
    assert describe(folder, tmp_path / "ann", server, "--max_image_side=200") == 0
    expected = as_jpeg(load_image("a.jpg", folder), 200)
    assert decode_image(expected).shape == (200, 50, 3)
    assert read_annotations(tmp_path / "ann")[0].captions == (caption_of(expected),)


def test_rows_of_another_model_are_kept_until_asked(images, server, tmp_path, capsys):
    assert describe(images, tmp_path, server, "--temperature=0.5") == 0
    assert describe(images, tmp_path, server) == 0
    assert "12 rows were made by another model" in capsys.readouterr().out
    assert len(StageFiles(tmp_path, "describe")) == 12
    assert describe(images, tmp_path, server, "--redo_changed") == 0
    assert len(StageFiles(tmp_path, "describe")) == 24
    sampling = read_annotations(tmp_path).rows(3)["describe"].provenance.sampling
    assert json.loads(sampling)["temperature"] == 0.0


def test_replaced_images_are_described_anew_where_asked(server, tmp_path, capsys):
    folder, output = tmp_path / "images", tmp_path / "ann"
    folder.mkdir()
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), color).save(folder / name)
    assert describe(folder, output, server) == 0
    Image.new("RGB", (8, 8), "green").save(folder / "a.png")
    assert describe(folder, output, server) == 0
    assert len(StageFiles(output, "describe")) == 2
    assert describe(folder, output, server, "--redo_replaced", "--dry_run") == 0
    assert "file was replaced" in capsys.readouterr().out
    assert describe(folder, output, server, "--redo_replaced") == 0
    assert len(StageFiles(output, "describe")) == 3
    check(folder, output)
    assert describe(folder, output, server, "--redo_replaced") == 0
    assert len(StageFiles(output, "describe")) == 3


def test_a_dry_run_asks_and_writes_nothing(images, server, tmp_path, capsys):
    before = len(server.log())
    output = tmp_path / "ann"
    assert (
        describe(images, output, server, "--dry_run", "--price_prompt=2", "--price_completion=0")
        == 0
    )
    printed = capsys.readouterr().out
    assert "24" in printed
    assert "estimated" in printed
    assert "cost" in printed
    assert not output.exists()
    assert len(server.log()) == before
    assert describe(images, output, server, "--shard=0/2") == 0
    done = len(read_annotations(output))
    capsys.readouterr()
    assert describe(images, output, server, "--dry_run") == 0
    printed = capsys.readouterr().out
    assert f"{(12 - done) * 2 * EXPECTED_TOKENS[0]:,}" in printed
    assert "as of the rows so far" in printed


def test_fields_of_requests_can_be_added_and_removed(images, server, tmp_path):
    body = '{"temperature": null, "seed": 7}'
    assert describe(images, tmp_path, server, f"--extra_body={body}", "--shard=0/3") == 0
    asked = server.log()[-1]
    assert asked["seed"] == 7
    assert "temperature" not in asked
    assert asked["max_tokens"] == 512


def start(images: Path, output: Path, server) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "grain_jax.annotate", "describe", "--concurrency=3"]
    places = [f"--images={images}", f"--output={output}", f"--endpoint={server.url}"]
    return subprocess.Popen(
        [*command, *places, "--model=tiny"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_loses_and_repeats_no_row(images, server, tmp_path, signal_number):
    """Its rows are those of an undisturbed run."""
    output = tmp_path / "ann"
    server.behave("ok", delay=0.15)
    process = start(images, output, server)
    files, deadline = None, time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if (output / "annotations.json").exists() and len(StageFiles(output, "describe")) >= 3:
            break
        time.sleep(0.02)
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


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--endpoint=localhost:8000", "should be an address"),
        ("--endpoint=http://me:word@host/v1", "must not have a user"),
        ("--shard=3/3", "0/n"),
        ("--extra_body=[1]", "JSON object"),
        ('--extra_body={"model": "other"}', "'model'"),
        ('--extra_body={"seed": 1, "messages": null}', "'messages'"),
        ('--extra_body={"stream": true}', "'stream'"),
        ('--extra_body={"response_format": null}', "'response_format'"),
        ("--temperature=-1", "at least 0"),
        ("--prompts=/nowhere.toml", "/nowhere.toml"),
        ("--images=/nowhere", "--images=/nowhere is not a folder"),
    ],
)
def test_a_mistake_is_named(images, tmp_path, capsys, option, said):
    given = {
        "--images": str(images),
        "--output": str(tmp_path / "ann"),
        "--endpoint": "http://localhost:9/v1",
        "--model": "tiny",
    }
    name, _, value = option.partition("=")
    given[name] = value
    assert annotate.main(["describe", *(f"{key}={each}" for key, each in given.items())]) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not (tmp_path / "ann").exists()


def test_an_option_that_a_backend_does_not_use_is_refused(images, tmp_path, capsys):
    given = [f"--images={images}", f"--output={tmp_path / 'ann'}", "--model=tiny"]
    for option in ("--endpoint=http://x/v1", "--concurrency=4", "--timeout=3", "--retries=0"):
        assert annotate.main(["describe", *given, "--backend=transformers", option]) == 2
        assert f"{option.partition('=')[0]} is for --backend=endpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--backend=transformers", "--endpoint=http://x/v1"), "--endpoint is for"),
        (("--backend=transformers", "--concurrency=4"), "--concurrency is for"),
        (("--backend=transformers", '--extra_body={"seed": 7}'), "'seed'"),
        ((), "--endpoint is missing"),
        (("--endpoint=localhost:8000",), "should be an address"),
        (("--endpoint=http://localhost:9/v1", "--price_prompt=2"), "give both"),
        (("--endpoint=http://localhost:9/v1", "--price_completion=2"), "give both"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_a_dry_run_refuses_what_the_run_does(images, tmp_path, capsys, options, said, dry):
    given = [f"--images={images}", f"--output={tmp_path / 'ann'}", "--model=tiny"]
    assert annotate.main(["describe", *given, *options, *dry]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_key_is_not_sent_in_the_open_without_a_word(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRAIN_JAX_API_KEY", "sk-very-secret")
    given = [f"--images={images}", f"--output={tmp_path / 'ann'}", "--model=tiny", "--dry_run"]
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for url, expected in (
        ("http://192.0.2.1/v1", True),
        ("http://models.example/v1", True),
        ("http://127.0.0.1:9/v1", False),
        ("http://localhost:9/v1", False),
        ("https://models.example/v1", False),
    ):
        assert annotate.main(["describe", *given, f"--endpoint={url}"]) == 0
        assert ("without encryption" in capsys.readouterr().err) == expected, url
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://proxy.example:3128")
    assert annotate.main(["describe", *given, "--endpoint=http://models.example/v1"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "would be sent to the proxy proxy.example" in said
    assert "very-secret" not in said
    assert annotate.main(["describe", *given, "--endpoint=https://models.example/v1"]) == 0
    assert annotate.main(["describe", *given, "--endpoint=http://localhost:9/v1"]) == 0
    monkeypatch.delenv("GRAIN_JAX_API_KEY")
    assert annotate.main(["describe", *given, "--endpoint=http://models.example/v1"]) == 0


def test_without_pyarrow_the_way_to_install_it_is_said(
    images, server, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert describe(images, tmp_path / "ann", server) == 2
    assert "[annotate]" in capsys.readouterr().err


def test_stages_are_listed_and_a_wrong_one_is_named(capsys):
    assert annotate.main(["--help"]) == 0
    assert "describe" in capsys.readouterr().out
    assert annotate.main(["descibe", "--images=x"]) == 2
    assert "is it 'describe'?" in capsys.readouterr().err
    assert annotate.main([]) == 2
    assert "no stage is given" in capsys.readouterr().err
