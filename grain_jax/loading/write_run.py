"""Write the weights of any model as a run folder."""

import copy
import dataclasses
from pathlib import Path

import jax

from grain_jax.config import MeshConfig
from grain_jax.config.cli import config_to_json
from grain_jax.models.bundle import ModelBundle
from grain_jax.parallel.sharding import make_mesh
from grain_jax.training.checkpoint import Checkpoints
from grain_jax.training.optimizer import make_optimizer
from grain_jax.training.state import abstract_state, new_state


def write_run(loaded: ModelBundle, folder: Path) -> None:
    """Writes a run folder with `loaded` as step 0, for `evaluate`, `export`, `--pretrained`."""
    config = copy.deepcopy(loaded.config)
    config.mesh, config.optim.ema_decay = (
        MeshConfig(),
        0.0,
    )  # one device; the weights are averaged already
    optimizer = make_optimizer(config.optim)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    abstract = abstract_state(loaded.model, optimizer, config, mesh)
    state = new_state(loaded.model, optimizer, config, abstract)
    placed = jax.tree.map(
        lambda value, leaf: jax.device_put(value, leaf.sharding), loaded.params, abstract.params
    )
    metadata = dataclasses.replace(loaded, config=config).metadata()
    checkpoints = Checkpoints(folder, config.checkpoint, metadata=metadata)
    checkpoints.save(dataclasses.replace(state, params=placed), step=0)
    checkpoints.wait()
    checkpoints.close()
    (folder / "config.json").write_text(config_to_json(config), encoding="utf-8")
