"""Label propagation and ReCLIP's projection against dense linear algebra in float64."""

import numpy as np
import pytest
from clustered_images import make_clusters, unit64

from grain_jax.zero_shot.method import Images
from grain_jax.zero_shot.propagation import (
    Edges,
    projection,
    propagate,
    reclip_projection,
    reclip_propagation,
    zlap,
)


def largest(products: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest of each row where they are positive, else 0."""
    kept = np.zeros_like(products)
    for row, values in enumerate(products):
        best = np.argsort(-values)[:count]
        kept[row, best] = np.where(np.isfinite(values[best]), np.maximum(values[best], 0), 0)
    return kept


def dense_solution(one_way: np.ndarray, alpha: float, num_classes: int) -> np.ndarray:
    graph = one_way + one_way.T
    degree = graph.sum(axis=1)
    degree[degree == 0] = 1
    graph = graph / np.sqrt(degree[:, None] * degree[None, :])
    eye = np.eye(len(graph))
    return np.linalg.solve(eye - alpha * graph, eye[:, :num_classes])


def without_self(products: np.ndarray) -> np.ndarray:
    products = products.copy()
    np.fill_diagonal(products, -np.inf)
    return products


def test_zlap_is_the_dense_solution():
    clusters = make_clusters(num_classes=7, per_class=9)
    image, vectors = clusters.images.image.astype(np.float64), clusters.vectors
    others = Images(make_clusters(num_classes=7, per_class=9, spread=0.5).images.image)
    texts = largest(image @ vectors.T, 5) ** 5
    between = largest(without_self(image @ image.T), 5)
    one_way = np.zeros((70, 70))
    one_way[7:] = np.concatenate([texts, between], axis=1)
    solved = dense_solution(one_way, 0.3, 7)
    score = zlap(clusters.banks, unlabeled=clusters.images)
    for images in (clusters.images, others):
        x = images.image.astype(np.float64)
        row = np.concatenate([largest(x @ vectors.T, 5) ** 5, largest(x @ image.T, 5)], axis=1)
        np.testing.assert_allclose(score(images, None), row @ solved, atol=1e-5, rtol=1e-4)


def reclip_graph(image: np.ndarray, vectors: np.ndarray):
    """(nodes, adjacency, normalised adjacency, basis), dense."""
    _, _, rows = np.linalg.svd(vectors)
    without = rows[1 : len(vectors)].T  # what the texts span, without the first direction
    nodes = np.concatenate([unit64(vectors @ without), unit64(image @ without)])
    one_way = np.maximum(largest(without_self(nodes @ nodes.T), 20), 0)
    graph = one_way + one_way.T
    halved = np.diag(graph.sum(axis=1) ** -0.5)
    return nodes, graph, halved @ graph @ halved, without


def test_reclip_propagation_is_the_dense_inverse():
    """Of the images in the graph. 18 nodes: 20 steps of conjugate gradients are exact."""
    clusters = make_clusters(num_classes=3, per_class=5, templates=2)
    image, vectors = clusters.images.image.astype(np.float64), clusters.vectors
    _, _, halved, _ = reclip_graph(image, vectors)
    inverse = np.linalg.inv(np.eye(18) - 0.99 * halved)
    score = reclip_propagation(clusters.banks, unlabeled=clusters.images)
    np.testing.assert_allclose(score(clusters.images, None), inverse[3:, :3], rtol=1e-4)


def test_reclip_propagation_of_many_classes_is_20_steps_of_conjugate_gradients():
    """And an image outside the graph has the row that it would have beside it."""
    clusters = make_clusters(num_classes=50, per_class=6)
    image, vectors = clusters.images.image.astype(np.float64), clusters.vectors
    nodes, graph, halved, without = reclip_graph(image, vectors)
    system, target = np.eye(len(graph)) - 0.99 * halved, np.eye(len(graph))[:, :50]
    solved = np.empty_like(target)
    for column in range(50):
        x, r = np.zeros(len(graph)), target[:, column].copy()
        p = r.copy()
        for _ in range(20):
            step = r @ r / (p @ system @ p)
            x, new = x + step * p, r - step * system @ p
            p, r = new + new @ new / (r @ r) * p, new
        solved[:, column] = x
    score = reclip_propagation(clusters.banks, unlabeled=clusters.images)
    np.testing.assert_allclose(score(clusters.images, None), solved[50:], atol=1e-5, rtol=1e-3)
    others = Images(make_clusters(num_classes=50, per_class=1, spread=0.5).images.image)
    weights = np.maximum(largest(unit64(others.image @ without) @ nodes.T, 20), 0)
    degrees = weights.sum(axis=1, keepdims=True) * graph.sum(axis=0)
    expected = 0.99 * (weights / np.sqrt(degrees)) @ solved
    np.testing.assert_allclose(score(others, None), expected, atol=1e-5, rtol=1e-3)
    both = Images(np.concatenate([others.image[:7], clusters.images.image[:7]]))
    np.testing.assert_allclose(
        score(both, None), np.concatenate([expected[:7], solved[50:57]]), atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize("alpha", [0.3, 0.99])
def test_conjugate_gradients_solve_a_larger_graph(alpha):
    rng = np.random.default_rng(0)
    found = np.stack([rng.permutation(130)[:6] for _ in range(120)])
    weights = rng.uniform(-0.2, 1, size=found.shape).astype(np.float32)
    edges = Edges(found, weights, 130)
    one_way = np.zeros((130, 130))
    one_way[10:] = edges.matrix().toarray()
    assert one_way.min() == 0
    solved = propagate(edges, 10, alpha=alpha, iterations=300)
    np.testing.assert_allclose(solved, dense_solution(one_way, alpha, 10), atol=1e-4)


def test_a_class_without_edges_keeps_its_label():
    edges = Edges(np.array([[0], [0]]), np.ones((2, 1), np.float32), 4)
    solved = propagate(edges, 2, alpha=0.5)
    np.testing.assert_allclose(solved[:, 1], [0, 1, 0, 0])
    assert (solved[2:, 0] > 0).all()


def test_projection_drops_the_first_direction_of_the_classes():
    clusters = make_clusters(num_classes=6)
    vectors = clusters.vectors
    left, _, _ = np.linalg.svd(vectors.T, full_matrices=False)  # columns are classes
    basis = projection(vectors.astype(np.float32))
    np.testing.assert_allclose(basis @ basis.T, left[:, 1:] @ left[:, 1:].T, atol=1e-5)
    expected = unit64(clusters.images.image @ left[:, 1:]) @ unit64(vectors @ left[:, 1:]).T
    found = reclip_projection(clusters.banks)(clusters.images, None)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_class_keeps_its_direction():
    vector = unit64(np.ones((1, 4))).astype(np.float32)
    np.testing.assert_allclose(np.abs(projection(vector)), np.full((4, 1), 0.5), atol=1e-6)
