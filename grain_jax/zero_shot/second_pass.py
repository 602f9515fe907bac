"""Methods that look at an image again: at crops of it, or at the image blurred outside a box.

Embeddings of the variants are an input, `Images.variants`; a method only says which kind it needs.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from grain_jax.zero_shot.arithmetic import best_columns, cosines_with, mean_vectors
from grain_jax.zero_shot.method import (
    CaptionBank,
    ClassBanks,
    Fit,
    Images,
    Method,
    Score,
    Support,
    variants_of,
)
from grain_jax.zero_shot.text_kinds import CUPL, DETECTED, NAMED_DESCRIPTIONS, NAMES
from grain_jax.zero_shot.weighted import weighted_parts, weighted_texts

LI = "Li et al. 2024, arXiv 2406.02915"
CANDIDATES = 5  # GC-CLIP: classes, the best by name, whose box is looked for


def by_weighted_crops(kind: str) -> Fit:
    """WCA: random crops weigh by their cosine with the image, texts of the `kind` by theirs with
    the class name; cosine of the two weighted means.
    """

    def fit(
        texts: ClassBanks,
        *,
        bank: CaptionBank | None = None,
        support: Support | None = None,
        unlabeled: Images | None = None,
    ) -> Score:
        cosines = cosines_with(weighted_texts(texts, kind))

        def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
            crops = variants_of(images, "random_crops")
            return cosines(weighted_parts(crops, images.image)).astype(np.float32)

        return score

    return fit


def by_box_crops(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """GC-CLIP: the box of the object is that of the region most similar to the name of one of the
    `CANDIDATES` best classes. The score is the mean cosine of the name with the crops at that box,
    with all margins, and with the whole image.
    """
    names, detected = mean_vectors(texts[NAMES]), mean_vectors(texts[DETECTED])
    cosines = cosines_with(names)

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        crops, regions = variants_of(images, "box_crops"), images.regions
        assert regions is not None
        whole = cosines(images.image)
        chosen = detected_regions(regions, whole, detected)
        by_box = crops.reshape(*regions.shape[:2], -1, crops.shape[-1])  # [n, Q, margins, E]
        own = by_box[np.arange(len(by_box)), chosen]
        looked_at = np.concatenate([own, images.image[:, None]], axis=1)
        return cosines(looked_at.mean(axis=1)).astype(np.float32)

    return score


def detected_regions(
    regions: Float[np.ndarray, "n Q E"],
    by_name: Float[np.ndarray, "n K"],
    names: Float[np.ndarray, "K E"],
) -> Int[np.ndarray, "n"]:
    """The region most similar to the name of any of the `CANDIDATES` classes that score best."""
    best = best_columns(by_name, CANDIDATES)
    found = np.einsum("nqe,nce->nqc", regions, names[best])
    return found.max(axis=2).argmax(axis=1)


def by_blurred_surroundings(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """FGVP: the image is blurred outside each of its boxes; a class has the largest cosine of its
    name with any of these images.
    """
    cosines = cosines_with(mean_vectors(texts[NAMES]))

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        blurred = variants_of(images, "box_blurs")
        best = cosines(blurred[:, 0])
        for one in np.moveaxis(blurred, 1, 0)[1:]:  # one at a time: never all of them by all names
            best = np.maximum(best, cosines(one))
        return best.astype(np.float32)

    return score


SECOND_PASS_METHODS: Mapping[str, Method] = {
    "wca": Method(
        "WCA",
        LI,
        frozenset({NAMES, NAMED_DESCRIPTIONS}),
        by_weighted_crops(NAMED_DESCRIPTIONS),
        needs=frozenset({"random_crops"}),
    ),
    "wca_cupl": Method(
        "WCA + CuPL",
        LI,
        frozenset({NAMES, CUPL}),
        by_weighted_crops(CUPL),
        needs=frozenset({"random_crops"}),
    ),
    "gc_clip": Method(
        "GC-CLIP",
        "Saranrittichai et al. 2023, arXiv 2309.06581",
        frozenset({NAMES, DETECTED}),
        by_box_crops,
        regions=True,
        needs=frozenset({"box_crops"}),
    ),
    "fgvp": Method(
        "FGVP",
        "Yang et al. 2023, arXiv 2306.04356",
        frozenset({NAMES}),
        by_blurred_surroundings,
        needs=frozenset({"box_blurs"}),
    ),
}
