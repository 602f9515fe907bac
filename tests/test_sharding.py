"""Where arrays live: mesh sizes, parameter shardings, and losses that no mesh changes."""

import types

import jax
import numpy as np
import pytest
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
    history, mean_gradient = one_device
    run = TinyRun(tiny_config(), mesh=MeshConfig(*shape), devices=8)
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


def fake_mesh(processes):
    """Stands in for a mesh over many processes: `processes` is the process of each device."""
    devices = np.vectorize(lambda p: types.SimpleNamespace(process_index=p), otypes=[object])
    array = devices(np.array(processes))
    return types.SimpleNamespace(
        devices=array, shape=dict(zip(sharding.AXES, array.shape, strict=True))
    )


def part_of(monkeypatch, processes, process):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    return sharding.batch_part.__wrapped__(fake_mesh(processes))


def test_each_process_loads_the_rows_its_devices_hold(monkeypatch):
    one_each = [[[0], [0]], [[1], [1]]]  # data=2, fsdp=2
    assert part_of(monkeypatch, one_each, 0) == (0, 2)
    assert part_of(monkeypatch, one_each, 1) == (1, 2)
    tensor_across = [[[0, 1]], [[2, 3]]]  # data=2, tensor=2 over four processes
    assert [part_of(monkeypatch, tensor_across, p) for p in range(4)] == [
        (0, 2),
        (0, 2),
        (1, 2),
        (1, 2),
    ]
    with pytest.raises(ValueError, match="unevenly"):
        part_of(monkeypatch, [[[0]], [[0]], [[1]]], 0)
