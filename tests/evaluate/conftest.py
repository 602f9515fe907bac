"""A run of the toy model, and images and records whose answers it tells."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from toy_encoder import ToyModel, ToyTokenizer, half
from toy_evaluations import png

from grain_jax import evaluate
from grain_jax.config import DataConfig, EvaluationConfig, SyntheticBirdsConfig, TrainConfig
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.tfds_records import encode_record, shard_path, write_metadata, write_shard
from grain_jax.data.transforms import Preprocessing
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.learned import EVERYTHING
from grain_jax.terminal import PIPE_WIDTH


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Tables as wide as those of a pipe."""
    monkeypatch.setenv("COLUMNS", str(PIPE_WIDTH))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that stands for a run of the toy model, whose config tests may change; what `load`
    was asked for is noted.
    """
    folder = tmp_path / "run"
    (folder / "checkpoints" / "7").mkdir(parents=True)
    (folder / "checkpoints" / "7" / "_CHECKPOINT_METADATA").touch()
    asked = []
    config = TrainConfig(
        data=DataConfig(
            synthetic_birds=SyntheticBirdsConfig(num_train_images=30, num_eval_images=25),
            caption_length=8,
            description_length=4,
            num_threads=3,
        ),
        evaluation=EvaluationConfig(alphas=(1.0, 0.5, 0.0), batch_size=8),
    )

    def load(path, *, step=None, best=False, mesh=None):
        asked.append((path, step, best))
        if path != folder:
            raise ValueError(f"{str(path)!r} holds no run.")
        return ModelBundle(
            model=ToyModel(),
            params={"logit_scale": np.log(np.float32(10.0))},
            config=config,
            tokenizer=ToyTokenizer(),
            preprocessing=Preprocessing(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
            templates=("a {} thing",),
            step=7,
            learned=EVERYTHING,
        )

    monkeypatch.setattr(evaluate, "read_model", load)
    return SimpleNamespace(folder=folder, asked=asked, config=config)


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "colours"
    for colour, part in (("red", "green"), ("green", "blue"), ("blue", "red")):
        (root / colour).mkdir(parents=True)
        (root / colour / "1.png").write_bytes(png(colour, part, part))
    described = {"red": ["green part"], "green": ["blue part"], "blue": ["red part"]}
    (root / "descriptions.json").write_text(json.dumps(described))
    return root


@pytest.fixture
def records(tmp_path):
    root = tmp_path / "records"
    root.mkdir()
    splits = {}
    for split, colours in (("dev", ("red", "green", "blue")), ("train", ("green", "red"))):
        own = [
            Record(
                id=f"{split}{i}",
                image=png(colour, "blue", "green"),
                captions=(Caption(f"a {colour} thing"),),
                regions=(Region(half(0), "blue part"), Region(half(1), "green part")),
            )
            for i, colour in enumerate(colours)
        ]
        path = shard_path(root, split, 0, 1)
        splits[split] = write_shard(path, [encode_record(record) for record in own])
    write_metadata(root, splits)
    return root


@pytest.fixture
def two_runs(run, tmp_path, monkeypatch):
    """A second run beside the first, whose model sees no red, and red in green."""
    other = tmp_path / "other"
    (other / "checkpoints" / "7").mkdir(parents=True)
    load = evaluate.read_model

    class Mistaken(ToyModel):
        def encode_images(self, images, *, train=False):
            output = super().encode_images(images, train=train)
            return dataclasses.replace(output, image_embed=output.image_embed[:, [1, 1, 2]])

    def load_either(path, **options):
        loaded = load(run.folder, **options)
        return dataclasses.replace(loaded, model=Mistaken()) if path == other else loaded

    monkeypatch.setattr(evaluate, "read_model", load_either)
    return run.folder, other
