"""Logits in tiles round a ring of devices: equal to those all at once, in memory that is flat."""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from places import HELPERS
from ring_memory import Shapes, compiled, losses, sigmoid, temporary_bytes
from training_process import environment

from grain_jax.config import MeshConfig
from grain_jax.losses.log_sum_exp import DENSE, LogitsForm
from grain_jax.losses.ring import tile_size
from grain_jax.parallel.sharding import make_mesh

B, M, E = 16, 3, 8
DESCRIBED = np.arange(M)[None] < np.r_[3, 2, 0, 1, 3, 3, 2, 1, 0, 0, 3, 1, 2, 2, 3, 3][:, None]


def arguments(*, scale=8.0, described=DESCRIBED, duplicates=True):
    """Embeddings, scale and bias; then keys and masks."""
    rng = np.random.default_rng(0)
    embeddings = [
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((B, E), (B, E), (B, M, E), (B, M, E))
    ]
    keys = (
        rng.integers(0, 9 if duplicates else 2**32, B, np.uint32),
        rng.integers(0, 20 if duplicates else 2**32, (B, M), np.uint32),
    )
    matched = described & (rng.random((B, M)) < 0.8)
    # As the official code labels them, where a region before has no area.
    label = np.maximum(np.cumsum(matched, axis=1) - 1, 0)
    return (*embeddings, jnp.asarray(scale), jnp.asarray(-6.0)), tuple(
        map(jnp.asarray, (*keys, matched, described, label))
    )


@functools.cache
def values_and_gradients(form):
    """Compiled once for all embeddings and targets."""

    def total(embeddings, targets):
        found = losses(form, embeddings, targets) + sigmoid(form, embeddings, targets)
        return sum(found), found

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"duplicates": False},
        {"described": np.zeros((B, M), bool)},
        {"scale": 100.0},  # losses of up to 100, gradients that have become 0
    ],
    ids=["duplicates", "distinct", "no regions", "large scale"],
)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 4, 1),
        pytest.param((8, 1, 1), marks=pytest.mark.slow),
        pytest.param((1, 4, 2), marks=pytest.mark.slow),
    ],
)
def test_around_a_mesh_they_are_those_of_one_device(shape, changes):
    embeddings, targets = arguments(**changes)
    (_, expected), expected_gradients = values_and_gradients(DENSE)(embeddings, targets)
    mesh = make_mesh(MeshConfig(*shape))
    axes = tuple(axis for axis in ("data", "fsdp") if mesh.shape[axis] > 1)
    rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((axes,), ()))
    put = [
        [jax.device_put(leaf, rows if leaf.ndim else whole) for leaf in part]
        for part in (embeddings, targets)
    ]
    with jax.set_mesh(mesh):
        (_, found), gradients = values_and_gradients(LogitsForm(True, axes))(*put)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_precision_is_that_of_every_product():
    """CPUs compute in full float32 whatever is asked for, so the program is what tells."""
    embeddings, targets = arguments()
    for tiled in (False, True):
        for precision in ("highest", "default"):
            form = LogitsForm(tiled, (), precision)

            def total(*embeddings, form=form):
                return sum(losses(form, embeddings, targets) + sigmoid(form, embeddings, targets))

            text = jax.jit(jax.grad(total, argnums=range(6))).lower(*embeddings).as_text()
            products = [line for line in text.splitlines() if "dot_general" in line]
            assert len(products) >= 12
            assert all(("HIGHEST" in line) == (precision == "highest") for line in products)


def test_tiles_divide_the_columns_and_are_no_slivers():
    sizes = {length: tile_size(length) for length in (1, 640, 1024, 5 * 640, 1031, 2 * 1031)}
    assert sizes == {1: 1, 640: 640, 1024: 1024, 3200: 800, 1031: 1031, 2062: 2062}


SMALL = Shapes(rows=8, regions=2, embed=16)


@pytest.mark.slow
@pytest.mark.parametrize("of", [losses, sigmoid])
def test_memory_does_not_grow_with_the_devices(of):
    """Of the compiled gradient, rows of a device the same."""
    tiled, dense = (
        [temporary_bytes(LogitsForm(tiled), SMALL, jax.devices()[:count], of) for count in (4, 8)]
        for tiled in (True, False)
    )
    assert tiled[1] < 1.1 * tiled[0]
    assert dense[1] > 1.5 * dense[0]  # so that it is memory of logits that is measured


def test_no_device_has_an_array_of_the_whole_batch():
    """Of the sigmoid loss and its gradient: by the shapes in what is compiled for a device."""
    shapes, devices = Shapes(rows=11, regions=2, embed=16), jax.devices()[:8]
    tiled, dense = (
        compiled(LogitsForm(form), shapes, devices, sigmoid).as_text() for form in (True, False)
    )
    whole = re.compile(r"\[(88,16|88|11,88|88,11)\]")  # 8 devices of 11 rows
    assert not whole.search(tiled)
    assert whole.search(dense)
    assert "collective-permute" in tiled
    assert "all-gather" not in tiled


@pytest.mark.slow
@pytest.mark.multiprocess
def test_memory_is_flat_from_8_to_512_devices():
    output = subprocess.run(
        [sys.executable, str(HELPERS / "ring_memory.py"), "8", "64", "512"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    ).stdout
    lines = [[int(number) for number in line.split()] for line in output.splitlines()]
    assert [count for count, *_ in lines] == [8, 64, 512]
    for found in list(zip(*lines, strict=True))[1:]:  # the softmax losses, and the sigmoid loss
        assert max(found) < 1.1 * min(found)
