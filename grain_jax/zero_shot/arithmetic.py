"""What several families of methods compute."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int, Shaped

from grain_jax.zero_shot.scorers import MAX_CELLS, TextBank


def unit(vectors: Float[np.ndarray, "*n E"]) -> Float[np.ndarray, "*n E"]:
    """Scaled to unit length; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def softmax(logits: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n K"]:
    """Over the last axis, the classes mostly."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def log_softmax(logits: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n K"]:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)  # first: large logits lose their digits
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def logsumexp(logits: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n 1"]:
    """Over the last axis, which is kept."""
    top = logits.max(axis=-1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def mean_vectors(bank: TextBank) -> Float[np.ndarray, "K E"]:
    """Mean embedding of each class's texts, of unit length whatever the `prompt_ensembling`."""
    return bank.unit_mean_embed[bank.distinct[1]]


def cosines_with(
    classes: Float[np.ndarray, "K E"],
) -> Callable[[Float[np.ndarray, "n E"]], Float[np.ndarray, "n K"]]:
    """Products with the vectors of classes, equal ones computed once, so that they tie exactly."""
    distinct, of_class = np.unique(classes, axis=0, return_inverse=True)
    if len(distinct) == len(classes):
        return lambda vectors: vectors @ classes.T
    return lambda vectors: (vectors @ distinct.T)[:, of_class.reshape(-1)]


def best_columns(values: Float[np.ndarray, "n K"], count: int) -> Int[np.ndarray, "n k"]:
    """Columns of the `count` largest values of each row, or of all where there are fewer; best
    first, the first of equal ones first.
    """
    if count >= values.shape[1]:
        return np.argsort(-values, axis=1, kind="stable")
    found = np.argpartition(-values, count - 1, axis=1)[:, :count]
    held = np.take_along_axis(values, found, axis=1)
    found = np.take_along_axis(found, np.lexsort((found, -held), axis=1), axis=1)
    # Which of several that tie for the last place were taken is not said.
    least = held.min(axis=1, keepdims=True)
    tied = np.nonzero(np.count_nonzero(values >= least, axis=1) > count)[0]
    found[tied] = np.argsort(-values[tied], axis=1, kind="stable")[:, :count]
    return found


def in_blocks(
    score: Callable[[np.ndarray], np.ndarray], image: Float[np.ndarray, "n E"], *, cells: int
) -> Shaped[np.ndarray, "n _"]:
    """`score` of the images, of so many at once that `cells` for each stay within `MAX_CELLS`."""
    return np.concatenate([score(image[rows]) for rows in blocks(len(image), cells=cells)])


def blocks(count: int, *, cells: int) -> Iterator[slice]:
    """Slices of so many rows of `count` that `cells` for each stay within `MAX_CELLS`."""
    step = max(1, MAX_CELLS // max(1, cells))
    return (slice(i, i + step) for i in range(0, count, step))
