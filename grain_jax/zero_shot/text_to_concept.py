"""Text-To-Concept (Moayeri et al. 2023, arXiv 2305.06386): a linear map from the space of another
image encoder to that of this model, on which its texts then work.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.arithmetic import unit


@dataclass(frozen=True)
class LinearMap:
    """Maps embeddings of another encoder to embeddings of unit length of this one."""

    matrix: Float[np.ndarray, "D E"]
    offset: Float[np.ndarray, "E"]

    def __call__(self, other: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n E"]:
        return unit(other @ self.matrix + self.offset)


def fit_linear_map(other: Float[np.ndarray, "N D"], own: Float[np.ndarray, "M E"]) -> LinearMap:
    """The map and offset of least squared error over images that both encoders embedded.

    No label and no text is used. Of several maps of the same error, as with fewer images than
    dimensions, it is the one of least norm. Raises ValueError for unequal numbers of images.
    """
    if len(other) != len(own) or len(own) == 0:
        raise ValueError(
            f"Given {len(other)} embeddings of the one encoder and {len(own)} of the other; a map "
            "is fitted to the same images in the same order, at least one."
        )
    other_mean, own_mean = other.mean(axis=0, dtype=float), own.mean(axis=0, dtype=float)
    matrix = np.linalg.lstsq(other - other_mean, own - own_mean, rcond=None)[0]
    return LinearMap(matrix, own_mean - other_mean @ matrix)
