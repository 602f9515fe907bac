"""Attention as cudnn computes it, on any machine: its number of tokens is padded and masked."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grain_jax.config import DecoderConfig, ModelConfig, TextConfig, VisionConfig
from grain_jax.models import attention, layers
from grain_jax.models.image_text import build_model

CONFIG = ModelConfig(
    image_size=48,
    embed_dim=16,
    vision=VisionConfig(patch_size=8, width=16, depth=1, num_heads=2),
    text=TextConfig(vocab_size=50, context_length=40, width=16, depth=1, num_heads=2),
    decoder=DecoderConfig(width=16, depth=1, num_heads=2, mlp_dim=16, num_queries=2),
    dtype="bfloat16",
    attention="xla",
)


@pytest.fixture
def cudnn(monkeypatch):
    """A GPU's attention that refuses what jax 0.11 refuses; lists the lengths that it was given."""
    compute, lengths = jax.nn.dot_product_attention, []

    def recorded(query: Any, key: Any, value: Any, *, implementation: str, **options: Any) -> Any:
        if implementation == "cudnn":
            lengths.append(query.shape[1])
            if query.shape[1] % 2 or key.shape[1] % 2:
                raise NotImplementedError(f"Unsupported sequence length Q {query.shape[1]}")
        return compute(query, key, value, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    monkeypatch.setattr(attention, "has_flash", lambda device: True)
    return lengths


@pytest.mark.slow
def test_padded_towers_embed_as_without_padding(cudnn):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 48, 48, 3)), jnp.float32)  # 36 patches and CLS
    texts = jnp.asarray(rng.integers(1, 49, (2, 35)), jnp.int32).at[:, 30].set(49)
    xla, flash = build_model(CONFIG), build_model(replace(CONFIG, attention="auto"))
    params = jax.jit(xla.init)(jax.random.key(0), images, texts)

    def embeddings(model: Any) -> list[jax.Array]:
        output = jax.jit(model.apply)(params, images, texts)
        return [output.image.tokens, output.image.image_embed, output.caption_embed]

    expected = embeddings(xla)
    assert not cudnn
    found = embeddings(flash)
    assert set(cudnn) == {40}
    assert found[0].shape == expected[0].shape
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=0.05)


@pytest.mark.parametrize("causal", [False, True])
def test_masked_keys_change_neither_results_nor_gradients(causal):
    x = jax.random.normal(jax.random.key(0), (2, 8, 2, 4))

    def result(x: Any, num_keys: int | None) -> Any:
        mixed = attention.attend(x, 0.5 * x, x + 1, causal=causal, num_keys=num_keys)
        return jnp.square(mixed[:, :5]).sum()

    cut, cut_gradient = jax.value_and_grad(result)(x[:, :5], None)
    masked, gradient = jax.value_and_grad(result)(x, 5)
    np.testing.assert_allclose(masked, cut, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, :5], cut_gradient, atol=1e-5)
    np.testing.assert_array_equal(gradient[:, 5:], 0)


def test_short_texts_are_left_to_xla(cudnn):
    short, long = (
        attention.chosen_attention("auto", num_tokens=length, dtype=jnp.bfloat16, head_size=64)
        for length in (32, 77)
    )
    assert (short, long) == ("xla", "cudnn")


def test_gradients_of_biases_are_summed_in_float32():
    """In bfloat16 the sum of 50,000 rows would be off by half a percent and more."""
    rows = jax.random.normal(jax.random.key(0), (50_000, 8), jnp.bfloat16) + jnp.bfloat16(0.3)

    def output(bias: Any) -> Any:
        product = layers.affine(
            jnp.zeros((50_000, 1), jnp.bfloat16), jnp.zeros((1, 8), jnp.bfloat16), bias
        )
        return jnp.sum((product * rows).astype(jnp.float32))

    gradient = jax.jit(jax.grad(output))(jnp.zeros(8))
    expected = np.asarray(rows, np.float64).sum(0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
