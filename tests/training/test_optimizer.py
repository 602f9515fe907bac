"""Schedule, decay groups and clamping, against the official rules spelled out anew."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grain_jax.config import ModelConfig, OptimConfig, TrainConfig
from grain_jax.formats.parameter_names import entries
from grain_jax.models.image_text import build_model
from grain_jax.training.optimizer import (
    clamp_logit_scales,
    decay_mask,
    make_optimizer,
    make_schedule,
    num_steps,
    num_warmup_steps,
)
from grain_jax.training.state import abstract_boxed_params


def official_schedule(base, final, steps, warmup, start):
    """LaCLIP's and GRAIN's cosine_scheduler, as a list of one rate a step."""
    rising = np.linspace(start, base, warmup)
    at = np.arange(steps - warmup)
    falling = final + 0.5 * (base - final) * (1 + np.cos(np.pi * at / len(at)))
    return np.concatenate([rising, falling])


@pytest.mark.parametrize(("steps", "warmup"), [(50, 10), (20, 1), (30, 29), (10, 0)])
def test_schedule_is_the_official_one(steps, warmup):
    schedule = make_schedule(OptimConfig(), steps=steps, warmup_steps=warmup)
    found = jax.vmap(schedule)(jnp.arange(steps))
    expected = official_schedule(1e-3, 1e-5, steps, warmup, 1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_schedule_ends_at_the_final_rate_and_stays():
    schedule = make_schedule(OptimConfig(), steps=10, warmup_steps=2)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.array([10, 50])), 1e-5, rtol=1e-5)


def test_steps_from_epochs():
    config = TrainConfig(batch_size=100, epochs=3.5)
    assert num_steps(config, 1000) == 35
    assert num_warmup_steps(config, 1000) == 10
    config.steps, config.optim.warmup_steps = 7, 3
    assert num_steps(config, 1000) == 7
    assert num_warmup_steps(config, 1000) == 3


@pytest.fixture(scope="module")
def published():
    """Shapes of ViT-B/16 GRAIN."""
    config = TrainConfig()
    return config.model, nn.unbox(abstract_boxed_params(build_model(config.model), config))


def official_tensors(model: ModelConfig, params):
    """(official name, its shape there, our path) of every tensor."""
    for entry in entries(model):
        leaf = params
        for name in entry.path:
            leaf = leaf[name]
        array = entry.layout.to_official(np.broadcast_to(np.float32(0), leaf.shape))
        yield entry.official, array.shape, entry.path


def by_path(mask):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): bool(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(mask)[0]
    }


def test_official_groups(published):
    """Backbone: vectors, "bias", "ln", "bn" are spared. Decoder: only names with ".bias" are."""
    model, params = published
    mask = by_path(decay_mask(params, "official"))
    decaying_vectors = 0
    for name, shape, path in official_tensors(model, params):
        if name.startswith("decoder."):
            decays = ".bias" not in name
            decaying_vectors += decays and len(shape) == 1
        else:
            decays = len(shape) >= 2 and not any(part in name for part in ("bias", "ln", "bn"))
        assert mask["/".join(path)] == decays, name
    assert decaying_vectors == 32
    for decaying in ("vision/position", "vision/cls", "text/token", "text/position"):
        assert mask[decaying]
    assert not mask["logit_scale"]


def test_default_groups(published):
    """Only what is a matrix in the official layout decays, however we store it."""
    model, params = published
    mask = by_path(decay_mask(params, "matrices"))
    for name, shape, path in official_tensors(model, params):
        squeezed = [size for size in shape if size > 1]
        assert mask["/".join(path)] == (len(squeezed) >= 2), name
    assert not mask["logit_scale"]


@pytest.mark.parametrize("groups", ["matrices", "official"])
def test_scanned_layers_decay_as_single_ones(published, groups):
    _, params = published
    single = by_path(decay_mask(params, groups))
    config = TrainConfig()
    config.model.scan_layers = True
    scanned = by_path(
        decay_mask(nn.unbox(abstract_boxed_params(build_model(config.model), config)), groups)
    )
    for path, decays in scanned.items():
        assert single[path.replace("/layers/", "/layer_0/")] == decays, path


def test_update_is_adamw():
    config = OptimConfig(weight_decay=0.5)
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    grads = {"kernel": jnp.array([[0.1, 0.2]]), "bias": jnp.array([-0.3])}
    optimizer = make_optimizer(config)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # The first bias-corrected Adam update is the sign of the gradient.
    np.testing.assert_allclose(updates["kernel"], [[1.0 + 0.5, 1.0 - 1.0]], atol=1e-5)
    np.testing.assert_allclose(updates["bias"], [-1.0], atol=1e-5)


def test_clipping_scales_the_gradient_and_keeps_the_state():
    grads = {"kernel": jnp.array([[30.0, 40.0]])}
    off, on = make_optimizer(OptimConfig()), make_optimizer(OptimConfig(clip_grad_norm=1.0))
    assert jax.tree.structure(off.init(grads)) == jax.tree.structure(on.init(grads))
    with jax.numpy_dtype_promotion("standard"):
        _, state = on.update(grads, on.init(grads), grads)
    np.testing.assert_allclose(state[1].mu["kernel"], [[0.06, 0.08]], rtol=1e-5)  # 0.1 * clipped


def test_logit_scales_stay_in_bounds():
    params = {
        "logit_scale": jnp.float32(9.0),
        "region_logit_scale": jnp.float32(-1.0),
        "vision": {"logit_scale": jnp.float32(9.0)},
    }
    clamped = clamp_logit_scales(params, max_scale=100.0)
    assert float(clamped["logit_scale"]) == pytest.approx(math.log(100.0))
    assert float(clamped["region_logit_scale"]) == 0.0
    assert float(clamped["vision"]["logit_scale"]) == 9.0
