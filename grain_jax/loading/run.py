"""The format of this project's own training: a run folder, its checkpoints read with Orbax."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from grain_jax.config import MeshConfig
from grain_jax.config.cli import config_to_json
from grain_jax.formats.format import Export
from grain_jax.models.bundle import ModelBundle
from grain_jax.training.run_folder import is_run


class Run:
    """A run folder, the only format with several steps and with parameters on a mesh."""

    title = "a run folder"
    weights = ()
    dtypes = ("float32",)

    def recognises(self, path: Path) -> bool:
        return is_run(path)

    def read(
        self, path: Path, *, step: int | None = None, best: bool = False, mesh: Mesh | None = None
    ) -> ModelBundle:
        """The model at a step (default: the newest; `best`: of the best metric), over a mesh."""
        from grain_jax.training import checkpoint  # with Orbax, which no other format needs

        return checkpoint.load(path, step=step, best=best, mesh=mesh)

    def write(self, loaded: ModelBundle, folder: Path, *, dtype: str = "float32") -> None:
        write_run(loaded, folder)

    def outputs(self, folder: Path, *, dtype: str) -> None:
        return None

    def finish(self, loaded: ModelBundle, export: Export) -> Sequence[str]:
        return (
            f"python -m grain_jax.evaluate --checkpoint={export.name} --data=... measures it;",
            f"python -m grain_jax.train --config=... --pretrained={export.name} trains from it.",
        )


def write_run(loaded: ModelBundle, folder: Path) -> None:
    """Writes a run folder with `loaded` as step 0, for `evaluate`, `export`, `--pretrained`."""
    from grain_jax.parallel.sharding import make_mesh
    from grain_jax.training.checkpoint import Checkpoints
    from grain_jax.training.optimizer import make_optimizer
    from grain_jax.training.state import abstract_state, state_with

    config = copy.deepcopy(loaded.config)
    # One device; the weights are averaged already.
    config.mesh, config.optim.ema_decay = MeshConfig(), 0.0
    optimizer = make_optimizer(config.optim)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    abstract = abstract_state(loaded.model, optimizer, config, mesh)
    placed = jax.tree.map(
        lambda value, leaf: jax.device_put(value, leaf.sharding), loaded.params, abstract.params
    )
    state = state_with(placed, optimizer, config, abstract)
    metadata = dataclasses.replace(loaded, config=config).metadata()
    checkpoints = Checkpoints(folder, config.checkpoint, metadata=metadata)
    checkpoints.save(state, step=0)
    checkpoints.wait()
    checkpoints.close()
    (folder / "config.json").write_text(config_to_json(config), encoding="utf-8")
