"""Contrastive losses against loops in float64, in value and gradient, and their switches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grain_jax.losses.contrastive import contrastive_loss
from grain_jax.losses.log_sum_exp import DENSE, LogitsForm
from grain_jax.losses.official import shifted_labels
from grain_jax.losses.regions import image_description_loss, region_loss

B, M, E = 5, 3, 6
RNG = np.random.default_rng(0)
IMAGE, CAPTION = RNG.normal(size=(2, B, E)).astype(np.float32)
REGION, DESCRIPTION = RNG.normal(size=(2, B, M, E)).astype(np.float32)
SCALE = np.float32(7.0)
DESCRIBED = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 0, 1]], bool)
MATCHED = DESCRIBED & np.array([[1, 0, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]], bool)
CAPTION_KEY = np.array([7, 8, 7, 9, 7], np.uint32)
DESCRIPTION_KEY = np.array([[1, 2, 3], [2, 0, 0], [0, 0, 0], [4, 1, 0], [5, 0, 5]], np.uint32)


def cosines(a, b):
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return a @ b.T


def cross_entropy(positive, candidates):
    return np.log(np.exp(np.asarray(candidates)).sum()) - positive


def reference_contrastive(image, caption, scale, key):
    """Loop over images and over texts; `key` None: equal captions are negatives."""
    logits = scale * cosines(image, caption)
    different = [[i == j or key is None or key[i] != key[j] for j in range(B)] for i in range(B)]
    total = 0.0
    for i in range(B):
        total += cross_entropy(logits[i, i], [logits[i, j] for j in range(B) if different[i][j]])
        total += cross_entropy(logits[i, i], [logits[j, i] for j in range(B) if different[i][j]])
    return total / (2 * B)


def reference_region(region, description, scale, key, labels):
    """Loop over matched regions and real descriptions; `labels`: (image, slot) of each region."""
    losses = []
    for (i, m), (j, n) in labels.items():
        candidates = [
            scale * cosines(region[i, m][None], description[k, s][None])[0, 0]
            for k, s in zip(*np.nonzero(DESCRIBED), strict=True)
            if (k, s) == (j, n) or key is None or key[k, s] != key[j, n]
        ]
        positive = scale * cosines(region[i, m][None], description[j, n][None])[0, 0]
        losses.append(cross_entropy(positive, candidates))
    return np.mean(losses)


def reference_image_description(image, description, scale, key):
    losses = []
    for i, m in zip(*np.nonzero(DESCRIBED), strict=True):
        own = {key[i, s] for s in range(M) if DESCRIBED[i, s]} if key is not None else set()
        logit = {
            (k, s): scale * cosines(image[i][None], description[k, s][None])[0, 0]
            for k, s in zip(*np.nonzero(DESCRIBED), strict=True)
        }
        negatives = [
            value
            for (k, s), value in logit.items()
            if k != i and (key is None or key[k, s] not in own)
        ]
        losses.append(cross_entropy(logit[i, m], [logit[i, m], *negatives]))
    return np.mean(losses)


ALIGNED = {(i, m): (i, m) for i, m in zip(*np.nonzero(MATCHED), strict=True)}
# Image 0 lost slot 1: its second good region, slot 2, gets description 1. Image 3 lost slot 0.
SHIFTED = ALIGNED | {(0, 2): (0, 1), (3, 1): (3, 0)}
SLOTS = np.broadcast_to(np.arange(M), (B, M))


def contrastive(image, caption, scale, key, form=DENSE):
    return contrastive_loss(image, caption, scale, key=key, form=form)[0]


def region(region, description, scale, key, form=DENSE, label=SLOTS):
    return region_loss(
        region,
        description,
        scale,
        matched=jnp.asarray(MATCHED),
        described=jnp.asarray(DESCRIBED),
        label=jnp.asarray(label),
        key=key,
        form=form,
    )[0]


def shifted_region(region_embed, description, scale, key, form=DENSE):
    label = shifted_labels(jnp.asarray(DESCRIBED), jnp.asarray(MATCHED))
    return region(region_embed, description, scale, key, form, label)


def image_description(image, description, scale, key, form=DENSE):
    described = jnp.asarray(DESCRIBED)
    return image_description_loss(
        image, description, scale, described=described, key=key, form=form
    )[0]


CASES = {
    "contrastive": (contrastive, reference_contrastive, IMAGE, CAPTION, CAPTION_KEY),
    "region": (
        region,
        lambda *args: reference_region(*args, ALIGNED),
        REGION,
        DESCRIPTION,
        DESCRIPTION_KEY,
    ),
    "region, official labels": (
        shifted_region,
        lambda *args: reference_region(*args, SHIFTED),
        REGION,
        DESCRIPTION,
        DESCRIPTION_KEY,
    ),
    "image to descriptions": (
        image_description,
        reference_image_description,
        IMAGE,
        DESCRIPTION,
        DESCRIPTION_KEY,
    ),
}


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("duplicates", ["mask", "negative"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name, duplicates, tiled, monkeypatch):
    loss, reference, a, b, key = CASES[name]
    monkeypatch.setattr("grain_jax.losses.ring.TILE", 3)
    loss = functools.partial(loss, form=LogitsForm(tiled))
    key = key if duplicates == "mask" else None
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
        jnp.asarray(a),
        jnp.asarray(b),
        jnp.asarray(SCALE),
        None if key is None else jnp.asarray(key),
    )
    arguments = [x.astype(np.float64) for x in (a, b, SCALE)]
    expected = reference(*arguments, key)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    if key is not None:  # the example has duplicates, and leaving them out makes the task easier
        assert expected < reference(*arguments, None) - 1e-3
    # Slopes along random directions, by central differences of the reference.
    rng = np.random.default_rng(1)
    for _ in range(3):
        directions = [rng.normal(size=x.shape) for x in arguments]
        steps = (
            reference(*(x + h * d for x, d in zip(arguments, directions, strict=True)), key)
            for h in (1e-6, -1e-6)
        )
        slope = (next(steps) - next(steps)) / 2e-6
        ours = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        np.testing.assert_allclose(ours, slope, rtol=1e-4, atol=1e-5)


def test_identical_samples_have_no_floor_when_masked():
    """Two equal image-caption pairs: ln 2 at least as negatives, nearly nothing when masked."""
    embed = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    arguments = embed, embed, jnp.asarray(50.0)
    key = jnp.asarray([1, 1, 2], jnp.uint32)
    masked, as_negative = jax.jit(lambda: [contrastive(*arguments, k) for k in (key, None)])()
    assert float(masked) < 1e-6
    np.testing.assert_allclose(as_negative, 2 / 3 * np.log(2), rtol=1e-5)


def test_labels_after_a_degenerate_box():
    """Measured on the official code: labels 3, 4, 5, 6 where 3, 5, 6, 7 would be right."""
    described = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    matched = described.copy()
    matched[1, 1] = False
    number = np.cumsum(described.reshape(-1)).reshape(2, 5) - 1  # of each real description
    slots = np.asarray(shifted_labels(jnp.asarray(described), jnp.asarray(matched)))
    official = np.take_along_axis(number, slots, axis=1)
    np.testing.assert_array_equal(official[0, :3], [0, 1, 2])
    np.testing.assert_array_equal(official[1][matched[1]], [3, 4, 5, 6])
    np.testing.assert_array_equal(number[1][matched[1]], [3, 5, 6, 7])


def test_large_scale_and_zero_embedding_stay_finite():
    image = jnp.asarray(IMAGE).at[0].set(0.0)

    def loss(image, scale):
        return contrastive(image, jnp.asarray(CAPTION), scale, jnp.asarray(CAPTION_KEY))

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(image, jnp.asarray(100.0))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)
