"""A model with random weights as `checkpoint.load` gives it, and the run folder of one."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from tiny_run import random_params, random_state

from grain_jax.config import (
    CheckpointConfig,
    DataConfig,
    DecoderConfig,
    MeshConfig,
    ModelConfig,
    SyntheticBirdsConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from grain_jax.data.tokenizer import Tokenizer, WordTokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.models.bundle import ModelBundle, make_metadata
from grain_jax.models.image_text import abstract_params, model_of_run
from grain_jax.parallel.sharding import make_mesh
from grain_jax.training.checkpoint import Checkpoints
from grain_jax.training.optimizer import make_optimizer
from grain_jax.training.state import abstract_state

TEMPLATES = ("a photo of a {}", "the {} bird")
LABELS = ["red", "blue", "a long tail of a bird and of a bird and of a bird"]  # one is cut
STEP = 7
WORDS = ("a", "photo", "of", "the", "bird", "red", "blue", "crest", "with", "and", "tail", "long")


def tokenizer() -> WordTokenizer:
    return WordTokenizer(WORDS)


def model_config(**changes: Any) -> ModelConfig:
    """Two layers of everything, sizes that differ, so that nothing fits by accident."""
    config = ModelConfig(
        image_size=32,
        embed_dim=24,
        vision=VisionConfig(patch_size=8, width=32, depth=2, num_heads=4),
        text=TextConfig(
            vocab_size=tokenizer().vocab_size, context_length=12, width=16, depth=2, num_heads=2
        ),
        decoder=DecoderConfig(width=40, depth=2, num_heads=2, mlp_dim=48, num_queries=3),
        dtype="float32",
    )
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        setattr(getattr(config, part) if part else config, field, value)
    return config


def tiny_model(
    words: Tokenizer | None = None, *, sigmoid: bool = False, **changes: Any
) -> ModelBundle:
    """`changes` to the model's config: `decoder__width=40`. `sigmoid`: of `loss.image_caption`."""
    model = model_config(**changes)
    data = DataConfig(
        dataset="synthetic_birds",
        tokenizer="synthetic_birds",
        caption_length=10,
        description_length=6,
        synthetic_birds=SyntheticBirdsConfig(num_train_images=16, num_eval_images=25),
    )
    config = TrainConfig(name="tiny", steps=STEP, batch_size=16, model=model, data=data)
    config.loss.image_caption = "sigmoid" if sigmoid else "softmax"
    return ModelBundle(
        model=model_of_run(config),
        params=random_params(abstract_params(model, sigmoid=sigmoid)),
        config=config,
        tokenizer=words or tokenizer(),
        preprocessing=Preprocessing.from_config(data, model.image_size),
        templates=TEMPLATES,
        step=STEP,
    )


def write_run(loaded: ModelBundle, folder: Path) -> None:
    """What `checkpoint.load` reads of a run: `checkpoints/7`, its templates those of the world."""
    config = loaded.config
    mesh = make_mesh(MeshConfig(cpu_devices=1))
    abstract = abstract_state(loaded.model, make_optimizer(config.optim), config, mesh)
    metadata = make_metadata(
        config,
        tokenizer=loaded.tokenizer,
        preprocessing=loaded.preprocessing,
        templates=TEMPLATES,
        num_images=16,
    )
    settings = CheckpointConfig(asynchronous=False)
    checkpoints = Checkpoints(folder, settings, metadata=metadata)
    state = dataclasses.replace(random_state(abstract), params=loaded.params)
    checkpoints.save(state, step=STEP)
    checkpoints.wait()
    checkpoints.close()


def torch_params(model: Any) -> dict[str, np.ndarray]:
    return {name: value.float().numpy() for name, value in model.state_dict().items()}
