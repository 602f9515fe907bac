"""`describe` with a real multimodal model: of `transformers serve`, and in this process."""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny_chat_model import write_chat_model

pytest.importorskip("pyarrow")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from grain_jax import annotate
from grain_jax.data.annotation_files import read_annotations

pytestmark = [pytest.mark.torch, pytest.mark.multiprocess]

PROMPTS = 'name = "short"\nsystem = ""\nsubject = "What?"\nfeatures = "Features of {subject}?"\n'
CAPTION, SUBJECT, FEATURES = "A red bus.", "bus", ("red paint", "two doors")
SAID = (
    '{"caption": "A red bus.", "primary_subject": "bus"}',
    '{"features": ["red paint", "two doors"]}',
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (28, 28), (200, 30, 30)).save(folder / name)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:50])
    return folder


@pytest.fixture(scope="module")
def model(images, tmp_path_factory):
    image = {"type": "image", "image": Image.open(images / "a.png")}
    conversation = [
        {"role": "user", "content": [image, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": SAID[0]},
        {"role": "user", "content": "Features of bus?"},
        {"role": "assistant", "content": SAID[1]},
    ]
    return write_chat_model(tmp_path_factory.mktemp("model"), conversation)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "short.toml"
    path.write_text(PROMPTS)
    return path


def describe(images: Path, output: Path, model: Path, *options: str) -> int:
    command = ["describe", f"--images={images}", f"--output={output}", f"--model={model}"]
    return annotate.main([*command, *options])


def check(output: Path) -> None:
    found = read_annotations(output)
    assert [each.image for each in found] == ["a.png", "b.png", "cut.png"]
    for index in range(2):
        assert found[index].captions == (CAPTION,)
        assert found[index].primary_subject == SUBJECT
        assert found[index].descriptions == FEATURES
        outputs = found.rows(index)["describe"].outputs
        written = sum(len(text) + 1 for text in SAID)  # a token a byte, and the end
        assert abs(outputs["completion_tokens"] - written) <= 2
        assert outputs["prompt_tokens"] > written
    assert found[2].errors["describe"].startswith("corrupt image")


def test_a_model_in_this_process_describes(images, model, prompts, tmp_path):
    options = ("--backend=transformers", f"--prompts={prompts}")
    assert describe(images, tmp_path, model, *options) == 0
    check(tmp_path)


def test_what_is_noise_is_an_error(images, model, tmp_path):
    """The model has not learned these questions."""
    assert describe(images, tmp_path, model, "--backend=transformers", "--max_tokens=8") == 3
    assert all("describe" in each.errors for each in read_annotations(tmp_path))


@contextlib.contextmanager
def serve(model: Path, port: int, log: Path) -> Iterator[None]:
    """A server that answers; what it prints is in `log`, and shown where it does not."""
    command = ["-m", "transformers.cli.transformers", "serve", str(model), "--device=cpu"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command, "--host=127.0.0.1", f"--port={port}"],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 300  # it imports much, on a machine that others use too
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            if time.monotonic() > deadline or process.poll() is not None:
                pytest.fail(f"no server, status {process.poll()}: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def test_a_model_of_transformers_serve_describes(images, model, prompts, tmp_path, capsys):
    """Which is not there at first, then answers, and is not there again."""
    for package in ("fastapi", "uvicorn", "openai", "accelerate"):
        pytest.importorskip(package)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    options = (f"--endpoint=http://127.0.0.1:{port}/v1", f"--prompts={prompts}", "--retries=0")
    assert describe(images, tmp_path, model, *options) == 1
    assert "does not answer" in capsys.readouterr().err
    with serve(model, port, tmp_path / "server.log"):
        assert describe(images, tmp_path, model, *options) == 0
    check(tmp_path)
    assert describe(images, tmp_path, model, *options, "--redo_changed", "--max_phrases=1") == 1
    check(tmp_path)


def test_weights_in_a_pickle_are_not_read(images, model, prompts, tmp_path, capsys):
    import safetensors.torch
    import torch

    copy = shutil.copytree(model, tmp_path / "pickled")
    weights = safetensors.torch.load_file(copy / "model.safetensors")
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    options = ("--backend=transformers", f"--prompts={prompts}")
    assert describe(images, tmp_path / "ann", copy, *options) == 2
    assert "safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["processor_config.json", "config.json"])
def test_code_of_a_model_is_not_run(images, model, tmp_path, capsys, monkeypatch, where):
    """Not even where somebody would say yes."""
    copy = shutil.copytree(model, tmp_path / "with_code")
    ran = tmp_path / "ran"
    (copy / "custom.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    classes = ("AutoConfig", "AutoProcessor", "AutoModelForImageTextToText")
    config = json.loads((copy / where).read_text())
    config["model_type"] = config["processor_class"] = "custom"
    config["auto_map"] = {name: "custom.Custom" for name in classes}
    (copy / where).write_text(json.dumps(config))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    assert describe(images, tmp_path / "ann", copy, "--backend=transformers") == 2
    assert "with_code" in capsys.readouterr().err
    assert not ran.exists()
