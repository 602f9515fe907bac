"""Texts laid end to end, against the same texts in padded rows."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grain_jax.benchmarking.hlo import instructions
from grain_jax.config import MeshConfig, TextConfig
from grain_jax.models.attention import attend_in_stream
from grain_jax.models.text import TextTransformer
from grain_jax.models.text_stream import (
    kept_lengths,
    lay_end_to_end,
    num_shards,
    stream_of_batch,
    stream_shape,
    texts_of_batch,
)
from grain_jax.parallel.sharding import batch_sharding, make_mesh, parameter_shardings, use_mesh

END = 63  # end of text, the highest id
TOWER = TextConfig(vocab_size=64, context_length=12, width=16, depth=2, num_heads=2)


def texts(*lengths: int, longest: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, END, (len(lengths), longest)).astype(np.int32)
    for row, length in zip(rows, lengths, strict=True):
        row[length:] = 0
        if length:
            row[length - 1] = END
    return rows


def test_a_stream_has_every_token_once_and_its_place():
    rows = np.stack([texts(4, 0, 10, 3), texts(3, 3, 5, 6, seed=1)])
    stream = lay_end_to_end(jnp.asarray(rows), blocks=2, length=10)
    assert stream.longest == 10
    np.testing.assert_array_equal(stream.lengths, [[4, 0, 10, 3], [3, 3, 5, 6]])
    assert not stream.cut.any()
    for shard in range(2):
        laid = np.concatenate([row[row != 0] for row in rows[shard]])
        tokens, positions = (
            np.asarray(getattr(stream, name)[shard]).reshape(-1) for name in ("tokens", "positions")
        )
        np.testing.assert_array_equal(tokens, np.pad(laid, (0, 20 - len(laid))))
        counts = np.asarray(stream.lengths[shard])
        places = np.concatenate([np.arange(count) for count in counts])
        np.testing.assert_array_equal(positions, np.pad(places, (0, 3)))
        filled = counts > 0
        assert (tokens[np.asarray(stream.ends[shard])[filled]] == END).all()


def test_what_follows_the_end_of_a_text_is_left_out():
    rows = texts(4, 6)
    rows[0, 4:] = 7
    stream = lay_end_to_end(jnp.asarray(rows)[None], blocks=1, length=16)
    np.testing.assert_array_equal(stream.lengths, [[4, 6]])


def test_the_longest_texts_are_cut_where_a_stream_is_too_short():
    rows = texts(4, 9, 3, 10)
    stream = lay_end_to_end(jnp.asarray(rows)[None], blocks=2, length=12)
    np.testing.assert_array_equal(stream.lengths, [[4, 8, 3, 8]])
    np.testing.assert_array_equal(stream.cut, [[False, True, False, True]])
    tokens = np.asarray(stream.tokens).reshape(-1)
    laid = [*rows[0, :4], *rows[1, :7], END, *rows[2, :3], *rows[3, :7], END]
    np.testing.assert_array_equal(tokens, [*laid, 0])


@pytest.mark.parametrize("room", [12, 15, 26, 40])
def test_kept_lengths_are_the_most_that_fit(room):
    lengths = np.random.default_rng(room).integers(3, 11, (1, 4))
    kept = np.asarray(kept_lengths(jnp.asarray(lengths), room=room, longest=10))
    assert kept.sum() <= room
    limit = kept.max()
    np.testing.assert_array_equal(kept, np.minimum(lengths, limit))
    more = np.minimum(lengths, limit + 1)
    assert more.sum() > room or (more == kept).all()


@pytest.mark.parametrize(
    ("room", "images", "longest", "expected"),
    [
        (36.5, 128, 77, (60, 80)),
        (34.0, 8, 77, (3, 96)),
        (34.0, 2, 77, (1, 72)),  # one block has no other to look at, and may be any length
        (3.0, 1, 3, (1, 8)),
    ],
)
def test_blocks_are_as_long_as_the_longest_text(room, images, longest, expected):
    blocks, length = stream_shape(room, images=images, longest=longest)
    assert (blocks, length) == expected
    assert blocks * length >= room * images
    assert length >= longest or blocks == 1


def plain_attention(query, key, value) -> np.ndarray:
    """Causal, of one text: [1, L, H, D] each."""
    logits = np.einsum("blhd,bmhd->bhlm", query, key, dtype=float) / np.sqrt(query.shape[-1])
    logits = np.where(np.tri(query.shape[1], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhlm,bmhd->blhd", weights, value)


def test_attention_in_a_stream_is_that_of_each_text_alone():
    counts, shape = [10, 3, 10, 1, 9, 5, 2], (1, 48, 2, 4)  # in blocks of 12, several across one
    query, key, value = (jax.random.normal(jax.random.key(i), shape) for i in range(3))
    positions = np.concatenate([np.arange(count) for count in [*counts, 8]]).reshape(1, 4, 12)
    found = attend_in_stream(query, key, value, jnp.asarray(positions))
    start = 0
    for count in [*counts, 8]:
        part = slice(start, start + count)
        alone = plain_attention(*(np.asarray(each)[:, part] for each in (query, key, value)))
        np.testing.assert_allclose(found[:, part], alone, atol=1e-6)
        start += count
    assert start == 48


@pytest.mark.parametrize(("scan", "remat"), [(False, "none"), (True, "full")])
@pytest.mark.slow
def test_embeddings_and_gradients_are_those_of_padded_rows(scan, remat):
    rows = np.stack([texts(10, 4, 0, 10, 3, 7), texts(3, 9, 9, 5, 3, 10, seed=1)])
    tower = TextTransformer(TOWER, 8, scan_layers=scan, remat=remat)
    params = nn.unbox(tower.init(jax.random.key(0), jnp.asarray(rows[0]))["params"])
    weights = jax.random.normal(jax.random.key(1), (2, 6, 8))
    filled = (rows != 0).any(axis=2)

    def padded(params):
        embed = tower.apply({"params": params}, jnp.asarray(rows).reshape(12, 10)).reshape(2, 6, 8)
        return (embed * weights * filled[:, :, None].astype(np.float32)).sum(), embed

    def streamed(params):
        stream = lay_end_to_end(jnp.asarray(rows), blocks=4, length=11)
        embed = tower.apply({"params": params}, stream)
        return (embed * weights).sum(), embed

    (_, expected), gradient = jax.jit(jax.value_and_grad(padded, has_aux=True))(params)
    (_, found), streamed_gradient = jax.jit(jax.value_and_grad(streamed, has_aux=True))(params)
    np.testing.assert_allclose(found[filled], expected[filled], atol=1e-5)
    np.testing.assert_array_equal(found[~filled], 0)
    for one, other in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(streamed_gradient), strict=True
    ):
        scale = max(float(jnp.abs(one).max()), 1.0)
        np.testing.assert_allclose(other / scale, one / scale, atol=1e-5)


@pytest.mark.parametrize("change", [{"pooling": "last"}, {"causal": False}])
def test_a_tower_that_looks_at_padding_is_refused(change):
    tower = TextTransformer(dataclasses.replace(TOWER, **change), 8)
    stream = lay_end_to_end(jnp.asarray(texts(3, 4))[None], blocks=1, length=8)
    with pytest.raises(ValueError, match="text_tokens_per_image"):
        jax.eval_shape(tower.init, jax.random.key(0), stream)


def test_captions_and_descriptions_of_a_batch_come_back_in_their_places():
    captions = texts(5, 3, 8, 4)
    descriptions = texts(3, 0, 4, 5, 0, 0, 3, 6, longest=6).reshape(4, 2, 6)
    assert num_shards(4) == 1
    stream = stream_of_batch(
        jnp.asarray(captions), jnp.asarray(descriptions), tokens_per_image=16.0
    )
    of_captions, of_descriptions = texts_of_batch(stream.lengths, images=4)
    np.testing.assert_array_equal(of_captions, [5, 3, 8, 4])
    np.testing.assert_array_equal(of_descriptions, [[3, 0], [4, 5], [0, 0], [3, 6]])


def test_no_text_leaves_its_device():
    """What is sent is parameters and their gradients, all smaller than the texts of a device."""
    mesh = make_mesh(MeshConfig(4, 2, 1), jax.devices()[:8])
    captions = texts(*([10, 3, 8, 4] * 16), seed=2)
    descriptions = texts(*([3, 0, 4, 5] * 32), longest=6).reshape(64, 2, 6)
    tower = TextTransformer(dataclasses.replace(TOWER, depth=1), 8)
    boxed = jax.eval_shape(tower.init, jax.random.key(0), jnp.asarray(captions))["params"]
    placed, params = parameter_shardings(boxed, mesh), nn.unbox(boxed)

    def loss(params, captions, descriptions):
        stream = stream_of_batch(captions, descriptions, tokens_per_image=16.0)
        assert stream.tokens.shape == (8, 12, 16)  # of 8 images on each device
        embed = texts_of_batch(tower.apply({"params": params}, stream), images=64)
        return sum(jnp.square(values).sum() for values in embed)

    with use_mesh(mesh):
        assert num_shards(64) == 8
        rows = batch_sharding(mesh)
        step = jax.jit(jax.grad(loss), in_shardings=(placed, rows, rows), out_shardings=placed)
        text = step.lower(params, captions, descriptions).compile().as_text()
    sent = [one for one in instructions(text) if one.collective]
    assert "all-reduce" in {one.collective for one in sent}  # of gradients
    largest = max(leaf.size for leaf in jax.tree.leaves(params))
    assert largest < 12 * 16 * TOWER.width
    for one in sent:
        assert one.collective in ("all-gather", "all-reduce", "reduce-scatter"), one.text
        for kind, shape in one.shapes:
            assert kind == "f32", one.text  # no token ids
            assert math.prod(shape) <= largest, one.text
