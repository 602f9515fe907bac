"""Attention of the region decoder with heads as rows, as TPUs take it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from grain_jax.config import DecoderConfig, MeshConfig
from grain_jax.models import attention
from grain_jax.models.attention import attend_heads_as_rows, takes_heads_as_rows
from grain_jax.models.decoder import Attention, RegionDecoder
from grain_jax.models.layers import xavier_init
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


@pytest.mark.parametrize(("seen", "drops"), [(5, True), (8, True), (None, False)])
def test_it_equals_each_head_in_turn_in_value_and_gradient(seen, drops):
    keys = jax.random.split(jax.random.key(0), 5)
    query, gradient = (jax.random.normal(key, (2, 3, 12)) for key in keys[:2])
    key, value = (jax.random.normal(key, (2, 8, 12)) for key in keys[2:4])
    kept = jnp.ones((2, 3, 3, 8))
    if drops:
        kept = jax.random.bernoulli(keys[4], 0.7, kept.shape).astype(jnp.float32) / 0.7

    def as_rows(query: Any, key: Any, value: Any) -> Any:
        drop = (lambda weights: weights * kept) if drops else None
        return attend_heads_as_rows(query, key, value, num_heads=3, num_keys=seen, drop=drop)

    def expected(query: Any, key: Any, value: Any) -> Any:
        key, value = key[:, :seen], value[:, :seen]
        return by_head(query, key, value, num_heads=3, kept=kept[..., :seen])

    found, back = jax.vjp(as_rows, query, key, value)
    wanted, wanted_back = jax.vjp(expected, query, key, value)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    for ours, theirs in zip(back(gradient), wanted_back(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("train", "options", "tolerance"),
    [
        (True, {}, 1e-5),
        (True, {"scan_layers": True, "remat": "full"}, 1e-5),
        (False, {}, 1e-5),
        (True, {"dtype": jnp.bfloat16, "gradient_dtype": jnp.float32}, 0.03),
    ],
)
def test_the_decoder_computes_the_same_on_a_tpu_with_the_same_dropout(
    train, options, tolerance, monkeypatch
):
    config = DecoderConfig(width=24, depth=2, num_heads=4, num_queries=3, dropout=0.3)
    decoder = RegionDecoder(config, 8, **options)
    tokens = jax.random.normal(jax.random.key(0), (4, 10, 12))  # padded to 16 with heads as rows
    tokens = tokens.astype(options.get("dtype", jnp.float32))
    params = jax.jit(decoder.init)(jax.random.key(1), tokens)

    def loss(params: Any, tokens: Any) -> Any:
        output = decoder.apply(params, tokens, train=train, rngs={"dropout": jax.random.key(2)})
        return jnp.cos(output.region_embed).sum() + output.boxes.sum() + output.image_embed.sum()

    def compiled() -> Any:  # traced anew, as jit does not see which device is said to be there
        return jax.jit(jax.value_and_grad(lambda *given: loss(*given), argnums=(0, 1)))

    expected = compiled()(params, tokens)
    monkeypatch.setattr(attention, "device_kind", lambda: TPU)
    weights = "tensor<4x16x16xf32>"  # of 4 heads x 4 queries for 16 tokens
    assert weights in compiled().lower(params, tokens).as_text()
    found = compiled()(params, tokens)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        ours, theirs = (np.asarray(one, np.float32) for one in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=tolerance * max(np.abs(theirs).max(), 1))


def takes(num_heads: int, **changes: Any) -> bool:
    return takes_heads_as_rows(num_heads, **{"num_queries": 6, "width": 512} | changes)


def test_tpus_take_it_for_a_few_queries_unless_the_mesh_splits_heads(monkeypatch):
    assert not takes(4)
    monkeypatch.setattr(attention, "device_kind", lambda: TPU)
    assert takes(4)
    assert takes(8, num_queries=64)
    assert not takes(8, num_queries=65)
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=4))):
        assert takes(4)
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        assert not takes(4)
        assert takes(3)  # which two devices cannot share
        within = []
        rows = PartitionSpec("data")

        def part(x: Any) -> Any:  # as of micro-batches
            within.append(takes(4))
            return x

        jax.eval_shape(
            jax.shard_map(part, in_specs=rows, out_specs=rows, axis_names={"data"}), jnp.ones(4)
        )
        assert within == [False]


@pytest.mark.parametrize("drops", [True, False])
def test_padding_is_not_seen_in_either_form(drops):
    """Nor by heads apart, which are given none today."""
    init = xavier_init(24, 48)
    keys = jax.random.split(jax.random.key(0), 2)
    query, memory = jax.random.normal(keys[0], (2, 3, 24)), jax.random.normal(keys[1], (2, 8, 24))
    other = memory.at[:, 5:].add(10)
    found = []
    for as_rows in (True, False):
        module = Attention(4, init, 0.3, drops, num_keys=5, heads_as_rows=as_rows)
        params = module.init({"params": keys[0], "dropout": keys[1]}, query, memory, memory)
        for keys_and_values in (memory, other):
            given = (query, keys_and_values, keys_and_values)
            found.append(module.apply(params, *given, rngs={"dropout": keys[1]}))
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], atol=1e-5)
