"""Weights whose gradients are float32 where the model computes in bfloat16."""

import json
import subprocess
import sys
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import HELPERS
from tiny_run import random_batch, tiny_config
from training_process import environment

from grain_jax.models.image_text import abstract_params, build_model
from grain_jax.models.layers import Block, apply_layers, torch_init
from grain_jax.models.weights import as_addend, as_weight, product

BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32


def normal(seed, *shape, dtype=FLOAT32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def of_product(x, kernel, dy, gradient_dtype):
    """(y, dx, dkernel) as a model in bfloat16 has them."""

    def multiply(x, kernel):
        return product(x, as_weight(kernel, BFLOAT16, gradient_dtype))

    y, backward = jax.vjp(multiply, x, kernel)
    return y, *backward(dy)


@pytest.mark.parametrize("shape", [(24, 40), (4, 6, 2, 20)])
def test_a_product_is_the_same_and_its_gradient_exact(shape):
    x, kernel = normal(0, 512, 24, dtype=BFLOAT16), normal(1, *shape)
    dy = normal(2, 512, 40, dtype=BFLOAT16)
    y, dx, rounded = of_product(x, kernel, dy, None)
    same, dx_same, dkernel = of_product(x, kernel, dy, FLOAT32)
    np.testing.assert_array_equal(same, y)
    np.testing.assert_array_equal(dx_same, dx)
    assert (same.dtype, dx_same.dtype, dkernel.dtype) == (BFLOAT16, BFLOAT16, FLOAT32)
    expected = (np.asarray(x, np.float64).T @ np.asarray(dy, np.float64)).reshape(shape)
    np.testing.assert_allclose(dkernel, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(rounded - expected).max() > 100 * np.abs(dkernel - expected).max()


def test_rows_may_have_several_axes():
    x, kernel, dy = normal(0, 2, 3, 8, dtype=BFLOAT16), normal(1, 8, 5), normal(2, 2, 3, 5)
    dy = dy.astype(BFLOAT16)
    y, dx, dkernel = of_product(x, kernel, dy, FLOAT32)
    flat = of_product(x.reshape(6, 8), kernel, dy.reshape(6, 5), FLOAT32)
    assert (y.shape, dx.shape) == ((2, 3, 5), (2, 3, 8))
    np.testing.assert_allclose(dkernel, flat[2], rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 8), (8,), (1, 6, 8)])
def test_what_is_added_is_the_same_and_its_gradient_exact(shape):
    x, value, dy = normal(0, 300, 6, 8, dtype=BFLOAT16), normal(1, *shape), normal(2, 300, 6, 8)
    dy = dy.astype(BFLOAT16)

    def added(value, gradient_dtype):
        return x + as_addend(value, x.shape, BFLOAT16, gradient_dtype)

    y = added(value, None)
    same, backward = jax.vjp(lambda value: added(value, FLOAT32), value)
    np.testing.assert_array_equal(same, y)
    exact = np.asarray(dy, np.float64).sum(0, keepdims=True)
    exact = exact.sum(1)[0] if len(shape) == 1 else exact.reshape(shape)
    np.testing.assert_allclose(backward(dy)[0], exact, rtol=1e-5, atol=1e-4)


def test_in_float32_the_choice_changes_nothing():
    x, kernel = normal(0, 4, 8), normal(1, 8, 5)
    made = [
        str(jax.make_jaxpr(lambda x, k, t=t: product(x, as_weight(k, FLOAT32, t)))(x, kernel))
        for t in (None, FLOAT32)
    ]
    assert made[0] == made[1]
    assert "custom_vjp" not in made[0]
    config = tiny_config().model
    assert config.dtype == "float32"
    config.gradient_dtype = "float32"
    assert build_model(config).gradient_dtype is None
    config.dtype = "bfloat16"
    assert build_model(config).gradient_dtype is FLOAT32


class Stack(nn.Module):
    """Two layers of a tower."""

    scan: bool
    remat: str
    gradient_dtype: Any

    @nn.compact
    def __call__(self, x):
        return apply_layers(
            Block,
            x,
            depth=2,
            scan=self.scan,
            remat=self.remat,
            num_heads=2,
            mlp_dim=64,
            activation="gelu",
            eps=1e-6,
            initializers=torch_init(32, 64),
            attention="xla",
            dtype=BFLOAT16,
            gradient_dtype=self.gradient_dtype,
        )[0]


def bytes_kept(scan, remat, gradient_dtype):
    """For the backward pass."""
    model = Stack(scan, remat, gradient_dtype)
    x = jax.ShapeDtypeStruct((4, 24, 32), BFLOAT16)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    with jax.numpy_dtype_promotion("standard"):  # for the gradient of jax's own attention
        _, backward = jax.eval_shape(lambda *given: jax.vjp(model.apply, *given), params, x)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("gradient_dtype", [None, FLOAT32])
def test_recomputation_of_all_but_products_keeps_products(scan, gradient_dtype):
    kept = {remat: bytes_kept(scan, remat, gradient_dtype) for remat in ("full", "dots")}
    # qkv, out and fc1 of two layers, in bfloat16; of fc2 the backward pass reads nothing
    products = 2 * 4 * 24 * (96 + 32 + 64) * 2
    assert kept["dots"] - kept["full"] == products


def settings_of(kind):
    config = tiny_config().model
    config.dtype, config.attention = "bfloat16", "xla"
    if kind == "clip":
        config.type, config.vision.pooling, config.text.projection_bias = "clip", "map", True
    if kind == "scanned":
        config.scan_layers, config.vision.depth, config.remat = True, 2, "dots"
    config.vision.qk_norm = True
    return config


def outputs_and_gradients(config, params):
    batch, model = jax.tree.map(jnp.asarray, random_batch()), build_model(config)
    images = normal(5, 16, 16, 16, 3, dtype=BFLOAT16)

    def total(params):
        found = model.apply({"params": params}, images, batch.captions, batch.descriptions)
        made = [found.image.image_embed, found.caption_embed, found.description_embed]
        made += [found.image.region_embed, found.image.boxes]
        kept = [value for value in made if value is not None]
        # Of different weights, or gradients of what is normalised would be 0.
        return sum(
            (value * jnp.cos(jnp.arange(value.size, dtype=FLOAT32).reshape(value.shape))).sum()
            for value in kept
        ), kept

    with jax.numpy_dtype_promotion("standard"):  # for the gradient of jax's own attention
        (_, made), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return made, flax.traverse_util.flatten_dict(gradient, sep="/")


def in_bfloat16(value):
    """The fraction of numbers that bfloat16 has, of those that are not 0."""
    value = np.asarray(value)[np.asarray(value) != 0]
    return float((value == value.astype(BFLOAT16).astype(np.float32)).mean())


@pytest.mark.parametrize("kind", ["clip", "grain", "scanned"])
@pytest.mark.slow
def test_no_gradient_of_a_model_is_rounded(kind):
    """Values are the same to the bit, gradients within bfloat16, and none of them a bfloat16."""
    config = settings_of(kind)
    leaves, structure = jax.tree.flatten(nn.unbox(abstract_params(config)))
    params = structure.unflatten(
        [0.2 * normal(place, *leaf.shape) for place, leaf in enumerate(leaves)]
    )
    before, rounded = outputs_and_gradients(config, params)
    config.gradient_dtype = "float32"
    after, gradient = outputs_and_gradients(config, params)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    for name, value in rounded.items():
        if name.startswith("vision/") and name.endswith("kernel"):  # of one product each
            assert in_bfloat16(value) == 1, name
    none = {name for name, value in gradient.items() if not np.any(value)}
    of_zeros = {f"decoder/{layer}/norm1/scale" for layer in ("layer_0", "layers")}
    assert none <= {"logit_scale", *of_zeros}  # of which no output is read
    for name, value in gradient.items():
        if name not in none:
            # Some are by chance: sums of few rows, and of few numbers more of them.
            assert in_bfloat16(value) < (0.6 if value.size > 100 else 0.95), name
            scale = np.abs(value).max()
            np.testing.assert_allclose(rounded[name], value, atol=0.05 * scale, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 4])
def test_devices_add_up_gradients_in_the_type_that_is_chosen(fsdp):
    """As the TPU compiler makes the step; the one for CPUs turns sums of bfloat16 into float32."""
    pytest.importorskip("libtpu")
    numbers = {}
    for chosen in ("compute", "float32"):
        command = [sys.executable, str(HELPERS / "compiled_gradients.py"), chosen, str(fsdp)]
        printed = subprocess.run(
            command, check=True, env=environment(), capture_output=True, text=True
        ).stdout
        for _, dtype, size in json.loads(printed.splitlines()[-1]):
            numbers[chosen, dtype] = numbers.get((chosen, dtype), 0) + size
    assert numbers["compute", "bf16"] > 1_000
    assert numbers.get(("float32", "bf16"), 0) == 0
    assert numbers["float32", "f32"] > numbers["compute", "f32"]
