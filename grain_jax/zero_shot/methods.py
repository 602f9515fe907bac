"""Zero-shot methods: which texts of a class an image is compared with, and how scores are made.

A method is an entry of `METHODS`. It says what it compares images with (`texts`), at which alphas
it is measured, and how the parts of `ComponentScores` make its score. A contract test runs over
every entry (`tests/zero_shot/test_methods.py`).
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.scorers import (
    ClassTexts,
    TextBank,
    global_scores,
    mixed_scores,
    region_scores,
    text_bank,
    text_banks,
)

EncodeTexts = Callable[..., Float[np.ndarray, "T E"]]  # called as `Encoder.texts` is
NAMES, DESCRIPTIONS, REGIONS = "names", "descriptions", "regions"  # kinds of class texts


@dataclass(frozen=True)
class ClassBanks:
    """The encoded texts of K classes, as far as model, texts and methods have use for them."""

    names: TextBank | None = None
    descriptions: TextBank | None = None
    regions: TextBank | None = None

    def kinds(self) -> set[str]:
        """Which of them there are."""
        return {kind for kind in (NAMES, DESCRIPTIONS, REGIONS) if getattr(self, kind) is not None}


class ComponentScores:
    """Scores of N images for K classes by each kind of text, each computed on first use.

    `prompt_ensembling` and `region_aggregation` are those of `global_scores` and `region_scores`.
    """

    def __init__(
        self,
        image: Float[np.ndarray, "N E"],
        regions: Float[np.ndarray, "N Q E"] | None,
        banks: ClassBanks,
        *,
        prompt_ensembling: str,
        region_aggregation: str,
    ):
        self.banks = banks
        self._image, self._regions = image, regions
        self._prompt_ensembling, self._region_aggregation = prompt_ensembling, region_aggregation

    @property
    def has_regions(self) -> bool:
        """Whether regions can be scored: the model has them and a class has a description."""
        return self._regions is not None and self.banks.regions is not None

    @functools.cached_property
    def by_name(self) -> Float[np.ndarray, "N K"]:
        """The image against the class name in its templates."""
        assert self.banks.names is not None
        return global_scores(self._image, self.banks.names, ensembling=self._prompt_ensembling)

    @functools.cached_property
    def by_description(self) -> Float[np.ndarray, "N K"]:
        """The image against the descriptions of the class."""
        assert self.banks.descriptions is not None
        return global_scores(self._image, self.banks.descriptions, ensembling="score")

    @functools.cached_property
    def by_region(self) -> Float[np.ndarray, "N K"]:
        """The regions against the descriptions of the class."""
        assert self._regions is not None
        assert self.banks.regions is not None
        return region_scores(
            self._regions, self.banks.regions, aggregation=self._region_aggregation
        )


@runtime_checkable
class ZeroShotMethod(Protocol):
    """A way to score classes; see `METHODS`."""

    @property
    def texts(self) -> frozenset[str]:
        """Kinds of class texts that it needs."""
        ...

    def alphas(self, given: Sequence[float], *, has_regions: bool) -> Sequence[float | None]:
        """Those of the `given` alphas at which it is measured; None: it has no alpha."""
        ...

    def scores(self, components: ComponentScores, alpha: float | None) -> Float[np.ndarray, "N K"]:
        """Higher is more similar. alpha in [0, 1] weighs the image against its regions."""
        ...


class ByName:
    """The image against the class name in its templates, as CLIP."""

    texts = frozenset({NAMES})

    def alphas(self, given: Sequence[float], *, has_regions: bool) -> Sequence[float | None]:
        return (None,)

    def scores(self, components: ComponentScores, alpha: float | None) -> Float[np.ndarray, "N K"]:
        return components.by_name


class ByNameAndRegions:
    """The name's score with the region score mixed in: the official protocol (0 < alpha < 1)."""

    texts = frozenset({NAMES, REGIONS})

    def alphas(self, given: Sequence[float], *, has_regions: bool) -> Sequence[float | None]:
        return [alpha for alpha in given if 0 < alpha < 1] if has_regions else []

    def scores(self, components: ComponentScores, alpha: float | None) -> Float[np.ndarray, "N K"]:
        assert alpha is not None
        return mixed_scores(components.by_name, components.by_region, alpha)


class ByDescription:
    """The image, and as far as the model has them its regions, against the descriptions."""

    texts = frozenset({DESCRIPTIONS})

    def alphas(self, given: Sequence[float], *, has_regions: bool) -> Sequence[float | None]:
        return list(given) if has_regions else (1.0,)

    def scores(self, components: ComponentScores, alpha: float | None) -> Float[np.ndarray, "N K"]:
        assert alpha is not None
        if not components.has_regions:
            return components.by_description
        return mixed_scores(components.by_description, components.by_region, alpha)


METHODS: Mapping[str, ZeroShotMethod] = {
    "name": ByName(),
    "name_and_regions": ByNameAndRegions(),
    "description": ByDescription(),
}


def check_methods(names: Collection[str]) -> None:
    """Raises ValueError for a method that there is not."""
    if unknown := sorted(set(names) - set(METHODS)):
        raise ValueError(f"Unknown method {unknown[0]!r}; choose among {', '.join(METHODS)}.")


def encode_banks(
    encode_texts: EncodeTexts, texts: ClassTexts, *, methods: Collection[str], has_regions: bool
) -> ClassBanks:
    """Encodes what the `methods` compare images with; `has_regions`: whether the model has any.

    Descriptions are left out where no class has one.
    """
    described = len(texts.undescribed) < len(texts.names)
    wanted = set().union(*(METHODS[name].texts for name in methods))
    of_image = {NAMES: texts.names} if NAMES in wanted else {}
    if described and DESCRIPTIONS in wanted:
        of_image[DESCRIPTIONS] = texts.descriptions
    found = text_banks(lambda t: encode_texts(t, kind="caption"), list(of_image.values()))
    banks = dict(zip(of_image, found, strict=True))
    if described and has_regions:
        banks[REGIONS] = text_bank(lambda t: encode_texts(t, kind="description"), texts.regions)
    return ClassBanks(**banks)


def scores_by_method(
    components: ComponentScores, *, alphas: Sequence[float], methods: Collection[str]
) -> dict[tuple[str, float | None], Float[np.ndarray, "N K"]]:
    """Scores of N images for K classes by method and alpha: of the `methods`, those whose texts
    there are. Alpha is None for a method that is of the whole image only.
    """
    scores = {}
    for name, method in METHODS.items():
        if name in methods and method.texts <= components.banks.kinds():
            for alpha in method.alphas(alphas, has_regions=components.has_regions):
                scores[name, alpha] = method.scores(components, alpha)
    return scores
