"""Texts about a bird: web captions, MLLM captions, region descriptions, class prompts.

No text mentions the background: with it in half of the captions a model learns the background
first and nothing about the bird for hundreds of steps.
"""

import itertools
import re
from collections.abc import Sequence

from grain_jax.config import SyntheticBirdsConfig
from grain_jax.data.synthetic_birds.species import COLOURS, PARTS, SHAPES, SYLLABLES, Species, Trait

NAME_TEMPLATES = (
    "a photo of a {}",
    "the {} bird",
    "my {} picture",
    "a {} in the wild",
    "a picture of one {} today",
)
PROMPT_TEMPLATES = NAME_TEMPLATES[:2]  # for zero-shot recognition by name
GENERIC_CAPTION = "a photo of a bird"
CAPTION_TEMPLATES = {
    "easy": ("a bird with {}",),
    "hard": (
        "a bird with {}",
        "this bird has {}",
        "a photo of a bird with {}",
        "a bird that has {}",
    ),
}
GLOBAL_TEMPLATE = "a bird with {}"
# Of a region, the canonical one first. {a}: article, {look}: "red spiky", {seem}: "red and spiky".
PHRASINGS = {
    "easy": ("{a}{look} {part}", "{a_part}{part} that {be} {seem}"),
    "hard": (
        "{a}{look} {part}",
        "{a_part}{part} that {be} {seem}",
        "the {look} {part} of a bird",
        "{a_part}{part} in {seem}",
    ),
}
OBJECTS = {  # objects in a scene, and their colours
    "stone": ("gray", "brown"),
    "leaf": ("green", "yellow", "orange", "red"),
    "flower": ("white", "purple", "yellow", "blue"),
    "berry": ("red", "blue", "purple", "black"),
    "mushroom": ("red", "brown", "orange"),
}
OTHER_BIRD = "another {} bird"  # takes a body colour


def describe(part: str, trait: Trait, phrasing: str = PHRASINGS["easy"][0]) -> str:
    """A part in words, canonically "a red spiky crest", "an orange body", "green legs"."""
    words = [trait.colour, trait.shape] if trait.shape else [trait.colour]
    plural = part == "legs"
    return phrasing.format(
        a="" if plural else _article(words[0]),
        a_part="" if plural else _article(part),
        be="are" if plural else "is",
        look=" ".join(words),
        seem=" and ".join(words),
        part=part,
    )


def describe_object(kind: str, colour: str) -> str:
    """The description of an object in a scene: "an orange leaf"."""
    return f"{_article(colour)}{colour} {kind}"


def part_of_description(text: str) -> str | None:
    """The part (one of `PARTS`) that a region description names; None: an object, another bird."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return next((part for part in PARTS if part in words), None)


def bird_with(descriptions: Sequence[str], template: str = GLOBAL_TEMPLATE) -> str:
    """A caption that lists descriptions: "a bird with a red spiky crest and green legs"."""
    return template.format(" and ".join(descriptions))


def species_descriptions(species: Species) -> tuple[str, ...]:
    """The six canonical part descriptions, in the order of `PARTS`."""
    return tuple(describe(part, trait) for part, trait in zip(PARTS, species.traits, strict=True))


def species_global_texts(species: Species) -> tuple[str, ...]:
    """All 15 captions of two descriptions each, joined as the training captions join them."""
    pairs = itertools.combinations(species_descriptions(species), 2)
    return tuple(bird_with(pair) for pair in pairs)


def bird_vocabulary(config: SyntheticBirdsConfig) -> list[str]:
    """Every word that a text of the data set or a prompt can contain, sorted."""
    texts = [*SYLLABLES, *NAME_TEMPLATES, GENERIC_CAPTION, *CAPTION_TEMPLATES[config.difficulty]]
    texts += [GLOBAL_TEMPLATE, OTHER_BIRD, "and a an", *COLOURS]
    for part, shapes in SHAPES.items():
        for shape, phrasing in itertools.product(shapes, PHRASINGS[config.difficulty]):
            texts.append(describe(part, Trait(shape, COLOURS[0]), phrasing))
    texts += [describe_object(kind, c) for kind, colours in OBJECTS.items() for c in colours]
    return sorted(set(re.findall(r"[a-z0-9]+", " ".join(texts).lower())))


def _article(word: str) -> str:
    return "an " if word[0] in "aeiou" else "a "
