"""What methods that are fitted to images without labels share: class vectors and blocks of
similarities.

All of it is blocked: nothing of images by images is held, and of images by classes at most
`MAX_CELLS`. More images than that allows are fitted to a random draw of
them, the same each time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.zero_shot.arithmetic import log_softmax
from grain_jax.zero_shot.method import ClassBanks, Images
from grain_jax.zero_shot.text_kinds import NAMES

MAX_CELLS = 1 << 26  # images x classes that a fit holds: 67,000 images of 1,000 classes
BLOCK_CELLS = 1 << 22  # of a temporary array
DRAW_SEED = 0  # of the images that are fitted to where all are too many


@dataclass(frozen=True)
class ClassVectors:
    """One unit vector for each of D classes that differ, and which of them each of K classes has.

    Classes with the same texts are one class to a method, and tie.
    """

    vectors: Float[np.ndarray, "D E"]
    of_class: Int[np.ndarray, "K"]

    @property
    def fractions(self) -> Float[np.ndarray, "D"]:
        """Of the K classes."""
        counts = np.bincount(self.of_class, minlength=len(self.vectors))
        return (counts / len(self.of_class)).astype(np.float32)

    def expand(self, scores: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n K"]:
        """Scores of the K classes from those of the D that differ, in float32."""
        scores = scores.astype(np.float32, copy=False)
        return scores if scores.shape[1] == len(self.of_class) else scores[:, self.of_class]


def class_vectors(texts: ClassBanks) -> ClassVectors:
    """Mean embedding of the names in their templates, of unit length whatever the
    `prompt_ensembling`.
    """
    bank = texts[NAMES]
    return ClassVectors(bank.unit_mean_embed, bank.distinct[1])


def images_to_fit(
    unlabeled: Images | None, num_classes: int, *, max_cells: int = MAX_CELLS
) -> Float[np.ndarray, "N E"]:
    """Embeddings that a method is fitted to: all, or where N times the number of classes would be
    more than `max_cells`, a random draw in the order of the images, the same each time.

    Evenly spaced images would look at the labels: sources list one class after another, and each
    class would have its share.

    Raises ValueError where there are no images.
    """
    if unlabeled is None or len(unlabeled) == 0:
        raise ValueError(
            "This method is fitted to images without labels and was given none; pass unlabeled=."
        )
    most = max(1, max_cells // max(1, num_classes))
    if len(unlabeled) <= most:
        return unlabeled.image
    drawn = np.random.default_rng(DRAW_SEED).permutation(len(unlabeled))[:most]
    return unlabeled.once(("drawn", most), lambda: unlabeled.image[np.sort(drawn)])


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of an array, of `BLOCK_CELLS` at most."""
    step = max(1, BLOCK_CELLS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def log_probabilities(
    images: Float[np.ndarray, "N E"], vectors: Float[np.ndarray, "D E"], scale: float
) -> Float[np.ndarray, "N D"]:
    """Log of the softmax over the classes of `scale` times the cosine, as CLIP predicts."""
    found = np.empty((len(images), len(vectors)), np.float32)
    for rows in blocks(len(images), len(vectors)):
        found[rows] = log_softmax(np.float32(scale) * (images[rows] @ vectors.T))
    return found


def best_images(values: Float[np.ndarray, "N D"], count: int) -> Int[np.ndarray, "m D"]:
    """Rows of the `count` largest values of each column, or all rows where there are fewer."""
    count = min(count, len(values))
    if count == len(values):
        return np.tile(np.arange(count)[:, None], (1, values.shape[1]))
    best = np.empty((count, values.shape[1]), int)
    for columns in blocks(values.shape[1], len(values)):
        order = np.argpartition(-values[:, columns], count - 1, axis=0)
        best[:, columns] = order[:count]
    return best
