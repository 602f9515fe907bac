"""RoboShot: images without the directions that texts say do not matter."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.arithmetic import unit
from grain_jax.zero_shot.by_text import name_scores
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Images, Score, Support
from grain_jax.zero_shot.scorers import TextBank
from grain_jax.zero_shot.text_kinds import ACCEPT, REJECT

MIN_LENGTH = 1e-4  # of what a direction adds to those before it


def by_name_without_directions(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """The class name against the image from which each direction of `reject` was removed, one after
    the other, and to which its part along each direction of `accept` was added once more.

    A direction is what the two texts of a pair differ in; those of a file are made orthogonal.
    """
    rejected = directions(texts[REJECT])
    accepted = directions(texts.banks[ACCEPT]) if ACCEPT in texts.banks else rejected[:0]

    def changed(image: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n E"]:
        for direction in rejected:
            image = unit(image - np.outer(image @ direction, direction))
        for direction in accepted:
            image = unit(image + np.outer(image @ direction, direction))
        return image.astype(np.float32)

    return lambda images, alpha: name_scores(Images(changed(images.image)), texts)


def directions(pairs: TextBank) -> Float[np.ndarray, "m E"]:
    """Orthogonal directions of unit length that span what the texts of each pair differ in."""
    differences = unit(np.stack([_difference(pairs.embed[rows]) for rows in pairs.members]))
    found: list[np.ndarray] = []
    for vector in differences:
        rest = _without(_without(vector, found), found)  # twice: rounding of the first is removed
        if np.linalg.norm(rest) > MIN_LENGTH:
            found.append(unit(rest))
    return np.stack(found) if found else differences[:0]


def _difference(pair: Float[np.ndarray, "2 E"]) -> Float[np.ndarray, "E"]:
    return (pair[0] - pair[1]).astype(np.float64)


def _without(vector: np.ndarray, found: Iterable[np.ndarray]) -> np.ndarray:
    for direction in found:
        vector = vector - (vector @ direction) * direction
    return vector
