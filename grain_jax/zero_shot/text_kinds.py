"""Kinds of class texts: what is written about each class, for a method to compare images with.

A kind is an entry of `TEXT_KINDS`: a pure function of `ClassTexts`, and the text encoding that it
goes through. Each different text is encoded once for all methods.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.scorers import ClassTexts, TextBank, text_bank

EncodeTexts = Callable[..., Float[np.ndarray, "T E"]]  # called as `Encoder.texts` is
Groups = Sequence[Sequence[str]]  # the texts of each class
NAMES, DESCRIPTIONS, REGIONS = "names", "descriptions", "regions"


@dataclass(frozen=True)
class TextKind:
    """Args:
    make: the texts of each class, in the order of the classes, none empty; None where these
        classes have none of the kind.
    encoded_as: "caption", compared with images, or "description", compared with regions.
    """

    make: Callable[[ClassTexts], Groups | None]
    encoded_as: str = "caption"


def _if_described(
    texts: ClassTexts, groups: Sequence[Sequence[str]]
) -> Sequence[Sequence[str]] | None:
    return groups if len(texts.undescribed) < len(texts.names) else None


# Kinds whose texts come from a file of their own: `evaluate --texts=KIND=FILE`.
FROM_FILES: tuple[str, ...] = ()


TEXT_KINDS: Mapping[str, TextKind] = {
    # the name in every template
    NAMES: TextKind(lambda texts: texts.names),
    # each description, as the image is compared with it
    DESCRIPTIONS: TextKind(lambda texts: _if_described(texts, texts.descriptions)),
    # each description, as regions are compared with it
    REGIONS: TextKind(lambda texts: _if_described(texts, texts.regions), "description"),
}


def encode_kinds(
    encode_texts: EncodeTexts, texts: ClassTexts, kinds: Collection[str], *, has_regions: bool
) -> dict[str, TextBank]:
    """The banks of the `kinds` that the classes, and a model with or without regions, have.

    Texts of several kinds are encoded in one call for each text encoding, duplicates once.
    """
    groups: dict[str, Groups] = {}
    for kind, one in TEXT_KINDS.items():
        possible = kind in kinds and (has_regions or one.encoded_as != "description")
        made = one.make(texts) if possible else None
        if made is not None:
            groups[kind] = made
    banks: dict[str, TextBank] = {}
    for encoded_as in dict.fromkeys(TEXT_KINDS[kind].encoded_as for kind in groups):
        chosen = [kind for kind in groups if TEXT_KINDS[kind].encoded_as == encoded_as]
        encode = functools.partial(encode_texts, kind=encoded_as)
        joined = text_bank(encode, [group for kind in chosen for group in groups[kind]])
        start = 0
        for kind in chosen:
            stop = start + len(groups[kind])
            banks[kind] = joined.part(start, stop)
            start = stop
    return {kind: banks[kind] for kind in groups}
