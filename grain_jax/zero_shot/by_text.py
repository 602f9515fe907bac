"""Scores by name, by descriptions, by regions, and their mixture: CLIP's way and GRAIN's."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Fit, Images, Score, Support
from grain_jax.zero_shot.scorers import global_scores, mixed_scores, region_scores
from grain_jax.zero_shot.text_kinds import DESCRIPTIONS, NAMES, REGIONS


def every_alpha(given: Sequence[float], *, has_regions: bool) -> Sequence[float | None]:
    """All, or the whole image alone where there are no regions."""
    return list(given) if has_regions else (1.0,)


def mixed_alphas(given: Sequence[float], *, has_regions: bool) -> Sequence[float | None]:
    """Those that mix image and regions."""
    return [alpha for alpha in given if 0 < alpha < 1] if has_regions else []


def by_name(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """The image against the class name in its templates, as CLIP."""
    return lambda images, alpha: name_scores(images, texts)


def by_description(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """The image, and as far as the model has them its regions, against the descriptions."""
    return _mixture(texts, lambda images: kind_scores(images, texts, DESCRIPTIONS))


def by_name_and_regions(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """The name's score with the region score mixed in: the official protocol (0 < alpha < 1)."""
    return _mixture(texts, lambda images: name_scores(images, texts))


def by_mean_cosine(kind: str) -> Fit:
    """The image against a class's texts of a kind: mean cosine, as Menon & Vondrick."""
    return _by_kind(kind, "score")


def by_mean_embedding(kind: str) -> Fit:
    """The image against the mean of a class's texts of a kind, scaled to unit length, as CuPL."""
    return _by_kind(kind, "embedding")


def _by_kind(kind: str, ensembling: str) -> Fit:
    def fit(
        texts: ClassBanks,
        *,
        bank: CaptionBank | None = None,
        support: Support | None = None,
        unlabeled: Images | None = None,
    ) -> Score:
        return lambda images, alpha: kind_scores(images, texts, kind, ensembling=ensembling)

    return fit


def by_descriptions_of(kind: str, region_kind: str) -> Fit:
    """As `by_description`, with texts of other kinds for the image and for the regions."""

    def fit(
        texts: ClassBanks,
        *,
        bank: CaptionBank | None = None,
        support: Support | None = None,
        unlabeled: Images | None = None,
    ) -> Score:
        return _mixture(texts, lambda images: kind_scores(images, texts, kind), region_kind)

    return fit


def by_name_and_regions_of(region_kind: str) -> Fit:
    """As `by_name_and_regions`, with texts of another kind for the regions."""

    def fit(
        texts: ClassBanks,
        *,
        bank: CaptionBank | None = None,
        support: Support | None = None,
        unlabeled: Images | None = None,
    ) -> Score:
        return _mixture(texts, lambda images: name_scores(images, texts), region_kind)

    return fit


def name_scores(images: Images, texts: ClassBanks) -> Float[np.ndarray, "n K"]:
    """Of the names in their templates, ensembled as the settings have it."""
    bank = texts[NAMES]
    return images.once(
        (NAMES, bank, texts.prompt_ensembling),
        lambda: global_scores(images.image, bank, ensembling=texts.prompt_ensembling),
    )


def kind_scores(
    images: Images, texts: ClassBanks, kind: str, *, ensembling: str = "score"
) -> Float[np.ndarray, "n K"]:
    """Of the image with a class's texts of a kind: mean cosine, or as `global_scores` has it."""
    bank = texts[kind]
    return images.once(
        (kind, bank, ensembling),
        lambda: global_scores(images.image, bank, ensembling=ensembling),
    )


def part_scores(images: Images, texts: ClassBanks, kind: str = REGIONS) -> Float[np.ndarray, "n K"]:
    """The regions against a class's texts of a kind, as the settings combine them."""
    bank, regions = texts[kind], images.regions
    assert regions is not None
    aggregation = texts.region_aggregation
    return images.once(
        (kind, bank, aggregation),
        lambda: region_scores(regions, bank, aggregation=aggregation),
    )


def _mixture(
    texts: ClassBanks,
    whole: Callable[[Images], Float[np.ndarray, "n K"]],
    region_kind: str = REGIONS,
) -> Score:
    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        assert alpha is not None
        if images.regions is None or texts.get(region_kind) is None:
            return whole(images)
        return mixed_scores(whole(images), part_scores(images, texts, region_kind), alpha)

    return score
