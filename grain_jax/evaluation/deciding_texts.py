"""Which of a class's descriptions an image, or its best region, is most similar to."""

import numpy as np
from jaxtyping import Float, Int

from grain_jax.inference.encoder import ImageFeatures
from grain_jax.zero_shot.method import ClassBanks
from grain_jax.zero_shot.methods import METHODS
from grain_jax.zero_shot.scorers import TextBank
from grain_jax.zero_shot.text_kinds import (
    DESCRIPTIONS,
    NAMED_DESCRIPTIONS,
    REGIONS,
    TEXT_KINDS,
)

KINDS = (REGIONS, DESCRIPTIONS, NAMED_DESCRIPTIONS)
BestText = tuple[str, float]  # and its cosine


class DecidingTexts:
    """Of the images of a set, the most similar description of any class.

    By a method with the image alone (alpha 1, or none) the cosine is that of the image; by one with
    regions, that of the image's most similar region.
    """

    def __init__(self, banks: ClassBanks, features: ImageFeatures):
        self._banks, self._features = banks, features
        kinds = (kind for kind in KINDS if banks.get(kind) is not None)
        self._groups = {kind: TEXT_KINDS[kind].make(banks.texts) for kind in kinds}

    def __call__(
        self, method: str, alpha: float | None, start: int, classes: Int[np.ndarray, "n"]
    ) -> list[BestText] | None:
        """For the images from `start` on, the best text of the class given for each; None where
        the method compares nothing with descriptions.
        """
        kind = kind_of(method, alpha)
        if kind is None or (bank := self._banks.get(kind)) is None:
            return None
        if (groups := self._groups[kind]) is None:
            return None
        found = []
        for row, k in enumerate(classes.tolist()):
            cosines = self._cosines(kind, start + row, bank, k)
            best = int(cosines.argmax())
            found.append((groups[k][best], float(cosines[best])))
        return found

    def _cosines(self, kind: str, row: int, bank: TextBank, k: int) -> Float[np.ndarray, "_"]:
        texts = bank.of_class(k)
        if kind == REGIONS and self._features.regions is not None:
            return (texts @ self._features.regions[row].T).max(axis=1)
        return texts @ self._features.image[row]


def kind_of(method: str, alpha: float | None) -> str | None:
    """The kind of descriptions that a method compares images or regions with; None for others, and
    for methods with variants of an image, whose score rests on those.
    """
    if method not in METHODS or METHODS[method].variants:
        return None
    texts = METHODS[method].texts | METHODS[method].optional_texts
    by_region = alpha is not None and alpha < 1
    order = (REGIONS,) if by_region else (DESCRIPTIONS, NAMED_DESCRIPTIONS)
    return next((kind for kind in order if kind in texts), None)
