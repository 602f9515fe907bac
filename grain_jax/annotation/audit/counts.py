"""In how many images each text stands, for collections of any size: 16 bytes a text."""

import array
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64

from grain_jax.data.captions import normalize_text


@dataclass(frozen=True)
class Repeats:
    """In how many images a text stands."""

    exact: int  # as it is written
    normalized: int  # in lower case, without white space and punctuation at its ends


class TextCounts:
    """Counts of all texts of a collection.

    Texts are told apart by 64 bits of a hash: among 100 million, two are taken for one with a
    probability of 0.0003.
    """

    def __init__(self, images: Iterable[Iterable[str]]) -> None:
        """Args:
        images: the texts of each image; one that an image has twice counts once.
        """
        exact, normalized = array.array("Q"), array.array("Q")
        for texts in images:
            distinct = set(texts)
            exact.extend(map(_hash, distinct))
            normalized.extend(map(_hash, {normalized_text(text) for text in distinct}))
        self._exact, self._normalized = _repeated(exact), _repeated(normalized)

    def __call__(self, text: str) -> Repeats:
        """In how many images a text of the collection stands."""
        return Repeats(
            _look_up(self._exact, _hash(text)),
            _look_up(self._normalized, _hash(normalized_text(text))),
        )


def normalized_text(text: str) -> str:
    """The text in lower case, without white space and punctuation at its ends."""
    return normalize_text(text).strip(" .,;:!?\"'")


def _hash(text: str) -> int:
    data = text.encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


_Counted = tuple[UInt64[np.ndarray, "N"], Int[np.ndarray, "N"]]


def _repeated(hashes: "array.array[int]") -> _Counted:
    """Hashes that stand there more than once, sorted, and how often."""
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    return values[counts > 1], counts[counts > 1]


def _look_up(counted: _Counted, value: int) -> int:
    values, counts = counted
    place = int(np.searchsorted(values, np.uint64(value)))
    return int(counts[place]) if place < len(values) and int(values[place]) == value else 1
