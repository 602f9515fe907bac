"""`annotate describe` and `ground` on a Ray cluster of two machines, a worker killed on the way."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from chat_server import caption_of, chat_server, features_of
from PIL import Image
from plain_text import plain
from ray_machines import ray_machines, worker_pids
from tiny_detectors import write_detector

pytest.importorskip("pyarrow")
pytest.importorskip("ray")

from grain_jax import annotate
from grain_jax.annotation.images import as_jpeg, load_image
from grain_jax.data.annotation_files import StageFiles
from grain_jax.data.annotation_rows import Row

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
COUNT = 80


@pytest.fixture(scope="module")
def address():
    with ray_machines(1, 1) as given:
        yield given


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Images of several shapes in class folders, one of them damaged."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "birds").mkdir()
    for number in range(COUNT):
        shape = [(50, 80, 3), (70, 40, 3), (60, 60, 3)][number % 3]
        pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / "birds" / f"{number:02d}.png")
    (folder / "birds" / "cut.png").write_bytes(b"nothing")
    return folder


def rows_in(output: Path, stage: str) -> dict[str, Row]:
    files = StageFiles(output, stage)
    rows = [files.row(index) for index in range(len(files))]
    found = {row.image: row for row in rows}
    assert len(found) == len(rows), "an image has two rows"
    return found


def kill_a_worker(output: Path, stage: str, killed: list[int]) -> None:
    """Once a few rows are there."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if (output / "annotations.json").exists() and len(StageFiles(output, stage)) >= 6:
            killed += worker_pids("StageWorker")[:1]
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.01)


def run_with_a_kill(command: list[str], output: Path) -> int:
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(output, command[0], killed))
    killer.start()
    status = annotate.main(command)
    killer.join()
    assert len(killed) == 1
    return status


@pytest.mark.torch
def test_ground_makes_the_same_rows(images, address, tmp_path, capsys):
    detector = write_detector(tmp_path / "owlv2", "owlv2")
    (tmp_path / "texts.json").write_text(json.dumps({"birds": ["a beak", "red wings"], "fish": []}))
    places = [f"--images={images}", f"--class_descriptions={tmp_path / 'texts.json'}"]
    options = [f"--detector={detector}", "--device=cpu", "--threshold=0", "--batch_size=3"]
    command = ["ground", *places, *options]
    assert annotate.main([*command, f"--annotations={tmp_path / 'one'}"]) == 0
    on_ray = [*command, f"--annotations={tmp_path / 'ray'}", f"--ray={address}", "--workers=2"]
    capsys.readouterr()
    assert run_with_a_kill(on_ray, tmp_path / "ray") == 0
    printed = capsys.readouterr()
    assert "another one takes its place" in plain(printed.err)
    assert plain(printed.err).count("are of other classes") == 1
    assert "detector alone" in plain(printed.out)
    expected, found = (rows_in(tmp_path / name, "ground") for name in ("one", "ray"))
    assert found.keys() == expected.keys()
    assert len(found) == COUNT + 1
    assert (found["birds/cut.png"].error or "").startswith("corrupt image")
    for image, row in found.items():
        other = expected[image]
        assert row.provenance.settings == other.provenance.settings
        same = ("image_hash", "input_hash", "error")
        assert [getattr(row, name) for name in same] == [getattr(other, name) for name in same]
        assert row.outputs["phrases"] == other.outputs["phrases"]
        if row.error is None:
            check_regions(row.outputs["regions"], other.outputs["regions"])
    assert annotate.main(on_ray) == 0  # nothing is left
    assert len(StageFiles(tmp_path / "ray", "ground")) == COUNT + 1


def check_regions(found: list[dict], expected: list[dict]) -> None:
    """Equal but for the last digits, which depend on the batch that an image was in."""
    found, expected = (
        sorted(each, key=lambda region: str(region["description"])) for each in (found, expected)
    )
    assert [each["description"] for each in found] == [each["description"] for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["box_xyxy"], other["box_xyxy"], atol=1e-4)
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_describe_makes_the_same_rows(images, address, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with chat_server() as first, chat_server() as second:
        for server in (first, second):
            server.behave("ok", delay=0.1)
        places = [f"--images={images}", f"--output={tmp_path}", f"--ray={address}", "--workers=2"]
        asked = [f"--endpoint={first.url},{second.url}", "--model=tiny", "--concurrency=2"]
        command = ["describe", *places, *asked, "--api_key_env=MY_KEY"]
        assert run_with_a_kill(command, tmp_path) == 0
        logs = [server.log() for server in (first, second)]
    assert all(len(log) > 20 for log in logs)
    assert {each["key"] for log in logs for each in log} == {"Bearer sk-very-secret"}
    assert "very-secret" not in "".join(capsys.readouterr())
    found = rows_in(tmp_path, "describe")
    assert len(found) == COUNT + 1
    for image, row in found.items():
        if image == "birds/cut.png":
            assert (row.error or "").startswith("corrupt image")
            continue
        sent = as_jpeg(load_image(image, images), 768)
        assert row.error is None, row
        assert row.outputs["captions"] == [caption_of(sent)]
        assert row.outputs["descriptions"] == features_of(sent)


def test_what_a_worker_cannot_open_is_named(images, address, tmp_path, capsys):
    pytest.importorskip("torch")
    (tmp_path / "texts.json").write_text(json.dumps({"birds": ["a beak"]}))
    places = [f"--images={images}", f"--class_descriptions={tmp_path / 'texts.json'}"]
    command = ["ground", *places, f"--detector={tmp_path / 'nowhere'}", "--device=cpu"]
    assert annotate.main([*command, f"--annotations={tmp_path / 'a'}", f"--ray={address}"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "worker 0" in error or "worker 1" in error
    assert "nowhere" in error
    assert "Traceback" not in error
    assert not (tmp_path / "a").exists()
