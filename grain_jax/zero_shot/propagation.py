"""Label propagation over a graph of class texts and images, and ReCLIP's projection.

ZLaP: Stojnic et al. 2024, arXiv 2404.04072. ReCLIP: Hu et al. 2024, arXiv 2308.03793. Both solve
(I - alpha W) Z = Y, W the symmetrically normalised adjacency, Y one column a class with 1 at its
text. The answer to an image of the graph is its row of Z, that of ReCLIP's paper and of ZLaP's
transductive form. ZLaP is here in its inductive form, which scores any image by the rows of Z of
its neighbours, and an image of the graph is its own nearest one.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from grain_jax.zero_shot.arithmetic import unit
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Images, Score, Support
from grain_jax.zero_shot.neighbours import (
    nearest,
    neighbours_among,
    neighbours_within,
    rows_of,
)
from grain_jax.zero_shot.unlabeled import BLOCK_CELLS, class_vectors, images_to_fit

ZLAP_NEIGHBOURS, ZLAP_ALPHA, ZLAP_POWER = 5, 0.3, 5
RECLIP_NEIGHBOURS, RECLIP_ALPHA, RECLIP_ITERATIONS = 20, 0.99, 20
COLUMN_BLOCK = 32  # classes that are solved for at once: what a step reads stays in the cache


@dataclass(frozen=True)
class Edges:
    """From each of n nodes to k of `size` nodes; negative weights are 0."""

    found: Int[np.ndarray, "n k"]
    weights: Float[np.ndarray, "n k"]
    size: int

    def matrix(self, first: int = 0) -> Any:
        """Sparse, [first + n, size], in whose rows from `first` on the weights are."""
        import scipy.sparse as sparse  # here: its import takes every command part of a second

        count, number = self.found.shape
        starts = np.concatenate([np.zeros(first, int), np.arange(count + 1) * number])
        data = np.maximum(self.weights, 0).astype(np.float32).ravel()
        shape = (first + count, self.size)
        return sparse.csr_array((data, self.found.ravel(), starts), shape=shape)

    @functools.cached_property
    def adjacency(self) -> Any:
        """Sparse, [size, size], in float64: edges from the last nodes, and their reverse, added."""
        one_way = self.matrix(self.size - len(self.found)).astype(np.float64)
        return (one_way + one_way.T).tocsr()

    def __matmul__(self, values: Float[np.ndarray, "size D"]) -> Float[np.ndarray, "n D"]:
        """The weighted sum of the rows of the nodes that each is joined with."""
        summed: np.ndarray = self.matrix() @ values
        return summed


def zlap(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """ZLaP: each image is joined with its 5 nearest images and its 5 nearest class texts; the
    cosines of the latter, which are smaller, are taken to the power of 5.

    The inductive form of the paper, without its thinning out of Z.
    """
    classes = class_vectors(texts)
    keys = images_to_fit(unlabeled, len(classes.vectors))
    assert unlabeled is not None

    def edges(
        near: tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]], image: np.ndarray
    ) -> Edges:
        found, cosines = nearest(image, classes.vectors, ZLAP_NEIGHBOURS)
        return Edges(
            np.concatenate([found, near[0] + len(classes.vectors)], axis=1),
            np.concatenate([np.maximum(cosines, 0) ** ZLAP_POWER, near[1]], axis=1),
            len(classes.vectors) + len(keys),
        )

    joined = edges(neighbours_within(unlabeled, keys, ZLAP_NEIGHBOURS), keys)
    solved = propagate(joined, len(classes.vectors), alpha=ZLAP_ALPHA)

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        near = neighbours_among(images, unlabeled, keys, ZLAP_NEIGHBOURS)
        return classes.expand(edges(near, images.image) @ solved)

    return score


def reclip_projection(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """Cosine after ReCLIP's projection of images and class texts (`projection`)."""
    classes = class_vectors(texts)
    basis = projection(classes.vectors)
    vectors = unit(classes.vectors @ basis)
    return lambda images, alpha: classes.expand(unit(images.image @ basis) @ vectors.T)


def reclip_propagation(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """Labels propagated from the class texts over the 20 nearest neighbours of each text and image,
    after ReCLIP's projection: the first half of ReCLIP, whose second half tunes the towers.

    An image that is not in the graph has the row of Z that it would have if no other node took
    notice of it: alpha times the sum over its 20 neighbours j of w_j Z_j / sqrt(d d_j), d_j being
    the degrees and d the sum of the w_j.
    """
    classes = class_vectors(texts)
    basis = projection(classes.vectors)
    keys = images_to_fit(unlabeled, len(classes.vectors))
    assert unlabeled is not None
    nodes = np.concatenate([unit(classes.vectors @ basis), unit(keys @ basis)])
    within = nearest(nodes, nodes, RECLIP_NEIGHBOURS, others=True)
    joined = Edges(*within, len(nodes))
    solved = propagate(
        joined, len(classes.vectors), alpha=RECLIP_ALPHA, iterations=RECLIP_ITERATIONS
    )
    degree = np.asarray(joined.adjacency.sum(axis=1))

    def of_others(image: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n D"]:
        found, cosines = nearest(unit(image @ basis), nodes, RECLIP_NEIGHBOURS)
        weights = np.maximum(cosines, 0)
        own_degree = weights.sum(axis=1, keepdims=True, dtype=np.float64)
        scale = np.sqrt(np.maximum(own_degree * degree[found], 1e-30))
        weights = (RECLIP_ALPHA * weights / scale).astype(np.float32)
        return Edges(found, weights, len(nodes)) @ solved

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        own = rows_of(images, unlabeled, keys)
        rows = solved[own + len(classes.vectors)]  # of an image of the graph
        if (others := own < 0).any():
            rows[others] = of_others(images.image[others])
        return classes.expand(rows)

    return score


def projection(vectors: Float[np.ndarray, "D E"]) -> Float[np.ndarray, "E r"]:
    """Orthonormal basis of what the class vectors span, without the direction that they share:
    their singular vectors but the first. One class alone keeps its direction.
    """
    _, values, rows = np.linalg.svd(vectors.astype(np.float64), full_matrices=False)
    kept = rows[values > 1e-6 * values[0]]
    return (kept[1:] if len(kept) > 1 else kept).T.astype(np.float32)


def propagate(
    edges: Edges,
    num_classes: int,
    *,
    alpha: float,
    iterations: int = 50,
    tolerance: float = 1e-6,
) -> Float[np.ndarray, "nodes D"]:
    """Z of (I - alpha W) Z = Y by conjugate gradients in float32, a block of classes at a time.

    Args:
        edges: from all nodes, or from the last ones; the first `num_classes` nodes are class texts.
        num_classes: D.
        alpha: in [0, 1).
        iterations: at most.
        tolerance: of the largest residual of a class, relative to its column of Y.
    """
    import scipy.sparse as sparse

    size, graph = edges.size, edges.adjacency
    degree = graph.sum(axis=1)
    halved = sparse.diags_array(1.0 / np.sqrt(np.where(degree > 0, degree, 1.0)))
    graph = (halved @ graph @ halved).tocsr().astype(np.float32)
    solved = np.empty((size, num_classes), np.float32)
    step = max(1, min(COLUMN_BLOCK, BLOCK_CELLS // size))
    for start in range(0, num_classes, step):
        columns = np.arange(start, min(num_classes, start + step))
        target = np.zeros((size, len(columns)), np.float32)
        target[columns, columns - start] = 1.0
        solved[:, columns] = _conjugate_gradients(graph, target, alpha, iterations, tolerance)
    return solved


def _conjugate_gradients(
    graph: Any, target: np.ndarray, alpha: float, iterations: int, tolerance: float
) -> np.ndarray:
    """Each column by its own steps; the columns of `target` have unit length."""
    solution, residual, direction = np.zeros_like(target), target.copy(), target.copy()
    size = np.einsum("ij,ij->j", residual, residual)
    for _ in range(iterations):
        if np.sqrt(size.max()) <= tolerance:
            break
        moved = graph @ direction
        moved *= -np.float32(alpha)
        moved += direction
        curvature = np.einsum("ij,ij->j", direction, moved)
        step = size / np.maximum(curvature, 1e-30)
        solution += step * direction
        residual -= step * moved
        before, size = size, np.einsum("ij,ij->j", residual, residual)
        direction *= size / np.maximum(before, 1e-30)
        direction += residual
    return solution
