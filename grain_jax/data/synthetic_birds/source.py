"""Synthetic birds as a source of records and as zero-shot sets."""

import functools
import operator
from dataclasses import asdict, dataclass
from typing import Any, SupportsIndex

import numpy as np

from grain_jax.boxes import Box
from grain_jax.config import SyntheticBirdsConfig
from grain_jax.data.records import Caption, Record, Region, ZeroShotSet
from grain_jax.data.synthetic_birds.language import (
    CAPTION_TEMPLATES,
    GENERIC_CAPTION,
    NAME_TEMPLATES,
    PHRASINGS,
    PROMPT_TEMPLATES,
    bird_with,
    describe,
    species_descriptions,
    species_global_texts,
)
from grain_jax.data.synthetic_birds.scene import DIFFICULTIES, Scene, draw_scene, uniform_numbers
from grain_jax.data.synthetic_birds.species import COLOURS, Species, Trait, population

SPLITS = {"train": 0, "validation": 1, "seen": 2, "unseen": 3}
MIN_IMAGE_SIZE = 32

# Noise of the training annotations, modelled on the errors of an MLLM and a detector.
GENERIC_CAPTIONS = 0.08  # fraction of original captions without a name
WRONG_COLOUR = 0.06
MISSED_PART = 0.2
CANONICAL = 0.6  # fraction of region descriptions in the canonical phrasing
BOX_JITTER = 0.06  # standard deviation of each edge, in sizes of the box
DESCRIBED_OBJECT = 0.3


@dataclass(frozen=True)
class SyntheticBirdSource:
    """Records of a split ("train", "validation", "seen", "unseen"), each a function of its index.

    "seen" has new images of the training species; "validation" and "unseen" have species that are
    not in "train". Only the annotations of "train" are noisy. Each block of K records, for K
    species, has every species once. Raises ValueError for an unknown split or difficulty, a
    negative seed, or an image that is too small.
    """

    config: SyntheticBirdsConfig
    split: str
    image_size: int

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(
                f"Unknown split {self.split!r} of the synthetic birds; choose one of {[*SPLITS]}."
            )
        if self.config.difficulty not in DIFFICULTIES:
            raise ValueError(
                f"Unknown difficulty {self.config.difficulty!r}; set "
                f"data.synthetic_birds.difficulty to one of {[*DIFFICULTIES]}."
            )
        if self.config.seed < 0:
            raise ValueError(
                f"data.synthetic_birds.seed must be 0 or more, given {self.config.seed}."
            )
        if self.image_size < MIN_IMAGE_SIZE:
            raise ValueError(
                f"Synthetic birds need images of at least {MIN_IMAGE_SIZE} pixels, "
                f"given {self.image_size}; raise model.image_size."
            )

    @property
    def species(self) -> tuple[Species, ...]:
        """The species of this split."""
        groups = population(self.config.seed)
        return {"validation": groups.validation, "unseen": groups.unseen}.get(
            self.split, groups.train
        )

    def __len__(self) -> int:
        return (
            self.config.num_train_images if self.split == "train" else self.config.num_eval_images
        )

    def __getitem__(self, index: SupportsIndex, /) -> Record:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} of {len(self)}.")
        species = self.species_of(index)
        rng = np.random.default_rng([self.config.seed, SPLITS[self.split], index])
        scene = draw_scene(
            species,
            rng,
            difficulty=DIFFICULTIES[self.config.difficulty],
            image_size=self.image_size,
            others=population(self.config.seed).train,
        )
        annotate = _noisy_annotation if self.split == "train" else _true_annotation
        captions, regions = annotate(species, scene, rng, self.config.difficulty)
        return Record(
            id=f"world-{self.config.seed}-{self.config.difficulty}-{self.split}-{index:06d}",
            image=scene.image,
            captions=captions,
            regions=regions,
            label=species.name,
        )

    @property
    def num_with_regions(self) -> int:
        """All of them: every image is annotated."""
        return len(self)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON that says what the images are: all that they are drawn from."""
        return {
            "synthetic_birds": asdict(self.config),
            "split": self.split,
            "image_size": self.image_size,
        }

    def species_of(self, index: int) -> Species:
        """The species of record `index`, without drawing it."""
        species = self.species
        block, place = divmod(index, len(species))
        seed = (self.config.seed, SPLITS[self.split], block)
        return species[_order(seed, len(species))[place]]


def bird_zero_shot_sets(config: SyntheticBirdsConfig, image_size: int) -> dict[str, ZeroShotSet]:
    """The zero-shot sets "validation" (25 held-out species), "seen" (200), "unseen" (50 held-out).

    Each class has its six canonical descriptions, and as global texts the 15 captions that join two
    of them, as training captions do.
    """
    sets = {}
    for split in ("validation", "seen", "unseen"):
        source = SyntheticBirdSource(config, split, image_size)
        sets[split] = ZeroShotSet(
            name=split,
            source=source,
            class_names=tuple(species.name for species in source.species),
            templates=PROMPT_TEMPLATES,
            descriptions={s.name: species_descriptions(s) for s in source.species},
            global_texts={s.name: species_global_texts(s) for s in source.species},
        )
    return sets


@functools.lru_cache(maxsize=256)
def _order(seed: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The order in which a block of records shows the species."""
    return tuple(np.random.default_rng([*seed, 202, 303]).permutation(count).tolist())


def _true_annotation(
    species: Species, scene: Scene, rng: np.random.Generator, difficulty: str
) -> tuple[tuple[Caption, ...], tuple[Region, ...]]:
    """Name and description captions and all visible parts, without error."""
    texts = {part: describe(part, species.trait(part)) for part in scene.parts}
    captions = [Caption(PROMPT_TEMPLATES[0].format(species.name))]
    if len(texts) >= 2:
        mentioned = rng.permutation(list(texts))[: int(rng.integers(2, 5))]
        captions.append(Caption(bird_with([texts[part] for part in mentioned]), "synthetic"))
    return tuple(captions), tuple(Region(scene.parts[part], texts[part]) for part in scene.parts)


def _noisy_annotation(
    species: Species, scene: Scene, rng: np.random.Generator, difficulty: str
) -> tuple[tuple[Caption, ...], tuple[Region, ...]]:
    """A web caption, an MLLM's caption, and regions with the errors that MLLM and detector make."""
    uniform = uniform_numbers(rng).__next__

    def choose(options: tuple[str, ...]) -> str:
        return options[int(uniform() * len(options))]

    def noisy_trait(part: str) -> Trait:
        trait = species.trait(part)
        if uniform() >= WRONG_COLOUR:
            return trait
        return Trait(trait.shape, choose(tuple(c for c in COLOURS if c != trait.colour)))

    name_caption = choose(NAME_TEMPLATES).format(species.name)
    captions = [Caption(GENERIC_CAPTION if uniform() < GENERIC_CAPTIONS else name_caption)]
    visible = list(scene.parts)
    if len(visible) >= 2:
        order = sorted(visible, key=lambda _: uniform())[: 2 + int(3 * uniform())]
        texts = [describe(part, noisy_trait(part)) for part in order]
        captions.append(
            Caption(bird_with(texts, choose(CAPTION_TEMPLATES[difficulty])), "synthetic")
        )

    found: list[tuple[str, Box]] = []
    canonical, *paraphrases = PHRASINGS[difficulty]
    for part in visible:
        if uniform() >= MISSED_PART:
            phrasing = canonical if uniform() < CANONICAL else choose(tuple(paraphrases))
            found.append((describe(part, noisy_trait(part), phrasing), scene.parts[part]))
    found += [thing for thing in scene.objects if uniform() < DESCRIBED_OBJECT]
    jitter = BOX_JITTER * rng.standard_normal((len(found), 4))
    regions = [
        Region(_jittered(box, noise), text, round(0.3 + 0.7 * uniform(), 3))
        for (text, box), noise in zip(found, jitter.tolist(), strict=True)
    ]
    return tuple(captions), tuple(regions)


def _jittered(box: Box, noise: list[float]) -> Box:
    """Every edge moved by its noise, in sizes of the box, and cut at the frame."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    # The noise is in the order top, left, bottom, right, which keeps earlier data sets unchanged.
    y0, x0 = max(0.0, top + noise[0] * height), max(0.0, left + noise[1] * width)
    y1, x1 = min(1.0, bottom + noise[2] * height), min(1.0, right + noise[3] * width)
    return x0, y0, x1, y1
