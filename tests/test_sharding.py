"""Where arrays live: mesh sizes, parameter shardings, and losses that no mesh changes."""

import inspect

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny_run import TinyRun, random_batch, tiny_config

from grain_jax.config import MeshConfig
from grain_jax.training import sharding
from grain_jax.training.state import new_state

MESHES_OF_8 = [
    (data, fsdp, 8 // data // fsdp)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if data * fsdp <= 8
]
BATCHES = [random_batch(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def one_device():
    run = TinyRun(tiny_config())
    return run.train(BATCHES), jax.device_get(run.state.opt_state[1].mu)


@pytest.mark.parametrize("shape", MESHES_OF_8)
def test_every_mesh_of_8_trains_as_one_device(one_device, shape):
    run = TinyRun(tiny_config(), mesh=MeshConfig(*shape), devices=8)
    assert_trains_as(run, *one_device)


def test_dropout_scanned_and_recomputed_layers_are_the_same_on_a_mesh():
    config = tiny_config()
    config.model.decoder.dropout = 0.3
    config.model.vision.depth = 2
    config.model.scan_layers, config.model.remat = True, "dots"
    runs = [TinyRun(config), TinyRun(config, mesh=MeshConfig(2, 2, 2), devices=8)]
    # JAX's own attention promotes, and recomputing traces it again outside of our exception for it.
    with jax.numpy_dtype_promotion("standard"):
        history = runs[0].train(BATCHES)
        assert_trains_as(runs[1], history, jax.device_get(runs[0].state.opt_state[1].mu))


def assert_trains_as(run, history, mean_gradient):
    for expected, found in zip(history, run.train(BATCHES), strict=True):
        for name in ("loss", "contrastive", "box_l1", "box_giou", "region", "grad_norm"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
    found = jax.tree.leaves(run.state.opt_state[1].mu)
    for expected, leaf in zip(jax.tree.leaves(mean_gradient), found, strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-5)


def test_a_run_starts_the_same_on_every_mesh():
    started = []
    for shape, devices in (((1, 1, 1), 1), ((2, 2, 2), 8)):
        run = TinyRun(tiny_config(), mesh=MeshConfig(*shape), devices=devices)
        state = new_state(run.model, run.optimizer, run.config, run.abstract)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(
            lambda leaf: leaf.sharding, run.abstract
        )
        started.append(jax.device_get(state))
    jax.tree.map(np.testing.assert_array_equal, *started)


def test_parameters_are_split_as_the_table_says():
    run = TinyRun(tiny_config(), mesh=MeshConfig(data=2, fsdp=2, tensor=2), devices=8)
    kernel = run.state.params["vision"]["layer_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (kernel.shape[0] // 2, kernel.shape[1] // 2)
    first_moment = run.state.opt_state[1].mu["vision"]["layer_0"]["mlp"]["fc1"]["kernel"]
    assert first_moment.sharding.is_equivalent_to(kernel.sharding, kernel.ndim)
    token = run.state.params["text"]["token"]
    assert token.sharding.shard_shape(token.shape) == (32, 8)
    assert run.state.step.sharding.is_fully_replicated


def test_ten_meshes_were_meant():
    assert len(MESHES_OF_8) == 10


def test_a_mesh_that_does_not_fit_is_refused():
    assert sharding.mesh_shape(MeshConfig(data=-1, fsdp=2, tensor=2), 8) == (2, 2, 2)
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        sharding.mesh_shape(MeshConfig(data=3), 8)
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        sharding.mesh_shape(MeshConfig(data=-1, tensor=3), 8)


def test_a_parameter_that_cannot_be_split_is_named():
    config = tiny_config()
    config.model.vision.num_heads = config.model.decoder.num_heads = 2
    with pytest.raises(ValueError, match=r"mesh.tensor = 8 cannot split parameter .*attention"):
        TinyRun(config, mesh=MeshConfig(data=1, tensor=8), devices=8)


def test_a_batch_that_cannot_be_split_is_refused():
    config = tiny_config()
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:8])
    config.optim.accumulate = 2
    sharding.check_batch(config, mesh)
    config.optim.accumulate = 4
    with pytest.raises(ValueError, match="multiple of 32"):
        sharding.check_batch(config, mesh)


def test_host_devices_are_as_many_as_the_mesh_names():
    config = tiny_config()
    config.mesh = MeshConfig()
    assert sharding.num_cpu_devices(config) == 1
    config.mesh.tensor = 2
    assert sharding.num_cpu_devices(config) == 2
    config.mesh = MeshConfig(data=2, fsdp=1, tensor=4)
    assert sharding.num_cpu_devices(config) == 8
    config.mesh.cpu_devices = 3
    assert sharding.num_cpu_devices(config) == 3


class OneProcessOfSeveral:
    """Stands in for a sharding of which this process holds the given slices of rows."""

    def __init__(self, *slices):
        self._slices = slices

    def addressable_devices_indices_map(self, shape):
        return {device: (rows,) for device, rows in enumerate(self._slices)}


def test_a_process_makes_the_rows_that_its_devices_hold():
    local_rows = inspect.unwrap(sharding.local_rows)  # its types are checked under test
    assert local_rows(OneProcessOfSeveral(slice(2, 4), slice(2, 4)), 8) == (2, 3)  # tensor = 2
    assert local_rows(OneProcessOfSeveral(slice(6, 8), slice(0, 2)), 8) == (0, 1, 6, 7)
    assert local_rows(OneProcessOfSeveral(slice(None)), 3) == (0, 1, 2)


def test_the_rows_of_a_device_are_found_among_those_of_its_process():
    rows = (0, 1, 6, 7)
    assert sharding.place_of(slice(6, 8), rows, 8) == slice(2, 4)
    assert sharding.place_of(slice(0, 2), rows, 8) == slice(0, 2)
    assert sharding.place_of(slice(None), range(8), 8) == slice(0, 8)


def test_rows_arrive_in_their_order_whatever_the_order_of_the_devices():
    devices = np.array(jax.devices())[[5, 2, 7, 0, 1, 6, 3, 4]]
    mesh = Mesh(devices.reshape(2, 2, 2), sharding.AXES)
    rows = np.arange(24.0).reshape(8, 3)
    placed = sharding.put_rows(rows, sharding.batch_sharding(mesh), 8)
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
