"""Sizes of the mesh by name, on one slice and on several."""

import functools
from typing import Any

import jax
import pytest
from tiny_run import tiny_config

from grain_jax.config import MeshConfig, TrainConfig, vision_variant
from grain_jax.config.validation import validate
from grain_jax.models.image_text import build_model
from grain_jax.parallel import sharding
from grain_jax.parallel.presets import choose_mesh, choose_sizes
from grain_jax.training.state import abstract_boxed_params


@functools.cache
def parameters(size: str) -> Any:
    """Shapes of the model, traced once: they depend on no mesh."""
    config = published("auto", size)
    return abstract_boxed_params(build_model(config.model), config)


def published(preset: str, size: str = "B/16") -> TrainConfig:
    config = TrainConfig(mesh=MeshConfig(preset=preset))
    config.model.vision = vision_variant(size)
    return config


@pytest.mark.parametrize(
    ("preset", "slices", "size", "shape"),
    [
        ("auto", 1, 8, (8, 1, 1)),
        ("auto", 4, 8, (32, 1, 1)),  # GPU nodes
        ("auto", 1, 16, (1, 16, 1)),
        ("auto", 1, 256, (16, 16, 1)),
        ("auto", 2, 256, (32, 16, 1)),
        ("auto", 1, 24, (3, 8, 1)),
        ("dp", 1, 256, (256, 1, 1)),
        ("fsdp", 1, 8, (1, 8, 1)),
        ("fsdp", 4, 8, (4, 8, 1)),  # hybrid: only data crosses the network
        ("fsdp", 1, 512, (32, 16, 1)),
        ("fsdp_tp", 1, 8, (1, 2, 4)),
        ("fsdp_tp", 2, 16, (2, 4, 4)),
    ],
)
@pytest.mark.parametrize("model", ["B/16", "L/14"])
def test_a_preset_has_the_sizes_that_the_model_can_be_split_by(preset, slices, size, shape, model):
    config = published(preset, model)
    sizes = choose_sizes(config, num_slices=slices, slice_size=size)
    sharding.check_slices(sizes, num_slices=slices, slice_size=size)
    found = sharding.mesh_shape(sizes, slices * size)
    assert found == shape
    mesh = jax.sharding.AbstractMesh(found, sharding.AXES)
    sharding.parameter_shardings(parameters(model), mesh)  # raises where one cannot be split


def test_sizes_that_are_given_count_and_a_preset_beside_them_is_refused():
    config = published("auto")
    config.mesh = MeshConfig(fsdp=2)
    assert choose_sizes(config, num_slices=1, slice_size=64) == config.mesh
    config.mesh = MeshConfig(preset="fsdp", fsdp=2)
    with pytest.raises(ValueError, match=r"a preset chooses the sizes"):
        validate(config)


def test_a_model_of_odd_widths_is_split_by_what_divides_them():
    config = published("auto")
    config.model.text.width = 520
    assert choose_sizes(config, num_slices=1, slice_size=64).fsdp == 8
    config.model.text.width = 515
    assert choose_sizes(config, num_slices=1, slice_size=64).fsdp == 1
    config.mesh.preset = "fsdp"
    with pytest.raises(ValueError, match=r"nothing to split.*515"):
        choose_sizes(config, num_slices=1, slice_size=64)


def test_layers_are_split_by_what_divides_heads_mlps_and_vocabulary():
    config = published("fsdp_tp")
    config.model.text.vocab_size = 30522
    assert choose_sizes(config, num_slices=1, slice_size=8).tensor == 2
    config.model.decoder.mlp_dim = 2049
    with pytest.raises(ValueError, match=r"nothing to split.*2049"):
        choose_sizes(config, num_slices=1, slice_size=8)


@pytest.mark.parametrize("refused", [{16}, {16, 8}, {16, 8, 4, 2}])
def test_a_grid_of_chips_that_has_no_such_ring_gets_smaller_groups(refused, monkeypatch):
    """8 x 8 x 8 chips of v5p have none of 16."""
    made = []

    def make(sizes, devices):
        if sizes.fsdp in refused:
            raise ValueError(f"cannot be laid over this TPU's grid: {sizes.fsdp}")
        made.append(sizes)
        return sizes

    monkeypatch.setattr(sharding, "make_mesh", make)
    devices = [type("Chip", (), {"process_index": 0, "slice_index": None})() for _ in range(64)]
    largest = max({16, 8, 4, 2, 1} - refused)
    assert choose_mesh(published("auto"), devices).fsdp == largest
    if largest == 1:
        with pytest.raises(ValueError, match="cannot be laid over this TPU's grid: 16"):
            choose_mesh(published("fsdp"), devices)


def test_the_mesh_of_a_run_has_its_preset():
    config = tiny_config()
    config.mesh = MeshConfig(preset="fsdp")
    assert dict(choose_mesh(config).shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert dict(choose_mesh(config, jax.devices()[:2]).shape) == {"data": 1, "fsdp": 2, "tensor": 1}
    with pytest.raises(ValueError, match=r"mesh\.preset='dp'"):
        choose_mesh(config, jax.devices()[:1])
