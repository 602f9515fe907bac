"""Where arrays live: mesh sizes, parameter shardings, and losses that no mesh changes."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest
from fake_devices import FakeDevice, gpus
from jax.sharding import Mesh
from tiny_run import TinyRun, averaged_config, random_batch, tiny_config

from grain_jax.config import MeshConfig
from grain_jax.parallel import sharding
from grain_jax.training.state import new_state

MESHES_OF_8 = [
    (data, fsdp, 8 // data // fsdp)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if data * fsdp <= 8
]
QUICK = (2, 2, 2)  # all axes
BATCHES = [random_batch(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def one_device():
    run = TinyRun(averaged_config())
    return run.train(BATCHES), jax.device_get(run.state.opt_state[1].mu)


@pytest.mark.parametrize(
    "shape",
    [
        shape if shape == QUICK else pytest.param(shape, marks=pytest.mark.slow)
        for shape in MESHES_OF_8
    ],
)
def test_every_mesh_of_8_trains_as_one_device(one_device, shape):
    run = TinyRun(averaged_config(), mesh=MeshConfig(*shape), devices=8)
    assert_trains_as(run, *one_device)


@pytest.mark.slow
def test_dropout_scanned_and_recomputed_layers_are_the_same_in_micro_batches_on_a_mesh():
    config = tiny_config()
    config.model.decoder.dropout = 0.3
    config.model.vision.depth = 2
    config.model.scan_layers, config.model.remat = True, "dots"
    in_parts = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, grad_cache_chunks=2)
    )
    runs = [TinyRun(config), TinyRun(in_parts, mesh=MeshConfig(2, 2, 2), devices=8)]
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


@pytest.mark.slow
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


def hosts(num_slices):
    return [FakeDevice(i << 17, i, i, "cpu", "cpu") for i in range(num_slices)]


def tpus(num_slices):
    """Slices of 2 x 4 chips of two hosts each, as v6e-8 has them."""
    return [
        FakeDevice(
            100_000 * part + chip,
            2 * part + chip // 4,
            part,
            "tpu",
            "TPU v6 lite",
            (chip % 2, chip // 2, 0),
        )
        for part in range(num_slices)
        for chip in range(8)
    ]


@pytest.mark.parametrize(
    ("devices", "config", "shape"),
    [
        (gpus(2, 8), MeshConfig(), (16, 1, 1)),
        (gpus(2, 8), MeshConfig(fsdp=8), (2, 8, 1)),
        (gpus(4, 4), MeshConfig(fsdp=2, tensor=2), (4, 2, 2)),
        (gpus(2, 18, 4), MeshConfig(fsdp=72), (2, 72, 1)),  # two NVLink domains of 18 nodes
        (hosts(2), MeshConfig(), (2, 1, 1)),
        (tpus(2), MeshConfig(fsdp=4), (4, 4, 1)),
        (tpus(3), MeshConfig(fsdp=4, tensor=2), (3, 4, 2)),
    ],
)
def test_only_data_crosses_between_slices(devices, config, shape):
    # The order in which processes report their devices says nothing of the slices.
    shuffled = [devices[i] for i in np.random.default_rng(0).permutation(len(devices))]
    for given in (devices, shuffled):
        mesh = sharding.make_mesh(config, given)
        assert mesh.devices.shape == shape
        assert set(mesh.devices.flat) == set(devices)
        for group in mesh.devices:  # fsdp x tensor
            assert len({device.slice_index for device in group.flat}) == 1
        along = [group.flat[0].slice_index for group in mesh.devices]
        assert along == sorted(along)  # slice after slice: neighbours along data are close


def test_a_slice_over_several_hosts_is_one():
    """Two nodes that NVLink joins have one index: fsdp over both is what they are there for."""
    nodes = gpus(1, 8)
    assert sharding.make_mesh(MeshConfig(data=1, fsdp=8), nodes).devices.shape == (1, 8, 1)


def test_fsdp_and_tensor_that_would_cross_slices_are_refused():
    for config in (MeshConfig(data=1, fsdp=16), MeshConfig(fsdp=4, tensor=4)):
        with pytest.raises(ValueError, match=r"16 devices into each fsdp x tensor.*divisor of 8"):
            sharding.make_mesh(config, gpus(2, 8))
    with pytest.raises(ValueError, match=r"2 slices .* of 6.*divisor of 6"):
        sharding.make_mesh(MeshConfig(fsdp=4), gpus(2, 6))
    with pytest.raises(ValueError, match="divisor of 1 and"):
        sharding.make_mesh(MeshConfig(data=1, fsdp=2), hosts(2))


def test_unequal_slices_and_processes_are_refused_with_their_sizes():
    with pytest.raises(ValueError, match="8 in slice 0, 7 in slice 1"):
        sharding.make_mesh(MeshConfig(), gpus(2, 8)[:-1])
    with pytest.raises(ValueError, match="2 of process 0, 1 of process 1"):
        sharding.make_mesh(MeshConfig(), gpus(1, 2, 2)[:-1])


def test_a_grid_of_chips_that_the_sizes_do_not_fit_is_refused():
    side = [
        FakeDevice(i, i // 4, 0, "tpu", "TPU v4", (i % 4, i // 4, 0)) for i in range(16)
    ]  # 4 x 4 chips
    with pytest.raises(ValueError, match=r"data=2 x fsdp=8 x tensor=1 cannot be laid over"):
        sharding.make_mesh(MeshConfig(fsdp=8), side)


def test_a_parameter_that_cannot_be_split_is_named():
    config = tiny_config()
    config.model.vision.num_heads = config.model.decoder.num_heads = 2
    with pytest.raises(ValueError, match=r"mesh.tensor = 8 cannot split parameter .*attention"):
        TinyRun(config, mesh=MeshConfig(data=1, tensor=8), devices=8)


def test_a_batch_that_cannot_be_split_is_refused():
    config = tiny_config()
    config.optim.grad_cache_chunks = 2
    sharding.check_batch(config, sharding.mesh_shape(config.mesh, 8))
    config.optim.grad_cache_chunks = 4
    with pytest.raises(ValueError, match="multiple of 32"):
        sharding.check_batch(config, sharding.mesh_shape(config.mesh, 8))


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
