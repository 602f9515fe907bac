"""Moments of Adam in bfloat16: rounded without bias, and the same on every mesh."""

import copy
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny_run import TinyRun, averaged_config, random_batch, tiny_config

from grain_jax.benchmarking.compiled_step import compile_step
from grain_jax.config import CheckpointConfig, MeshConfig
from grain_jax.config.cli import config_to_json
from grain_jax.models.image_text import build_model
from grain_jax.parallel.sharding import make_mesh
from grain_jax.training.checkpoint import Checkpoints
from grain_jax.training.optimizer import make_optimizer
from grain_jax.training.resume import changed_settings
from grain_jax.training.rounded_moments import in_bfloat16, round_stochastically
from grain_jax.training.state import abstract_state, count_parameters


def neighbours(value):
    """The bfloat16 numbers below and above positive float32 numbers."""
    bits = np.asarray(value).view(np.uint32) >> 16 << 16
    return bits.view(np.float32), (bits + 2**16).view(np.float32)


def test_rounding_is_to_a_neighbour_and_without_bias():
    value = np.exp(np.random.default_rng(0).normal(0, 5, 200)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 4_000)
    rounded = np.asarray(
        jax.vmap(lambda key: round_stochastically(jnp.asarray(value), key))(keys), np.float64
    )
    low, high = neighbours(value)
    assert ((rounded == low) | (rounded == high)).all()
    share = (value - low) / (high - low)
    error = (rounded.mean(0) - value) / (high - low)
    assert np.abs(error).max() < 5 * 0.5 / math.sqrt(len(keys))
    np.testing.assert_allclose((rounded == high).mean(0), share, atol=0.05)


def test_what_bfloat16_has_stays():
    value = jnp.array([0.0, 1.0, -2.5, 3e38, jnp.inf, jnp.nan], jnp.float32)
    value = value.astype(jnp.bfloat16).astype(jnp.float32)
    keys = jax.random.split(jax.random.key(0), 20)
    rounded = jax.jit(jax.vmap(lambda key: round_stochastically(value, key)))(keys)
    assert rounded.dtype == jnp.bfloat16
    rounded = rounded.astype(jnp.float32)
    np.testing.assert_array_equal(rounded, np.broadcast_to(value, rounded.shape))


def trained_moments(optimizer, gradients):
    """The state after updates with each of `gradients`, and the last update."""
    state = optimizer.init({"w": gradients[0]})

    def one(state, gradient):
        updates, state = optimizer.update({"w": gradient}, state)
        return state, updates["w"]

    with jax.numpy_dtype_promotion("standard"):
        state, updates = jax.jit(lambda state: jax.lax.scan(one, state, gradients))(state)
    return state, updates[-1]


@pytest.mark.parametrize(("beta2", "steps"), [(0.98, 400), (0.999, 2_000)])
def test_a_second_moment_follows_changes_below_the_spacing_of_bfloat16(beta2, steps):
    """It falls after large gradients, where it would stay if rounded to the nearest."""
    adam = optax.scale_by_adam(0.9, beta2)
    size = 0.1 + 0.002 * np.random.default_rng(0).random((steps, 256), np.float32)
    size[0] = (1 - beta2) ** -0.5
    exact, update = trained_moments(adam, jnp.asarray(size))
    rounded, update_of_rounded = trained_moments(in_bfloat16(adam), jnp.asarray(size))
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {
        jnp.dtype(jnp.int32),
        jnp.dtype(jnp.bfloat16),
    }
    assert int(rounded.count) == steps
    ratio = np.asarray(rounded.nu["w"], np.float64) / np.asarray(exact.nu["w"], np.float64)
    assert abs(ratio.mean() - 1) < 0.01
    assert ratio.std() < 0.1
    assert np.abs(update_of_rounded / update - 1).mean() < 0.05

    def to_nearest(nu, size):
        wide = beta2 * nu.astype(jnp.float32) + (1 - beta2) * size**2
        return wide.astype(jnp.bfloat16), None

    start = jnp.zeros(256, jnp.bfloat16)
    stuck = np.asarray(jax.lax.scan(to_nearest, start, jnp.asarray(size))[0], np.float64)
    off = np.abs(stuck / np.asarray(exact.nu["w"], np.float64) - 1).mean()
    assert off > (0.05 if beta2 == 0.98 else 2)


@pytest.mark.parametrize(("beta1", "stuck_at"), [(0.9, 0.02), (0.95, 0.04), (0.99, 0.06)])
def test_a_first_moment_follows_changes_below_the_spacing_of_bfloat16(beta1, stuck_at):
    """Of smooth gradients that fall by 15 %, where rounding to the nearest stands still."""
    drawn = np.random.default_rng(0).uniform(1, 2, 512).astype(np.float32)
    drawn[::2] *= -1
    steps = round(8 / (1 - beta1))
    gradients = jnp.concatenate([jnp.tile(drawn, (steps, 1)), jnp.tile(0.85 * drawn, (steps, 1))])
    adam = optax.scale_by_adam(beta1, 0.98)
    exact, _ = trained_moments(adam, gradients)
    rounded, _ = trained_moments(in_bfloat16(adam), gradients)
    ratio = np.asarray(rounded.mu["w"], np.float64) / np.asarray(exact.mu["w"], np.float64)
    assert abs(ratio.mean() - 1) < 0.002
    assert ratio.std() < 0.01

    def to_nearest(mu, gradient):
        wide = beta1 * mu.astype(jnp.float32) + (1 - beta1) * gradient
        return wide.astype(jnp.bfloat16), None

    start = jnp.zeros(drawn.shape, jnp.bfloat16)
    stuck = np.asarray(jax.lax.scan(to_nearest, start, gradients)[0], np.float64)
    off = np.abs(stuck / np.asarray(exact.mu["w"], np.float64) - 1)
    assert off.mean() > stuck_at


def test_the_two_moments_are_rounded_by_bits_of_their_own():
    gradients = jnp.full((1, 10_000), 1 + 2**-9 + 2**-10, jnp.float32)
    state, _ = trained_moments(in_bfloat16(optax.scale_by_adam(0.0, 0.0)), gradients)
    mu, nu = (np.asarray(x["w"], np.float64) for x in (state.mu, state.nu))
    assert len(np.unique(mu)) == len(np.unique(nu)) == 2
    assert abs(np.corrcoef(mu, nu)[0, 1]) < 5 / math.sqrt(len(mu))


def test_the_first_update_is_that_of_float32():
    adam = optax.scale_by_adam(0.9, 0.98)
    gradients = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64)), jnp.float32)
    _, exact = trained_moments(adam, gradients)
    _, found = trained_moments(in_bfloat16(adam), gradients)
    np.testing.assert_array_equal(found, exact)


def test_rounding_is_the_same_on_every_mesh():
    optimizer = in_bfloat16(optax.scale_by_adam(0.9, 0.98))
    gradients = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)

    def update(gradients):
        return optimizer.update({"w": gradients}, optimizer.init({"w": gradients}))[1]

    mesh = Mesh(np.array(jax.devices()[:8]), ("fsdp",))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    with jax.numpy_dtype_promotion("standard"):
        compiled = jax.jit(update).lower(
            jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=split)
        )
        compiled = compiled.compile()
        alone = jax.jit(update)(gradients)
    found = compiled(jax.device_put(gradients, split))
    assert not found.nu["w"].sharding.is_fully_replicated
    text = compiled.as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "permute"))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(one, other)


def state_of(config):
    mesh = make_mesh(config.mesh, jax.devices()[:8])
    return abstract_state(build_model(config.model), make_optimizer(config.optim), config, mesh)


def num_bytes(tree):
    """Of one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize("fsdp", [1, 8])
def test_the_optimizer_takes_half(fsdp):
    config = tiny_config()
    config.mesh.fsdp = fsdp
    whole = state_of(config)
    config.optim.moments_dtype = "bfloat16"
    half = state_of(config)
    assert 2 * num_bytes(half.opt_state) - num_bytes(whole.opt_state) == 4  # the counter
    assert num_bytes(half.params) == num_bytes(whole.params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {"float32"}
    for one, other in zip(jax.tree.leaves(half), jax.tree.leaves(whole), strict=True):
        assert one.sharding == other.sharding


def bfloat16_config(base):
    config = copy.deepcopy(base)
    config.optim.moments_dtype = "bfloat16"
    return config


@pytest.mark.slow
def test_a_plan_counts_them():
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    whole = compile_step(tiny_config(), mesh)
    half = compile_step(bfloat16_config(tiny_config()), mesh)
    count = count_parameters(state_of(tiny_config()).params)
    assert whole.state - half.state == 4 * count
    assert whole.optimizer - half.optimizer == 4 * count
    assert whole.arguments - half.arguments >= 3.9 * count


def with_moments(run):
    """`run` with moments as those of some training; random states have zeros."""
    rng = np.random.default_rng(0)

    def drawn(leaf):
        return np.abs(rng.normal(0, 1e-3, leaf.shape)).astype(leaf.dtype) if leaf.ndim else leaf

    state = jax.device_get(run.state)
    run.set_state(state.replace(opt_state=jax.tree.map(drawn, state.opt_state)))
    return run


@pytest.fixture(scope="module")
def runs():
    """With averages and a frozen part: by the type of the moments."""
    config = averaged_config()
    config.optim.lr_multipliers = ("vision/*=0",)
    settings = {"float32": config, "bfloat16": bfloat16_config(config)}
    return {name: with_moments(TinyRun(config)) for name, config in settings.items()}


@pytest.mark.parametrize(
    ("before", "now", "more_trained"),
    [
        ("float32", "bfloat16", False),
        ("bfloat16", "float32", False),
        ("float32", "bfloat16", True),
        ("bfloat16", "bfloat16", True),
    ],
)
def test_a_checkpoint_of_the_other_type_is_converted(runs, tmp_path, before, now, more_trained):
    run, wanted = runs[before], runs[now]
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(asynchronous=False), metadata={})
    checkpoints.save(run.state, step=1)
    abstract = wanted.abstract
    if more_trained:
        config = copy.deepcopy(wanted.config)
        config.optim.lr_multipliers = ()
        abstract = TinyRun(config).abstract
    restored = checkpoints.restore(1, abstract)
    checkpoints.close()
    moments = restored.opt_state[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves((moments.mu, moments.nu))} == {now}
    assert jax.tree.structure(restored) == jax.tree.structure(abstract)
    stored = run.state.opt_state[1]
    for name in ("mu", "nu"):
        found = getattr(moments, name)
        if more_trained:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["vision"]))
            found = {part: value for part, value in found.items() if part != "vision"}
        jax.tree.map(
            lambda new, old: np.testing.assert_array_equal(new, old.astype(new.dtype)),
            found,
            getattr(stored, name),
        )
    jax.tree.map(np.testing.assert_array_equal, restored.params, run.state.params)


def test_a_changed_type_is_told_where_a_run_resumes(runs, tmp_path):
    saved = json.loads(config_to_json(runs["float32"].config))
    sentences = changed_settings(saved, runs["bfloat16"].config, tmp_path)
    assert sentences == [
        "optim.moments_dtype: float32 -> bfloat16, to which the stored moments are converted"
    ]


@pytest.mark.slow
def test_a_resumed_run_rounds_as_one_that_was_not_stopped(runs, tmp_path):
    batches = [random_batch(seed) for seed in range(4)]
    whole, stopped, resumed = (TinyRun(runs["bfloat16"].config) for _ in range(3))
    whole.train(batches)
    stopped.train(batches[:2])
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(asynchronous=False), metadata={})
    checkpoints.save(stopped.state, step=2)
    resumed.set_state(checkpoints.restore(2, resumed.abstract))
    checkpoints.close()
    resumed.train(batches[2:])
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)


@pytest.mark.slow
def test_a_run_trains_on_with_them(runs):
    """As with moments in float32, on one device and on eight, with averages and a frozen part."""
    batches = [random_batch(seed) for seed in range(3)]
    config = runs["bfloat16"].config

    def losses(run):
        return [step["loss"] for step in run.train(batches)]

    exact, rounded = losses(TinyRun(runs["float32"].config)), losses(TinyRun(config))
    assert rounded[:2] == exact[:2]  # the first update is that of float32
    np.testing.assert_allclose(rounded, exact, rtol=1e-3)
    eight = TinyRun(config, mesh=MeshConfig(2, 2, 2), devices=8)
    np.testing.assert_allclose(losses(eight), rounded, rtol=1e-4)
    kernel = eight.state.opt_state[1].nu["text"]["layer_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert not kernel.sharding.is_fully_replicated
