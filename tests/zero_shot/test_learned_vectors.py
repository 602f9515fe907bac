"""InMaP and the head against plain float64 computations of their objectives."""

import jax
import jax.numpy as jnp
import numpy as np
from clustered_images import make_clusters, softmax64, unit64

from grain_jax.zero_shot.learned_vectors import (
    balanced_labels,
    head_loss,
    learn_proxies,
    train_head,
)


def even(count: int) -> np.ndarray:
    return np.full(count, 1 / count, np.float32)


def test_labels_are_balanced_and_the_certain_ones_made_so():
    clusters = make_clusters()
    scale, vectors = 6.0, clusters.vectors.astype(np.float32)
    image = clusters.images.image
    found = balanced_labels(image, vectors, scale, even(6))
    table = softmax64(scale * image.astype(np.float64) @ clusters.vectors.T)
    for _ in range(2000):
        table /= table.sum(axis=0) * 6 / len(image)
        table /= table.sum(axis=1, keepdims=True)
    certain = table.max(axis=1) > 0.6
    assert 5 < certain.sum() < len(image) - 5
    expected = np.where(certain[:, None], np.eye(6)[table.argmax(axis=1)], table)
    clear = np.abs(table.max(axis=1) - 0.6) > 0.01
    np.testing.assert_allclose(found[clear], expected[clear], atol=5e-3)


def test_proxies_are_those_of_plain_gradient_descent():
    clusters = make_clusters(num_classes=4, per_class=8)
    image, vectors = clusters.images.image.astype(np.float64), clusters.vectors
    labels = softmax64(10 * np.random.default_rng(0).normal(size=(32, 4)))
    temperature, rate, before, halved = 0.2, 10.0, np.inf, 0
    proxies = vectors.copy()
    for _ in range(60):
        gradient = np.zeros_like(proxies)
        for x, label in zip(image, labels, strict=True):
            gradient += np.outer(softmax64(proxies @ x / temperature) - label, x)
        size = np.sqrt((gradient**2).sum())
        if size > before:
            rate, halved = rate / 2, halved + 1
        before = size
        proxies = unit64(proxies - rate * gradient / (len(image) * temperature))
    assert halved > 0
    found = learn_proxies(
        clusters.images.image,
        vectors.astype(np.float32),
        labels.astype(np.float32),
        temperature,
        steps=60,
    )
    np.testing.assert_allclose(found, proxies, atol=1e-3)


def test_the_objective_of_the_head_is_its_formula():
    clusters = make_clusters(num_classes=4, per_class=5)
    image, vectors = clusters.images.image.astype(np.float64), 2.0 * clusters.vectors
    fractions, scale = np.array([0.4, 0.2, 0.2, 0.2]), 15.0
    cosine = image @ unit64(vectors).T
    transport = 0.0
    for i in range(20):
        transport += (
            sum(softmax64(scale * cosine[i])[k] * (1 - cosine[i, k]) for k in range(4)) / 20
        )
    for k in range(4):
        weights = softmax64(scale * cosine[:, k])
        transport += fractions[k] * sum(weights[i] * (1 - cosine[i, k]) for i in range(20))
    probability = softmax64(scale * cosine)
    mean = probability.mean(axis=0)
    information = -(mean @ np.log(mean)) + (probability * np.log(probability)).sum() / 20
    found = jax.jit(head_loss)(
        *(jnp.asarray(one, jnp.float32) for one in (vectors, image, scale, fractions))
    )
    np.testing.assert_allclose(float(found), transport - 0.3 * information, rtol=1e-5)


def test_training_lowers_the_objective():
    clusters = make_clusters()
    image, start = clusters.images.image, clusters.vectors.astype(np.float32)
    trained = train_head(image, start, 20.0, even(6), steps=100)
    np.testing.assert_allclose(np.linalg.norm(trained, axis=1), 1, atol=1e-5)
    loss = jax.jit(head_loss)
    before, after = (
        float(loss(*map(jnp.asarray, (one, image, np.float32(20.0), even(6)))))
        for one in (start, trained)
    )
    assert after < before - 0.01
