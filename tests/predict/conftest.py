"""The toy model in place of a run, and images to look at."""

import json

import pytest
from PIL import Image
from toy_encoder import columns, toy_model

from grain_jax import predict
from grain_jax.terminal import PIPE_WIDTH


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Tables as wide as those of a pipe."""
    monkeypatch.setenv("COLUMNS", str(PIPE_WIDTH))


@pytest.fixture
def loaded_with(monkeypatch):
    """The toy model stands for that of any run; what `load` was called with is noted."""
    calls = []

    def load(path, *, step, best, batch_size, note, calibration):
        calls.append((path, step, best, batch_size))
        if "nowhere" in path:
            raise ValueError(f"There is no checkpoint in {path}.")
        return toy_model(batch_size=batch_size, note=note)

    monkeypatch.setattr(predict, "load", load)
    return calls


@pytest.fixture
def make_images(tmp_path, monkeypatch):
    """Two folders with an image of the same name, one damaged, and what is no image at all."""
    monkeypatch.chdir(tmp_path)
    for name, colours in (
        ("in/a.png", ("red", "blue")),
        ("in/deep/a.png", ("green", "red")),
        ("other/a.jpg", ("blue", "green")),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(columns(*colours)).save(path, quality=100)
    (tmp_path / "in/.hidden.png").write_bytes(b"")
    (tmp_path / "in/notes.txt").write_text("no image")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "descriptions.json").write_text(json.dumps({"Robin": ["red"], "jay": ["blue"]}))
    return tmp_path
