"""Steps that several zero-shot methods share, on arrays."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

from grain_jax.zero_shot.scorers import TextBank


def unit(vectors: Float[np.ndarray, "*n E"]) -> Float[np.ndarray, "*n E"]:
    """Scaled to length 1; zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def softmax(logits: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n K"]:
    """Over the last axis."""
    return np.exp(log_softmax(logits))


def log_softmax(logits: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n K"]:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)  # first: large logits lose their digits
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def logsumexp(logits: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n 1"]:
    """Over the last axis, which is kept."""
    top = logits.max(axis=-1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def mean_vectors(bank: TextBank) -> Float[np.ndarray, "K E"]:
    """Mean embedding of each class's texts, scaled to unit length."""
    return unit(bank.mean_embed)[bank.distinct[1]]


def cosines(
    vectors: Float[np.ndarray, "n E"], classes: Float[np.ndarray, "K E"]
) -> Float[np.ndarray, "n K"]:
    """Products with the vectors of classes, equal ones computed once, so that they tie exactly."""
    distinct, of_class = np.unique(classes, axis=0, return_inverse=True)
    return (vectors @ distinct.T)[:, of_class.reshape(-1)]


def in_blocks(
    compute: Callable[[Shaped[np.ndarray, "_ ..."]], Float[np.ndarray, "_ K"]],
    rows: Shaped[np.ndarray, "n ..."],
    *,
    step: int,
) -> Float[np.ndarray, "n K"]:
    """`compute` of `step` rows (at least one) at a time."""
    step = max(1, step)
    return np.concatenate([compute(rows[i : i + step]) for i in range(0, len(rows), step)])
