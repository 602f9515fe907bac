"""The TPU's attention kernel, its steps computed on the CPU, against attention by XLA."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TinyRun, random_batch, tiny_config

from grain_jax.config import MeshConfig, ModelConfig, TextConfig, VisionConfig
from grain_jax.models import attention, layers
from grain_jax.models import pallas_attention as kernel
from grain_jax.models.image_text import build_model
from grain_jax.models.pallas_attention import MAX_TOKENS, pallas_attention
from grain_jax.parallel.sharding import make_mesh, use_mesh

interpreted = functools.partial(pallas_attention, interpret=True)


def random_inputs(shape: tuple[int, ...], dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    """q, k, v and the gradient of the output; [B, T, N, H]."""
    keys = jax.random.split(jax.random.key(0), 4)
    return tuple(jax.random.normal(key, shape).astype(dtype) for key in keys)


def with_gradients(fn: Any, gradient: jax.Array, *inputs: jax.Array) -> list[np.ndarray]:
    @jax.jit
    def both(*inputs: jax.Array) -> Any:
        output, vjp = jax.vjp(fn, *inputs)
        return (output, *vjp(gradient))

    with jax.numpy_dtype_promotion("standard"):  # for the gradient of jax's own attention
        return [np.asarray(x, np.float32) for x in both(*inputs)]


def assert_equal(found: Any, expected: Any, tolerance: float) -> None:
    for name, a, b in zip(("output", "q", "k", "v", "norms"), found, expected, strict=False):
        np.testing.assert_allclose(
            a, b, atol=tolerance * max(np.abs(b).max(), 1), rtol=0, err_msg=name
        )
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("shape", "causal", "num_keys"),
    [
        ((2, 197, 2, 64), False, None),
        ((2, 200, 2, 64), False, 197),
        ((3, 50, 3, 64), False, 50),  # an odd number of heads, of sequences
        ((6, 32, 2, 64), True, None),  # several texts a turn
        ((2, 80, 4, 32), True, 77),
        ((1, 584, 2, 64), False, 577),
        ((5, 24, 1, 128), True, 19),  # one head, with no lanes to spare
        ((2, 40, 9, 16), False, 33),
        ((2, 16, 2, 8), False, 0),  # no key is seen: the mean of all values, as XLA has it
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_values_and_gradients_are_those_of_xla(shape, causal, num_keys, dtype):
    query, key, value, gradient = random_inputs(shape, dtype)
    options = {"causal": causal, "num_keys": num_keys}
    fns = (
        functools.partial(interpreted, **options),
        functools.partial(attention.attend, implementation="xla", **options),
    )
    found, expected = (with_gradients(fn, gradient, query, key, value) for fn in fns)
    assert_equal(found, expected, 1e-5 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(jnp.float32, 1e-5), pytest.param(jnp.bfloat16, 3e-2, marks=pytest.mark.slow)],
)
def test_queries_and_keys_are_normalised_as_by_the_layer(dtype, tolerance):
    query, key, value, gradient = random_inputs((4, 24, 4, 64), dtype)
    query = 3 * query + 2
    rows = jax.random.normal(jax.random.key(1), (4, 64)) + jnp.asarray([[1.0], [0], [1], [0]])

    def expected(query: Any, key: Any, value: Any, norms: Any) -> Any:
        def norm(x: Any, scale: Any, bias: Any) -> Any:
            parameters = {"params": {"scale": scale, "bias": bias}}
            return layers.LayerNorm(1e-3, "kv", dtype).apply(parameters, x)

        query, key = norm(query, norms[0], norms[1]), norm(key, norms[2], norms[3])
        return attention.attend(query, key, value, implementation="xla", num_keys=20)

    def found(query: Any, key: Any, value: Any, norms: Any) -> Any:
        return interpreted(query, key, value, norms=norms, norm_eps=1e-3, num_keys=20)

    inputs = (gradient, query, key, value, rows)
    assert_equal(with_gradients(found, *inputs), with_gradients(expected, *inputs), tolerance)


@pytest.mark.parametrize("size", [1, 10])
def test_in_bfloat16_it_is_as_near_to_float32_as_xla(size):
    """With a mean far from zero under the norms, and with logits in the hundreds without them."""
    *inputs, gradient = random_inputs((3, 40, 2, 64), jnp.bfloat16)
    inputs = [*(size * x + 5 for x in inputs[:2]), inputs[2]]
    rows = jnp.asarray([[2.0], [0.5], [2.0], [0.5]]) + jnp.zeros((4, 64))

    def expected(dtype: Any, *inputs: Any) -> Any:
        query, key, value, *norms = inputs
        query, key = query.astype(dtype), key.astype(dtype)
        for i, x in enumerate((query, key) if norms else ()):
            parameters = {"params": {"scale": norms[0][2 * i], "bias": norms[0][2 * i + 1]}}
            x = layers.LayerNorm(1e-6, "kv", dtype).apply(parameters, x)
            query, key = (x, key) if i == 0 else (query, x)
        return attention.attend(query, key, value.astype(dtype), implementation="xla").astype(
            gradient.dtype if dtype == jnp.bfloat16 else jnp.float32
        )

    def found(query: Any, key: Any, value: Any, norms: Any = None) -> Any:
        return interpreted(query, key, value, norms=norms)

    inputs = [*inputs, rows] if size == 1 else inputs
    whole = [x.astype(jnp.float32) for x in (gradient, *inputs)]
    exact = with_gradients(functools.partial(expected, jnp.float32), *whole)
    by_xla = with_gradients(functools.partial(expected, jnp.bfloat16), gradient, *inputs)
    by_kernel = with_gradients(found, gradient, *inputs)
    for name, a, b, c in zip(
        ("output", "q", "k", "v", "norms"), by_kernel, by_xla, exact, strict=False
    ):
        size_of = np.abs(c).mean()
        assert np.abs(a - c).mean() < 1.2 * np.abs(b - c).mean() + 1e-4 * size_of, name


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("normed", [False, True])
def test_the_normaliser_is_kept_for_gradients_only_and_all_bytes_are_counted(
    dtype, normed, monkeypatch
):
    batch, tokens, num_heads, size = 2, 24, 4, 64
    calls, pallas_call = [], kernel.pl.pallas_call

    def noted(body: Any, *, out_shape: Any, cost_estimate: Any, **options: Any) -> Any:
        calls.append((len(out_shape), cost_estimate.bytes_accessed))
        return pallas_call(body, out_shape=out_shape, cost_estimate=cost_estimate, **options)

    monkeypatch.setattr(kernel.pl, "pallas_call", noted)
    x = jax.ShapeDtypeStruct((batch, tokens, num_heads, size), dtype)
    rows = jax.ShapeDtypeStruct((4, size), jnp.float32) if normed else None

    def fn(query: Any, key: Any, value: Any, norms: Any) -> Any:
        return interpreted(query, key, value, norms=norms)

    def both(query: Any, key: Any, value: Any, norms: Any) -> Any:
        output, vjp = jax.vjp(fn, query, key, value, norms)
        return vjp(output)

    jax.eval_shape(fn, x, x, x, rows)
    jax.eval_shape(both, x, x, x, rows)
    array = batch * tokens * num_heads * size * jnp.dtype(dtype).itemsize
    lse = batch * num_heads * tokens * 4
    norms = 4 * 128 * 4 if normed else 0  # beside each other for the two heads of a block
    parts = 2 * norms  # a gradient for each block of heads, of both sequences at once
    assert calls == [
        (1, 4 * array + norms),
        (2, 4 * array + norms + lse),
        (3 + normed, 7 * array + norms + lse + parts),
    ]


@pytest.mark.parametrize("causal", [False, True])
def test_logits_of_thousands(causal):
    """One key has all the weight, and no row of weights is lost."""
    query, key, value, gradient = random_inputs((2, 21, 2, 16))
    fns = (
        functools.partial(interpreted, causal=causal, num_keys=19),
        functools.partial(attention.attend, implementation="xla", causal=causal, num_keys=19),
    )
    inputs = (100 * query, 100 * key - 50, value)
    found, expected = (with_gradients(fn, gradient, *inputs) for fn in fns)
    assert np.abs(expected[0]).max() > 1
    assert_equal(found, expected, 1e-4)


def test_heads_in_groups_compute_the_same(monkeypatch):
    """As many heads and sequences as fit take a step together."""
    *inputs, gradient = random_inputs((4, 24, 3, 16))
    rows = 1 + jax.random.normal(jax.random.key(1), (4, 16))

    def fn(query: Any, key: Any, value: Any, norms: Any) -> Any:
        return interpreted(query, key, value, norms=norms)

    together = with_gradients(fn, gradient, *inputs, rows)
    for most in (1, 5 * 24**2):
        monkeypatch.setattr(kernel, "MAX_WEIGHTS", most)
        apart = with_gradients(functools.partial(fn), gradient, *inputs, rows)
        assert_equal(apart, together, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "batch"),
    [(MeshConfig(data=2, fsdp=2, tensor=2), 8), (MeshConfig(data=4, tensor=2), 3)],
)
def test_each_device_computes_its_rows_and_heads(mesh, batch):
    """Rows that the devices cannot share are computed by all of them."""
    inputs = random_inputs((batch, 24, 4, 16))
    rows = 1 + jax.random.normal(jax.random.key(1), (4, 16))

    def fn(*inputs: Any) -> Any:
        *arrays, norms = inputs
        return interpreted(*arrays, norms=norms)

    *arrays, gradient = inputs
    expected = with_gradients(fn, gradient, *arrays, rows)
    with use_mesh(make_mesh(mesh)):
        found = with_gradients(fn, gradient, *arrays, rows)
        text = jax.jit(fn).lower(*arrays, rows).as_text()
    assert_equal(found, expected, 1e-5)
    local = f"tensor<{2 if batch == 8 else 3}x24x{2 * 16}xf32>"
    assert local in text


CONFIG = ModelConfig(
    type="clip",
    image_size=48,
    embed_dim=16,
    vision=VisionConfig(patch_size=8, width=16, depth=2, num_heads=2, pooling="cls"),
    text=TextConfig(vocab_size=50, context_length=40, width=16, depth=2, num_heads=2),
    dtype="float32",
    attention="xla",
)


@pytest.mark.slow
@pytest.mark.parametrize(("scan", "remat"), [(True, "full"), (False, "dots")])
def test_a_model_computes_the_same_with_it(scan, remat, monkeypatch):
    """Of the same parameters on 8 devices, with padded tokens (37 of an image, 35 of a text)."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, 48, 48, 3)), jnp.float32)
    texts = jnp.asarray(rng.integers(1, 49, (4, 35)), jnp.int32).at[:, 30].set(49)
    config = replace(CONFIG, scan_layers=scan, remat=remat)
    by_xla, by_kernel = build_model(config), build_model(replace(config, attention="pallas"))
    params = jax.jit(by_xla.init)(jax.random.key(0), images, texts)
    monkeypatch.setattr(attention, "device_kind", lambda: "TPU v5 lite")
    monkeypatch.setattr(layers, "pallas_attention", interpreted)

    def loss(model: Any, params: Any) -> Any:
        output = model.apply(params, images, texts)
        return jnp.square(output.image.tokens).mean() + jnp.sum(
            jnp.cos(output.image.image_embed) * output.caption_embed
        )

    expected = jax.jit(jax.value_and_grad(functools.partial(loss, by_xla)))(params)
    with use_mesh(make_mesh(MeshConfig(data=2, tensor=2, fsdp=2))):
        found = jax.jit(jax.value_and_grad(functools.partial(loss, by_kernel)))(params)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(float(jnp.abs(b).max()), 1))


def chosen(implementation: Any = "auto", **changes: Any) -> str:
    given = {"num_tokens": 197, "dtype": jnp.bfloat16, "head_size": 64} | changes
    return attention.chosen_attention(implementation, **given)


def test_auto_takes_it_on_a_tpu_where_it_applies(monkeypatch):
    assert chosen() == "xla"
    with pytest.raises(ValueError, match=r"'pallas' needs a TPU.*this is cpu"):
        chosen("pallas")
    monkeypatch.setattr(attention, "device_kind", lambda: "TPU v5 lite")
    assert chosen() == chosen("pallas") == "pallas"
    assert chosen(dtype=jnp.float32) == "xla"
    assert chosen(head_size=80) == chosen(num_tokens=1025) == "xla"
    for changes in ({"head_size": 80}, {"num_tokens": MAX_TOKENS + 1}):
        with pytest.raises(ValueError, match="this is TPU v5 lite"):
            chosen("pallas", **changes)


def test_auto_leaves_it_where_a_block_does_not_fit_or_the_mesh_is_taken(monkeypatch):
    monkeypatch.setattr(attention, "device_kind", lambda: "TPU v5 lite")
    assert chosen(num_heads=3) == chosen(num_heads=12) == "pallas"  # 192 numbers; whole vectors
    assert chosen(num_heads=9) == "xla"  # the compiler refuses 576
    with use_mesh(make_mesh(MeshConfig(data=2, tensor=4))):
        assert chosen(num_heads=12) == "pallas"  # 3 a device
        found = []

        def within(x: jax.Array) -> jax.Array:
            found.append(chosen(num_heads=12))
            return x

        rows = jax.sharding.PartitionSpec("data")
        jax.eval_shape(
            jax.shard_map(within, in_specs=rows, out_specs=rows, axis_names={"data"}),
            jax.ShapeDtypeStruct((4,), jnp.float32),
        )
    assert found == ["xla"]
    with pytest.raises(ValueError, match="576"):
        chosen("pallas", num_heads=9)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 4, 1)])
def test_micro_batches_train_with_auto(shape, monkeypatch):
    """On two devices of "data" by XLA, as the kernel cannot be within their `shard_map`."""
    config = tiny_config()
    config.optim.grad_cache_chunks = 2
    config.model.dtype = "bfloat16"

    def step() -> dict[str, float]:
        run = TinyRun(config, mesh=MeshConfig(*shape), devices=4)
        with jax.numpy_dtype_promotion("standard"):
            return run.train([random_batch()])[0]

    expected = step()
    monkeypatch.setattr(attention, "device_kind", lambda: "TPU v5 lite")
    monkeypatch.setattr(layers, "pallas_attention", interpreted)
    found = step()
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-2)


def test_more_tokens_than_fit_are_refused():
    x = jax.ShapeDtypeStruct((1, MAX_TOKENS + 1, 1, 64), jnp.float32)
    with pytest.raises(ValueError, match="at most"):
        jax.eval_shape(interpreted, x, x, x)
