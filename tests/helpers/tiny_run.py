"""A model and a batch small enough to compile in seconds, and divisible by every mesh of 8."""

import copy
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from grain_jax.config import (
    DataConfig,
    DecoderConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from grain_jax.config.cli import config_to_json
from grain_jax.data.batch import Batch
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.image_text import model_of_run
from grain_jax.parallel import sharding
from grain_jax.parallel.sharding import make_mesh, put_batch, use_mesh
from grain_jax.training.optimizer import make_optimizer, make_schedule
from grain_jax.training.state import TrainState, abstract_state
from grain_jax.training.step import TrainStep, make_train_step


def tiny_config() -> TrainConfig:
    return TrainConfig(
        name="tiny",
        batch_size=16,
        steps=20,
        model=ModelConfig(
            image_size=16,
            embed_dim=16,
            vision=VisionConfig(patch_size=8, width=16, depth=1, num_heads=8, qk_norm=False),
            text=TextConfig(vocab_size=64, context_length=8, width=16, depth=1, num_heads=8),
            decoder=DecoderConfig(
                width=16, depth=1, num_heads=8, mlp_dim=32, dropout=0.0, num_queries=3
            ),
            dtype="float32",
        ),
        data=DataConfig(caption_length=8, description_length=6, max_regions=3),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=1),
    )


def averaged_config() -> TrainConfig:
    """With averaged weights. What one file has compiled of it on a mesh, the others find."""
    config = tiny_config()
    config.optim.ema_decay = 0.9
    return config


def random_batch(seed: int = 0, *, size: int = 16) -> Batch:
    rng = np.random.default_rng(seed)
    captions = rng.integers(3, 63, (size, 8)).astype(np.int32)
    captions[:, -1] = 63
    descriptions = rng.integers(3, 63, (size, 3, 6)).astype(np.int32)
    descriptions[:, :, -1] = 63
    mask = rng.random((size, 3)) < 0.7
    boxes = np.concatenate(
        [rng.uniform(0.3, 0.7, (size, 3, 2)), rng.uniform(0.1, 0.5, (size, 3, 2))], axis=-1
    )
    return Batch(
        images=rng.integers(0, 256, (size, 16, 16, 3)).astype(np.uint8),
        captions=captions,
        caption_key=rng.integers(0, 12, size).astype(np.uint32),
        descriptions=descriptions * mask[:, :, None].astype(np.int32),
        description_key=rng.integers(0, 30, (size, 3)).astype(np.uint32),
        boxes=(boxes * mask[:, :, None]).astype(np.float32),
        region_mask=mask,
        index=np.arange(size, dtype=np.int32),
        replaced=np.zeros(size, bool),
        truncated=np.zeros(size, np.int32),
    )


def random_params(abstract: Any) -> Any:
    """Weights of a sensible size by the names of their parameters."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name == "logit_scale":
            return np.full(leaf.shape, np.log(10.0), leaf.dtype)
        values = rng.normal(1.0 if name == "scale" else 0.0, 0.1, leaf.shape)
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def random_state(abstract: TrainState) -> TrainState:
    """`random_params`; everything else at its start."""
    params = random_params(abstract.params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    return dataclasses.replace(
        zeros, params=params, ema_params=None if zeros.ema_params is None else params
    )


_made: dict[tuple[Any, ...], "Parts"] = {}


class Parts(NamedTuple):
    """What no step changes."""

    model: Any
    optimizer: Any
    abstract: TrainState
    step: TrainStep


def _parts(config: TrainConfig, mesh: jax.sharding.Mesh) -> Parts:
    """The same ones for the same settings and mesh: to trace a step again takes seconds."""
    key = config_to_json(config), mesh, sharding.NARROW
    if key not in _made:
        config = copy.deepcopy(config)  # a test may change its own
        model, optimizer = model_of_run(config), make_optimizer(config.optim)
        abstract = abstract_state(model, optimizer, config, mesh)
        schedule = make_schedule(
            config.optim, steps=config.steps, warmup_steps=config.optim.warmup_steps
        )
        step = make_train_step(model, optimizer, schedule, config, mesh=mesh, abstract=abstract)
        _made[key] = Parts(model, optimizer, abstract, step)
    return _made[key]


class TinyRun:
    """A train step with its state on a mesh of the first `devices` devices.

    `start`: a state on the host to begin with (default: random weights, which saves compiling the
    initialisation).
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        mesh: MeshConfig | None = None,
        devices: int = 1,
        start: TrainState | None = None,
    ):
        self.config = config
        self.mesh = make_mesh(mesh or MeshConfig(), jax.devices()[:devices])
        parts = _parts(config, self.mesh)
        self.model, self.optimizer, self.abstract, self.step = parts
        self.state: TrainState
        self.set_state(random_state(self.abstract) if start is None else start)

    def set_state(self, state: TrainState) -> None:
        """Puts a state of the host on the devices."""
        placed = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        self.state = jax.device_put(state, placed)

    def train(self, batches: list[Batch]) -> list[dict[str, float]]:
        """Means of each step's metrics, in order."""
        history: list[dict[str, float]] = []
        with use_mesh(self.mesh):
            for batch in batches:
                placed = put_batch(batch, self.mesh, batch_size=len(batch.images))
                self.state, metrics = self.step(self.state, placed)
                history.append(means(metrics))
        return history


def means(metrics: Any) -> dict[str, float]:
    return {
        name: float(total) / max(float(weight), 1e-9) for name, (total, weight) in metrics.items()
    }


def bundle_of(run: TinyRun) -> ModelBundle:
    """The model of a run as it is loaded."""
    return ModelBundle(
        model=run.model,
        params=jax.device_get(run.state.params),
        config=run.config,
        tokenizer=WordTokenizer(["a", "b"]),
        preprocessing=Preprocessing(image_size=run.config.model.image_size),
        templates=("{}",),
        step=0,
    )
