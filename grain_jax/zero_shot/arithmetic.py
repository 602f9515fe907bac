"""What several families of methods compute."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.scorers import MAX_CELLS


def unit(vectors: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n E"]:
    """Scaled to unit length; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def softmax(logits: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "n K"]:
    """Over the classes."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def in_blocks(
    score: Callable[[np.ndarray], np.ndarray], image: Float[np.ndarray, "n E"], *, cells: int
) -> Float[np.ndarray, "n _"]:
    """`score` of the images, of so many at once that `cells` for each stay within `MAX_CELLS`."""
    step = max(1, MAX_CELLS // max(1, cells))
    return np.concatenate([score(image[i : i + step]) for i in range(0, len(image), step)])
