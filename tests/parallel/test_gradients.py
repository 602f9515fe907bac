"""The loss and gradient of a step are the same on every mesh, with dropout and micro-batches.

The gradients are those of `make_train_step` itself: an optimizer keeps them, so that nothing that
follows (a division by their size, as Adam's) hides or enlarges a difference. Compared with one
device that takes the batch in one piece, in float32, each parameter's gradient entry by entry, in
parts of that parameter's largest entry. Largest entries and not norms, as an error in one row of a
matrix (a shard that is missing, a row counted twice) is small in a norm over many rows. Not entry
by entry in parts of itself: entries near 0 are differences of larger numbers.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest
from fake_devices import gpus
from jax.sharding import Mesh
from tiny_run import means, random_batch, random_state, tiny_config

from grain_jax.config import MeshConfig, TrainConfig
from grain_jax.models.image_text import model_of_run
from grain_jax.parallel import sharding
from grain_jax.parallel.presets import choose_mesh
from grain_jax.training.optimizer import make_schedule
from grain_jax.training.state import abstract_state
from grain_jax.training.step import make_train_step

BATCH = random_batch(5)
MESHES = (  # preset, slices, and the sizes that 8 devices get
    ("dp", 1, (8, 1, 1)),
    ("fsdp", 1, (1, 8, 1)),
    ("fsdp_tp", 1, (1, 2, 4)),
)
QUICK = ("fsdp_tp", 2, (2, 2, 2), 0.3, 2)  # all axes, slices, dropout and micro-batches
CASES = (
    *((*mesh, dropout, chunks) for mesh in MESHES for dropout in (0.0, 0.3) for chunks in (1, 2)),
    ("fsdp", 2, (2, 4, 1), 0.0, 1),
    ("fsdp", 2, (2, 4, 1), 0.3, 2),
    QUICK,
)
LOSSES = ("loss", "contrastive", "box_l1", "box_giou", "region", "grad_norm")


def config_of(preset: str, *, dropout: float, chunks: int) -> TrainConfig:
    config = tiny_config()
    config.mesh = MeshConfig(preset=preset)
    config.model.decoder.dropout = dropout
    config.optim.grad_cache_chunks = chunks
    return config


def mesh_of(config: TrainConfig, *, slices: int) -> Mesh:
    """As a run lays it over 8 devices of so many slices, with a fake CPU in each one's place."""
    if slices == 1:
        return choose_mesh(config)
    places = choose_mesh(config, gpus(slices, 8 // slices))
    devices = np.array(jax.devices())[np.vectorize(lambda device: device.id)(places.devices)]
    return Mesh(devices, places.axis_names, axis_types=places.axis_types)


def step_of(config: TrainConfig, mesh: Mesh) -> tuple[dict[str, float], Any]:
    """Metrics and gradient of one step."""
    model = model_of_run(config)
    keeping = optax.trace(decay=0.0)  # its state is the gradient
    abstract = abstract_state(model, keeping, config, mesh)
    schedule = make_schedule(config.optim, steps=config.steps, warmup_steps=1)
    step = make_train_step(model, keeping, schedule, config, mesh=mesh, abstract=abstract)
    state = jax.device_put(
        random_state(abstract), jax.tree.map(lambda leaf: leaf.sharding, abstract)
    )
    with sharding.use_mesh(mesh):
        placed = sharding.put_batch(BATCH, mesh, batch_size=len(BATCH.images))
        state, metrics = step(state, placed)
    return means(metrics), jax.device_get(state.opt_state.trace)


@functools.cache
def on_one_device(dropout: float) -> tuple[dict[str, float], Any]:
    config = config_of("dp", dropout=dropout, chunks=1)
    return step_of(config, choose_mesh(config, jax.devices()[:1]))


@pytest.mark.parametrize(
    ("preset", "slices", "shape", "dropout", "chunks"),
    [case if case == QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_losses_and_gradients_of_a_preset_are_those_of_one_device(
    preset, slices, shape, dropout, chunks
):
    """To 1e-5; what was measured of float32 and another order of its sums is 3e-6 at most."""
    config = config_of(preset, dropout=dropout, chunks=chunks)
    mesh = mesh_of(config, slices=slices)
    assert mesh.devices.shape == shape
    found, gradient = step_of(config, mesh)
    expected, gradient_of_one = on_one_device(dropout)
    for name in LOSSES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)

    def compare(path, entries, entries_of_one):
        largest = np.abs(entries_of_one).max()
        # 0: the first norm of the decoder, whose input is 0. No other is what rounding leaves of 0.
        assert largest == 0 or largest > 1e-3
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(
            entries, entries_of_one, rtol=0, atol=1e-5 * largest, err_msg=name
        )

    jax.tree_util.tree_map_with_path(compare, gradient, gradient_of_one)


@pytest.mark.slow
def test_dropout_changes_the_gradient():
    """Else the comparisons above would say nothing of how it is drawn on a mesh."""
    gradients = [
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(on_one_device(rate)[1])])
        for rate in (0.0, 0.3)
    ]
    assert np.abs(gradients[1] - gradients[0]).max() > 0.1 * np.abs(gradients[0]).max()
