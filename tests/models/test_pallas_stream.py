"""The TPU's attention kernel for streams of texts, computed on the CPU, against XLA's attention."""

import functools
import math
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grain_jax.config import MeshConfig, TextConfig
from grain_jax.models import attention, layers, pallas_stream
from grain_jax.models.attention import attend_in_stream, chosen_in_stream
from grain_jax.models.pallas_stream import pallas_attention_in_stream, windows
from grain_jax.models.text import TextTransformer
from grain_jax.models.text_stream import stream_of_batch, texts_of_batch
from grain_jax.parallel.sharding import make_mesh, use_mesh

interpreted = functools.partial(pallas_attention_in_stream, interpret=True)


def places(blocks: int, length: int, *, seed: int = 0) -> np.ndarray:
    """Positions in texts of 1 to `length` tokens, padding last; [K, C]."""
    rng, room, counts = np.random.default_rng(seed), blocks * length, [length, 1, 1]
    while sum(counts) < room - length:
        counts.append(int(rng.choice([1, length, rng.integers(1, length + 1)])))
    laid = np.concatenate([np.arange(count) for count in counts])[: room - 5]
    return np.pad(laid, (0, room - len(laid))).reshape(blocks, length)


def inputs_of(blocks: int, length: int, heads: int, size: int, dtype: Any) -> tuple[Any, ...]:
    """q, k, v and the gradient of the output of two streams, and their positions."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (2, blocks * length, heads, size)
    arrays = tuple(jax.random.normal(key, shape).astype(dtype) for key in keys)
    positions = np.stack([places(blocks, length, seed=seed) for seed in range(2)])
    return (*arrays, jnp.asarray(positions, jnp.int32))


def with_gradients(fn: Any, *inputs: Any) -> list[np.ndarray]:
    @jax.jit
    def both(query: Any, key: Any, value: Any, gradient: Any, positions: Any) -> Any:
        output, vjp = jax.vjp(lambda *arrays: fn(*arrays, positions), query, key, value)
        return (output, *vjp(gradient))

    with jax.numpy_dtype_promotion("standard"):  # for the gradient of jax's own attention
        return [np.asarray(x, np.float32) for x in both(*inputs)]


def assert_equal(found: Any, expected: Any, tolerance: float) -> None:
    for name, a, b in zip(("output", "q", "k", "v"), found, expected, strict=True):
        np.testing.assert_allclose(
            a, b, atol=tolerance * max(np.abs(b).max(), 1), rtol=0, err_msg=name
        )


@pytest.mark.parametrize(
    ("blocks", "length", "heads", "size", "chunk"),
    [
        (7, 40, 2, 64, 100),  # turns of 160 tokens, of which the last has fewer
        (4, 40, 3, 64, 100),  # an odd number of heads, turns that fill the stream
        pytest.param(5, 80, 4, 32, 100, marks=pytest.mark.slow),  # turns of one window
        (1, 24, 2, 8, 640),  # one turn, longer than the stream
        pytest.param(3, 200, 2, 64, 640, marks=pytest.mark.slow),  # windows of 384 keys
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_values_and_gradients_are_those_of_xla(
    blocks, length, heads, size, chunk, dtype, monkeypatch
):
    monkeypatch.setattr(pallas_stream, "CHUNK_TOKENS", chunk)
    inputs = inputs_of(blocks, length, heads, size, dtype)
    found, expected = (with_gradients(fn, *inputs) for fn in (interpreted, attend_in_stream))
    assert_equal(found, expected, 1e-5 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize(
    ("tokens", "reach"), [(4880, 80), (72, 72), (4864, 608), (44, 11), (96, 32), (129, 1)]
)
def test_windows_reach_every_key_and_turns_every_token(tokens, reach):
    found = windows(64, tokens, reach)
    assert found.keys % 128 == 0  # whole vectors
    assert found.keys - found.queries >= reach
    assert found.chunk % found.queries == 0
    assert found.chunk >= found.reach  # of the chunk before, or two would have to be read
    turns = math.ceil(tokens / found.chunk)
    assert turns * found.chunk - tokens < found.chunk


def shapes_outside_kernels(jaxpr: Any) -> list[tuple[int, ...]]:
    found = []
    for equation in jaxpr.eqns:
        found += [variable.aval.shape for variable in equation.outvars]
        if equation.primitive.name == "pallas_call":
            continue
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # closed, or not
            if hasattr(inner, "eqns"):
                found += shapes_outside_kernels(inner)
    return found


@pytest.mark.parametrize("fn", [interpreted, attend_in_stream])
def test_nothing_is_larger_than_what_goes_in(fn):
    """Of the weights of attention there would be 2 * 80 / 16 times as many."""
    query, key, value, gradient, positions = inputs_of(6, 80, 2, 16, jnp.float32)

    def both(query: Any, key: Any, value: Any) -> Any:
        output, vjp = jax.vjp(lambda *arrays: fn(*arrays, positions), query, key, value)
        return output, vjp(gradient)

    shapes = shapes_outside_kernels(jax.make_jaxpr(both)(query, key, value).jaxpr)
    largest = max(math.prod(shape) for shape in shapes)
    if fn is attend_in_stream:  # or what the other one looks for could not be found
        assert largest >= 2 * 6 * 2 * 80 * 160
    else:
        assert largest == query.size


TOWER = TextConfig(vocab_size=64, context_length=12, width=32, depth=2, num_heads=2)


def batch_of_texts(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Captions of up to 10 tokens, and two descriptions an image, every third of them empty."""
    rng = np.random.default_rng(0)

    def rows(count: int, longest: int, empty: bool) -> np.ndarray:
        tokens = rng.integers(1, 63, (count, longest)).astype(np.int32)
        for i, row in enumerate(tokens):
            length = 0 if empty and i % 3 == 0 else int(rng.choice([1, longest, 4]))
            row[length:] = 0
            if length:
                row[length - 1] = 63
        return tokens

    return rows(images, 10, False), rows(images * 2, 6, True).reshape(images, 2, 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "scan", "remat"),
    [
        (None, False, "none"),
        (MeshConfig(data=2, fsdp=2, tensor=2), True, "full"),
        (MeshConfig(data=8), False, "dots"),
    ],
)
def test_a_tower_computes_the_same_with_it(mesh, scan, remat, monkeypatch):
    captions, descriptions = map(jnp.asarray, batch_of_texts(8))
    by_xla = TextTransformer(TOWER, 8, scan_layers=scan, remat=remat, attention="xla")
    by_kernel = by_xla.clone(attention="pallas")
    params = nn.unbox(by_xla.init(jax.random.key(0), captions)["params"])
    monkeypatch.setattr(attention, "device_kind", lambda: "TPU v5 lite")
    monkeypatch.setattr(layers, "pallas_attention_in_stream", interpreted)

    def loss(tower: Any, params: Any) -> Any:
        stream = stream_of_batch(captions, descriptions, tokens_per_image=16.0)
        embed = texts_of_batch(tower.apply({"params": params}, stream), images=8)
        return sum(jnp.sin(3 * values).sum() for values in embed)

    def computed(tower: Any) -> Any:
        fn = functools.partial(loss, tower)
        assert ("pallas_call" in str(jax.make_jaxpr(fn)(params))) == (tower is by_kernel)
        return jax.jit(jax.value_and_grad(fn))(params)

    if mesh is None:
        expected, found = computed(by_xla), computed(by_kernel)
    else:
        with use_mesh(make_mesh(mesh)):
            expected, found = computed(by_xla), computed(by_kernel)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(float(jnp.abs(b).max()), 1))


def chosen(implementation: Any = "auto", **changes: Any) -> str:
    given = {"reach": 80, "dtype": jnp.bfloat16, "head_size": 64, "num_heads": 8} | changes
    return chosen_in_stream(implementation, **given)


def test_auto_takes_it_on_a_tpu_where_it_applies(monkeypatch):
    assert chosen() == chosen("cudnn") == chosen("xla") == "xla"
    with pytest.raises(ValueError, match=r"'pallas' needs a TPU.*this is cpu"):
        chosen("pallas")
    monkeypatch.setattr(attention, "device_kind", lambda: "TPU v5 lite")
    assert chosen() == chosen("pallas") == chosen("pallas", dtype=jnp.float32) == "pallas"
    assert chosen(dtype=jnp.float32) == chosen(head_size=80) == chosen(reach=2000) == "xla"
    assert chosen("xla") == chosen("cudnn") == "xla"
    with pytest.raises(ValueError, match="at most"):
        chosen("pallas", reach=2000)


def test_a_stream_that_is_not_causal_is_refused():
    tower = replace(TOWER, causal=False)
    initializers = layers.clip_text_init(tower.width, 64, 1)
    x, positions = jnp.zeros((1, 16, tower.width)), jnp.zeros((1, 2, 8), jnp.int32)
    block = layers.Block(2, 64, "gelu", 1e-5, initializers, causal=tower.causal)
    with pytest.raises(ValueError, match="causal"):
        jax.eval_shape(block.init, jax.random.key(0), x, positions)
