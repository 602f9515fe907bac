"""A run of the toy model, tested images, labelled ones, and records with captions."""

import numpy as np
import pytest
from labelled_looks import png, write_images
from toy_encoder import ToyModel, ToyTokenizer

from grain_jax import evaluate
from grain_jax.config import DataConfig, EvaluationConfig, TrainConfig
from grain_jax.data.records import Caption, Record
from grain_jax.data.tfds_records import encode_record, shard_path, write_metadata, write_shard
from grain_jax.data.transforms import Preprocessing
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.learned import EVERYTHING


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that stands for a run of the toy model."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "7").mkdir(parents=True)
    (folder / "checkpoints" / "7" / "_CHECKPOINT_METADATA").touch()
    config = TrainConfig(
        data=DataConfig(caption_length=8, description_length=4, num_threads=2),
        evaluation=EvaluationConfig(alphas=(1.0,), batch_size=16),
    )

    def load(path, *, step=None, best=False, mesh=None):
        return ModelBundle(
            model=ToyModel(),
            params={"logit_scale": np.log(np.float32(10.0))},
            config=config,
            tokenizer=ToyTokenizer(),
            preprocessing=Preprocessing(4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
            templates=("a {} thing",),
            step=7,
            learned=EVERYTHING,
        )

    monkeypatch.setattr(evaluate, "read_model", load)
    return folder


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "colours", 3, start=0)


@pytest.fixture
def support(tmp_path):
    return write_images(tmp_path / "labelled", 6, start=1000)


@pytest.fixture
def bank(tmp_path):
    root = tmp_path / "records"
    root.mkdir()
    own = [
        Record(
            id=f"image{i}",
            image=png(colour, 5000 + i),
            captions=(Caption("a blue thing", "synthetic"), Caption(f"a {colour} thing"))
            if i % 5
            else (),
        )
        for i, colour in enumerate(["red", "green", "blue"] * 5)
    ]
    path = shard_path(root, "train", 0, 1)
    splits = {"train": write_shard(path, [encode_record(record) for record in own])}
    path = shard_path(root, "bare", 0, 1)
    bare = [Record(id="bare", image=png("red", 0))]
    splits["bare"] = write_shard(path, [encode_record(record) for record in bare])
    write_metadata(root, splits)
    return root
