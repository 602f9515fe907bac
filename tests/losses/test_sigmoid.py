"""SigLIP's loss against the published formula in float64, in value and every gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grain_jax.losses.log_sum_exp import DENSE, LogitsForm
from grain_jax.losses.sigmoid import sigmoid_loss

B, E = 6, 5
RNG = np.random.default_rng(3)
ARGUMENTS = (
    *RNG.normal(size=(2, B, E)),
    np.float64(9.0),
    np.float64(-2.5),
)
KEY = np.array([4, 5, 4, 6, 4, 5], np.uint32)


def published(image, caption, scale, bias, key=None):
    """-1/|B| sum_i sum_j log(1 / (1 + exp(z_ij (-t x_i y_j - b)))); no pairs of equal keys."""
    total = 0.0
    for i in range(B):
        for j in range(B):
            if i != j and key is not None and key[i] == key[j]:
                continue
            x, y = image[i] / np.linalg.norm(image[i]), caption[j] / np.linalg.norm(caption[j])
            z = 1 if i == j else -1
            total -= np.log(1 / (1 + np.exp(z * (-scale * x @ y - bias))))
    return total / B


def slopes(key):
    """The derivative of `published` by every number, by central differences."""
    found = []
    for place, argument in enumerate(ARGUMENTS):
        gradient = np.zeros_like(argument)
        for index in np.ndindex(argument.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [np.array(value) for value in ARGUMENTS]
                moved[place][index] += step
                ends.append(published(*moved, key))
            gradient[index] = (ends[0] - ends[1]) / 2e-6
        found.append(gradient)
    return found


@pytest.mark.parametrize("form", [DENSE, LogitsForm(tiled=True)], ids=["dense", "tiled"])
@pytest.mark.parametrize("duplicates", ["masked", "negatives"])
def test_value_and_gradient(duplicates, form, monkeypatch):
    monkeypatch.setattr("grain_jax.losses.ring.TILE", 2)  # three tiles
    key = KEY if duplicates == "masked" else None

    def loss(*arguments):
        return sigmoid_loss(*arguments, key=None if key is None else jnp.asarray(key), form=form)

    (value, metrics), gradients = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
    )(*(jnp.asarray(x, jnp.float32) for x in ARGUMENTS))
    expected = published(*ARGUMENTS, key)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, theirs in zip(gradients, slopes(key), strict=True):
        assert np.abs(theirs).max() > 1e-3
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
    assert list(metrics) == ["contrastive"]
    total, count = metrics["contrastive"]
    assert float(count) == B
    np.testing.assert_allclose(total, expected * B, rtol=1e-5)


def test_masking_leaves_out_pairs_of_equal_captions():
    """Where logits are 0 every pair costs log 2: 36 pairs, 8 fewer, the 6 own ones alone."""
    image, caption = (jnp.asarray(x, jnp.float32) for x in ARGUMENTS[:2])
    loss = jax.jit(sigmoid_loss)
    everything = np.zeros(B, np.uint32)  # no negative is left
    for key, pairs in ((None, 36), (KEY, 36 - 8), (everything, 6)):
        key = None if key is None else jnp.asarray(key)
        found, _ = loss(image, caption, jnp.zeros(()), jnp.zeros(()), key=key)
        np.testing.assert_allclose(found, pairs * math.log(2) / B, rtol=1e-6)
    arguments = [jnp.asarray(x, jnp.float32) for x in ARGUMENTS]
    alone, _ = loss(*arguments, key=jnp.asarray(everything))
    np.testing.assert_allclose(alone, published(*ARGUMENTS, everything), rtol=1e-5)


@pytest.mark.parametrize("form", [DENSE, LogitsForm(tiled=True)], ids=["dense", "tiled"])
def test_a_saturated_pair_costs_nothing_and_stays_finite(form):
    """Logits of 190 and of -210: losses of 0 to the last bit, where a difference would round."""
    image = jnp.eye(2)
    arguments = (image, image, jnp.asarray(200.0), jnp.asarray(-10.0))

    def loss(image, caption, scale, bias):
        return sigmoid_loss(image, caption, scale, bias, key=None, form=form)[0]

    value_and_gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
    value, gradients = value_and_gradient(*arguments)
    np.testing.assert_allclose(value, math.log1p(math.exp(-10)), rtol=1e-3)  # one negative each
    assert all(np.isfinite(g).all() for g in gradients)
    zero, gradients = value_and_gradient(jnp.zeros((2, 2)), *arguments[1:])
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_allclose(zero, math.log1p(math.exp(10)) + math.log1p(math.exp(-10)), 1e-6)


def test_the_start_of_siglip():
    """With scale 10, bias -10 and a random batch: about 10 an image, from its one positive pair."""
    rng = np.random.default_rng(0)
    image, caption = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 64, 512)))
    start = jnp.asarray(10.0), jnp.asarray(-10.0)
    value, _ = jax.jit(sigmoid_loss)(image, caption, *start, key=None)
    assert float(value) == pytest.approx(10.0, abs=0.2)
