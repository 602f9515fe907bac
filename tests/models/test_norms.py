"""LayerNorm by matrix products, as TPUs take it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grain_jax.models import attention
from grain_jax.models.layers import REMAT_POLICIES, LayerNorm
from grain_jax.models.norms import norm_by_products, takes_products

EPS = 1e-6
SHAPE = (4, 24, 256)


def by_sums(x: Any, scale: Any, bias: Any) -> Any:
    """In the type of the inputs."""
    with jax.numpy_rank_promotion("allow"):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return centred / jnp.sqrt(variance + EPS) * scale + bias


def drawn(dtype: Any) -> tuple[Any, ...]:
    """Rows far from zero and of unlike scales, parameters, and a gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    scales = jnp.asarray([0.1, 0.3, 1.0, 10.0])
    x = jax.random.normal(keys[0], SHAPE) * scales[:, None, None] + 3
    scale = 1 + jax.random.normal(keys[1], SHAPE[-1:])
    bias, gradient = jax.random.normal(keys[2], SHAPE[-1:]), jax.random.normal(keys[3], SHAPE)
    return x.astype(dtype), scale, bias, gradient.astype(dtype)


def with_gradients(fn: Any, *inputs: Any) -> list[np.ndarray]:
    *arrays, gradient = inputs
    value, back = jax.vjp(fn, *arrays)
    return [np.asarray(one, np.float64) for one in (value, *back(gradient.astype(value.dtype)))]


def test_it_equals_the_norm_by_sums_in_value_and_gradient():
    inputs = drawn(jnp.float32)
    found = with_gradients(lambda *given: norm_by_products(*given, EPS), *inputs)
    expected = with_gradients(by_sums, *inputs)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_norm_by_sums(monkeypatch):
    inputs = drawn(jnp.bfloat16)
    truth = with_gradients(by_sums, *(one.astype(jnp.float32) for one in inputs))
    norm = LayerNorm(EPS, dtype=jnp.bfloat16)

    def errors() -> list[float]:
        def apply(x: Any, scale: Any, bias: Any) -> Any:
            return norm.apply({"params": {"scale": scale, "bias": bias}}, x)

        found = with_gradients(apply, *inputs)
        return [np.abs(a - b).mean() / np.abs(b).mean() for a, b in zip(found, truth, strict=True)]

    usual = errors()
    monkeypatch.setattr(attention, "device_kind", lambda: "TPU v5 lite")
    for name, ours, theirs in zip(("y", "x", "scale", "bias"), errors(), usual, strict=True):
        assert ours <= 1.05 * theirs + 3e-4, name  # bfloat16 has digits of 4e-3


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_keeps_none_of_its_products(remat):
    """The policy "dots" keeps products, and those of means are as many numbers as a vector has."""
    x, scale, bias, _ = drawn(jnp.bfloat16)

    def layer(x: Any) -> Any:
        return jnp.sin(norm_by_products(x, scale, bias, EPS))

    kept = jax.vjp(jax.checkpoint(layer, policy=REMAT_POLICIES[remat]), x)[1]
    shapes = {leaf.shape for leaf in jax.tree.leaves(kept)}
    assert SHAPE in shapes
    assert not {shape for shape in shapes if shape[:2] == SHAPE[:2]} - {SHAPE}


def test_tpus_take_it_in_bfloat16_for_whole_vectors(monkeypatch):
    assert not takes_products(256, jnp.bfloat16)
    monkeypatch.setattr(attention, "device_kind", lambda: "TPU v5 lite")
    assert takes_products(256, jnp.bfloat16)
    assert not takes_products(256, jnp.float32)
    assert not takes_products(64, jnp.bfloat16)
    x, scale, bias, _ = drawn(jnp.bfloat16)
    norm = LayerNorm(EPS, dtype=jnp.bfloat16)
    params = {"params": {"scale": scale, "bias": bias}}
    lowered = jax.jit(lambda x: norm.apply(params, x)).lower(x).as_text()
    assert "tensor<256x128xbf16>" in lowered
