"""Kinds of class texts: what is written about each class, for a method to compare images with.

A kind is an entry of `TEXT_KINDS`: a pure function of `ClassTexts`, and the text encoding that it
goes through. Each different text is encoded once for all methods.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot import class_prompts, waffle
from grain_jax.zero_shot.class_prompts import Groups
from grain_jax.zero_shot.scorers import ClassTexts, TextBank, text_bank

EncodeTexts = Callable[..., Float[np.ndarray, "T E"]]  # called as `Encoder.texts` is
NAMES, DESCRIPTIONS, REGIONS = "names", "descriptions", "regions"
NAMED_DESCRIPTIONS, WAFFLE, CUPL = "named_descriptions", "waffle", "cupl"
SUBCLASSES, SYNONYMS, CONTEXTS, PAIRS = "subclasses", "synonyms", "contexts", "pairs"
REJECT, ACCEPT = "reject", "accept"
DETECTED = "detected"


@dataclass(frozen=True)
class TextKind:
    """Args:
    make: the texts of each class, in the order of the classes, or the groups of texts that the
        kind consists of; none empty. None where these classes have none of the kind.
    encoded_as: "caption", compared with images, or "description", compared with regions.
    """

    make: Callable[[ClassTexts], Groups | None]
    encoded_as: str = "caption"


def _if_described(
    texts: ClassTexts, groups: Sequence[Sequence[str]]
) -> Sequence[Sequence[str]] | None:
    return groups if len(texts.undescribed) < len(texts.names) else None


# Kinds whose texts come from a file of their own: `evaluate --texts=KIND=FILE`.
FROM_FILES: tuple[str, ...] = (CUPL, SUBCLASSES, SYNONYMS, CONTEXTS, PAIRS, REJECT, ACCEPT)


def controls_of(control: str) -> tuple[str, str, str]:
    """Kinds of one of `waffle.CONTROLS`: with the name, for the image without it, for regions."""
    return f"{control}_named_descriptions", f"{control}_descriptions", f"{control}_regions"


def _control_kinds() -> dict[str, TextKind]:
    kinds = {}
    for name, control in waffle.CONTROLS.items():
        named, whole, regions = controls_of(name)
        kinds[named] = TextKind(waffle.named_control(control))
        kinds[whole] = TextKind(waffle.whole_control(control))
        kinds[regions] = TextKind(waffle.region_control(control), "description")
    return kinds


TEXT_KINDS: Mapping[str, TextKind] = {
    # the name in every template
    NAMES: TextKind(lambda texts: texts.names),
    # each description, as the image is compared with it
    DESCRIPTIONS: TextKind(lambda texts: _if_described(texts, texts.descriptions)),
    # each description, as regions are compared with it
    REGIONS: TextKind(lambda texts: _if_described(texts, texts.regions), "description"),
    # each description behind the name
    NAMED_DESCRIPTIONS: TextKind(
        lambda texts: class_prompts.named_descriptions(texts, texts.described)
    ),
    # the name with random words and characters
    WAFFLE: TextKind(waffle.waffle_texts),
    **_control_kinds(),
    CUPL: TextKind(class_prompts.of_file(CUPL)),
    # the bare name, as regions are compared with it
    DETECTED: TextKind(lambda texts: tuple((name,) for name in texts.called), "description"),
    # a group for each subclass
    SUBCLASSES: TextKind(class_prompts.subclass_prompts),
    SYNONYMS: TextKind(class_prompts.most_frequent_synonyms),
    # of each class a text for each context, in one order
    CONTEXTS: TextKind(class_prompts.context_prompts),
    # a group for each pair of `ClassTexts.pairs`
    PAIRS: TextKind(class_prompts.pair_texts),
    # groups of two texts
    REJECT: TextKind(class_prompts.shared_of_file(REJECT)),
    ACCEPT: TextKind(class_prompts.shared_of_file(ACCEPT)),
}


# Kinds in which classes without descriptions fall back to their name.
OF_DESCRIPTIONS = frozenset({DESCRIPTIONS, REGIONS, NAMED_DESCRIPTIONS}) | _control_kinds().keys()
# Kinds that put descriptions into `ClassTexts.description_template`.
IN_TEMPLATE = frozenset({DESCRIPTIONS, *(controls_of(name)[1] for name in waffle.CONTROLS)})
# Kinds without the prompts of `ClassTexts.templates`, also of classes that fall back to their name.
UNPROMPTED = frozenset({REGIONS, WAFFLE, DETECTED, PAIRS, REJECT, ACCEPT}) | {
    controls_of(name)[2] for name in waffle.CONTROLS
}
# Kinds that are drawn at random, by `ClassTexts.draw`.
DRAWN = frozenset({WAFFLE}) | _control_kinds().keys()


def source_of(kind: str) -> str:
    """What a set without texts of the kind lacks, in words, with the option that gives it."""
    if kind in FROM_FILES:
        return f"texts of the kind {kind!r} (--texts={kind}=FILE)"
    of = "two classes or more" if kind in _control_kinds() else "the classes"
    return f"descriptions of {of} (--descriptions)" if kind in OF_DESCRIPTIONS else kind


def texts_differ(
    first: ClassTexts, second: ClassTexts, kinds: Collection[str], *, has_regions: bool
) -> bool:
    """Whether a model with or without regions compares images with other texts of the `kinds`."""
    return any(
        TEXT_KINDS[kind].make(first) != TEXT_KINDS[kind].make(second)
        for kind in kinds
        if has_regions or TEXT_KINDS[kind].encoded_as != "description"
    )


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
