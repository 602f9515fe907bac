"""The species of birds: six traits each, grouped in genera, some of them held out.

A genus is a body colour with a wing; the five species that share it differ in their crest, beak,
tail and legs. So the large parts determine the genus of a bird, and only the small ones its
species. Everything is a function of the seed.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = {  # every part of a bird, in the order used everywhere, and the shapes it comes in
    "crest": ("spiky", "round", "tall", "swept"),
    "beak": ("pointed", "hooked", "flat", "open"),
    "wing": ("plain", "spotted", "striped", "tipped"),
    "body": ("",),
    "tail": ("forked", "fanned", "long", "curled"),
    "legs": ("",),
}
PARTS = tuple(SHAPES)
GENUS_PARTS = ("body", "wing")  # shared by the species of a genus
# At least two of these differ between any two species of a genus.
SPECIES_PARTS = tuple(part for part in PARTS if part not in GENUS_PARTS)
SPECIES_PER_GENUS = 5
NUM_GENERA = {"train": 40, "validation": 5, "unseen": 10}
MAX_SHARED_TRAITS = 3  # of six, between a held-out species and any training species
SYLLABLES = (
    *("bel", "bri", "da", "fa", "fen", "go", "hul", "ji", "ko", "len", "lin", "lo", "mar"),
    *("mi", "na", "nor", "pel", "qua", "ro", "sa", "tam", "ti", "vi", "wen", "yo", "zu"),
)


class Trait(NamedTuple):
    """How one part looks."""

    shape: str  # "" where the part comes in one shape
    colour: str


@dataclass(frozen=True)
class Species:
    """A name for one combination of traits."""

    name: str  # three syllables joined by hyphens: three tokens of a word-level tokenizer
    genus: int
    traits: tuple[Trait, ...]  # one of each of PARTS

    def trait(self, part: str) -> Trait:
        return self.traits[PARTS.index(part)]


@dataclass(frozen=True)
class Population:
    """All species of a seed by group; no name, genus or combination of traits is in two groups."""

    train: tuple[Species, ...]  # 200
    validation: tuple[Species, ...]  # 25
    unseen: tuple[Species, ...]  # 50


@functools.lru_cache(maxsize=8)
def population(seed: int) -> Population:
    """Every species of this seed; each trait of a held-out species occurs in training."""
    rng = np.random.default_rng([seed, 101])
    names = _draw_names(rng, SPECIES_PER_GENUS * sum(NUM_GENERA.values()))
    genera = _draw_genera(rng, sum(NUM_GENERA.values()))
    use: dict[tuple[str, Trait], int] = {}
    train: list[Species] = []
    groups: dict[str, list[Species]] = {"train": train, "validation": [], "unseen": []}
    genus = 0
    for group, num_genera in NUM_GENERA.items():
        for _ in range(num_genera):
            body, wing = genera[genus]
            siblings: list[Species] = []
            while len(siblings) < SPECIES_PER_GENUS:
                small = {part: _draw_trait(rng, part, body.colour, use) for part in SPECIES_PARTS}
                shared = {**small, "body": body, "wing": wing}
                traits = tuple(shared[part] for part in PARTS)
                others = [] if group == "train" else train
                if any(num_shared(traits, s.traits) > len(PARTS) - 2 for s in siblings) or any(
                    num_shared(traits, s.traits) > MAX_SHARED_TRAITS for s in others
                ):
                    continue
                for part, trait in small.items():
                    use[part, trait] = use.get((part, trait), 0) + 1
                siblings.append(Species(names.pop(), genus, traits))
            groups[group] += siblings
            genus += 1
    return Population(*(tuple(groups[group]) for group in NUM_GENERA))


def num_shared(first: tuple[Trait, ...], second: tuple[Trait, ...]) -> int:
    """How many of the six parts have the same shape and colour."""
    return sum(a == b for a, b in zip(first, second, strict=True))


def _draw_names(rng: np.random.Generator, count: int) -> list[str]:
    """Names of three different syllables; no two names are made of the same three."""
    names: dict[frozenset[str], str] = {}
    while len(names) < count:
        syllables = [SYLLABLES[i] for i in rng.permutation(len(SYLLABLES))[:3]]
        names.setdefault(frozenset(syllables), "-".join(syllables))
    return list(names.values())


def _draw_genera(rng: np.random.Generator, count: int) -> list[tuple[Trait, Trait]]:
    """Distinct (body, wing) pairs of two colours; the first 32 have every wing once."""
    wings = [Trait(shape, colour) for shape in SHAPES["wing"] for colour in COLOURS]
    genera: list[tuple[Trait, Trait]] = []
    while len(genera) < count:
        if len(genera) % len(wings) == 0:
            order = rng.permutation(len(wings))
            shift = int(rng.integers(len(COLOURS)))
        wing = wings[order[len(genera) % len(wings)]]
        bodies = [Trait("", colour) for colour in COLOURS if colour != wing.colour]
        body = bodies[(len(genera) + shift) % len(bodies)]
        if (body, wing) in genera:
            shift += 1
            continue
        genera.append((body, wing))
    return genera


def _draw_trait(
    rng: np.random.Generator, part: str, body: str, use: dict[tuple[str, Trait], int]
) -> Trait:
    """One of a part's least used traits, not in the colour of the body, which would hide it."""
    traits = [Trait(s, c) for s in SHAPES[part] for c in COLOURS if c != body]
    keys = [
        use.get((part, trait), 0) + 0.9 * noise
        for trait, noise in zip(traits, rng.random(len(traits)), strict=True)
    ]
    return traits[int(np.argmin(keys))]
