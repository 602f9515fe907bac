"""Attention of the region decoder with heads as rows, as TPUs take it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grain_jax.config import DecoderConfig, MeshConfig
from grain_jax.models import attention
from grain_jax.models.attention import attend_heads_as_rows, takes_heads_as_rows
from grain_jax.models.decoder import RegionDecoder
from grain_jax.parallel.sharding import make_mesh, use_mesh

TPU = "TPU v5 lite"


def by_head(query: Any, key: Any, value: Any, *, num_heads: int, kept: Any) -> Any:
    """Each head in turn, its weights multiplied by `kept`."""
    size, mixed = query.shape[-1] // num_heads, []
    for n in range(num_heads):
        q, k, v = (x[..., n * size : (n + 1) * size] for x in (query, key, value))
        weights = jax.nn.softmax(q @ k.transpose(0, 2, 1) / size**0.5)
        mixed.append((weights * kept[:, n]) @ v)
    return jnp.concatenate(mixed, axis=-1)


@pytest.mark.parametrize("seen", [5, 8])
def test_it_equals_each_head_in_turn_in_value_and_gradient(seen):
    keys = jax.random.split(jax.random.key(0), 5)
    query, gradient = (jax.random.normal(key, (2, 3, 12)) for key in keys[:2])
    key, value = (jax.random.normal(key, (2, 8, 12)) for key in keys[2:4])
    kept = jax.random.bernoulli(keys[4], 0.7, (2, 3, 3, 8)).astype(jnp.float32) / 0.7

    def as_rows(query: Any, key: Any, value: Any) -> Any:
        return attend_heads_as_rows(
            query, key, value, num_heads=3, num_keys=seen, drop=lambda weights: weights * kept
        )

    def expected(query: Any, key: Any, value: Any) -> Any:
        key, value = key[:, :seen], value[:, :seen]
        return by_head(query, key, value, num_heads=3, kept=kept[..., :seen])

    found, back = jax.vjp(as_rows, query, key, value)
    wanted, wanted_back = jax.vjp(expected, query, key, value)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    for ours, theirs in zip(back(gradient), wanted_back(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_the_decoder_computes_the_same_on_a_tpu_with_the_same_dropout(scan, monkeypatch):
    config = DecoderConfig(width=16, depth=2, num_heads=4, num_queries=3, dropout=0.3)
    decoder = RegionDecoder(config, 8, scan_layers=scan)
    tokens = jax.random.normal(jax.random.key(0), (4, 10, 12))  # padded to 16 with heads as rows
    params = jax.jit(decoder.init)(jax.random.key(1), tokens)

    def loss(params: Any, tokens: Any) -> Any:
        output = decoder.apply(params, tokens, train=True, rngs={"dropout": jax.random.key(2)})
        return jnp.cos(output.region_embed).sum() + output.boxes.sum() + output.image_embed.sum()

    def compiled() -> Any:  # traced anew, as jit does not see which device is said to be there
        return jax.jit(jax.value_and_grad(lambda *given: loss(*given), argnums=(0, 1)))

    expected = compiled()(params, tokens)
    monkeypatch.setattr(attention, "device_kind", lambda: TPU)
    lowered = compiled().lower(params, tokens)
    assert "tensor<4x16x16xf32>" in lowered.as_text()  # 4 heads x 4 queries, and 16 tokens
    found = compiled()(params, tokens)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(float(jnp.abs(theirs).max()), 1))


def test_tpus_take_it_unless_the_mesh_splits_heads(monkeypatch):
    assert not takes_heads_as_rows(4)
    monkeypatch.setattr(attention, "device_kind", lambda: TPU)
    assert takes_heads_as_rows(4)
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=4))):
        assert takes_heads_as_rows(4)
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        assert not takes_heads_as_rows(4)
        assert takes_heads_as_rows(3)  # which two devices cannot share
