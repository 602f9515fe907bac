"""Commands in the process of the tests, on as many devices as in a process of their own."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import pytest

import grain_jax.train
from grain_jax.config import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    TrainConfig,
)
from grain_jax.config.cli import config_to_json
from grain_jax.parallel.presets import choose_mesh
from grain_jax.training.state import abstract_state, new_state
from grain_jax.training.step import make_train_step

_shapes: dict[tuple[str, jax.sharding.Mesh], Any] = {}
_steps: dict[tuple[str, jax.sharding.Mesh], Any] = {}
_starts: dict[str, Any] = {}


@contextmanager
def devices_of_config() -> Iterator[None]:
    """The mesh takes `mesh.cpu_devices` of the 8 devices that are here already.

    Steps and saves on two take a third of the time of those on eight. Runs whose settings differ
    in nothing that is compiled share the jitted step, the shapes of their state and the
    weights they start from: tracing takes longer than all their steps.
    """

    def make(config: TrainConfig) -> jax.sharding.Mesh:
        return choose_mesh(config, jax.devices()[: config.mesh.cpu_devices])

    def shapes(model: Any, optimizer: Any, config: TrainConfig, mesh: jax.sharding.Mesh) -> Any:
        key = _compiled(config), mesh
        if key not in _shapes:
            _shapes[key] = abstract_state(model, optimizer, config, mesh)
        return _shapes[key]

    def step(model: Any, optimizer: Any, schedule: Any, config: TrainConfig, **placed: Any) -> Any:
        key = _compiled(config), placed["mesh"]
        if key not in _steps:
            _steps[key] = make_train_step(model, optimizer, schedule, config, **placed)
        return _steps[key]

    def start(model: Any, optimizer: Any, config: TrainConfig, abstract: Any) -> Any:
        key = _compiled(config)
        if key not in _starts:
            _starts[key] = jax.device_get(new_state(model, optimizer, config, abstract))
        return jax.device_put(_starts[key], jax.tree.map(lambda leaf: leaf.sharding, abstract))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grain_jax.train, "choose_mesh", make)
        patch.setattr(grain_jax.train, "abstract_state", shapes)
        patch.setattr(grain_jax.train, "make_train_step", step)
        patch.setattr(grain_jax.train, "new_state", start)
        yield


def _compiled(config: TrainConfig) -> str:
    """The settings without those that only the loop around the step reads."""
    return config_to_json(
        dataclasses.replace(
            config,
            name="",
            max_steps_this_run=0,
            checkpoint=CheckpointConfig(),
            evaluation=EvaluationConfig(),
            logging=LoggingConfig(),
        )
    )
