"""Methods that compare classes with each other: CHiLS, FuDD, Loki, ConSE."""

import numpy as np
from jaxtyping import Float, Int

from grain_jax.zero_shot.arithmetic import (
    best_columns,
    cosines_with,
    in_blocks,
    log_softmax,
    logsumexp,
    mean_vectors,
    softmax,
    unit,
)
from grain_jax.zero_shot.by_text import name_scores
from grain_jax.zero_shot.class_prompts import subclass_parents
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Images, Score, Support
from grain_jax.zero_shot.scorers import MAX_CELLS, ClassTexts, TextBank, global_scores
from grain_jax.zero_shot.text_kinds import NAMES, PAIRS, SUBCLASSES

CANDIDATES = 10  # FuDD: classes nearest by name that are distinguished
BELOW = 3.0  # more than two cosines differ by
COMBINED = 10  # ConSE: most probable classes that are combined


def by_subclasses(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """CHiLS: log of the class's probability times that of its most probable subclass among all."""
    subclasses, scale = texts[SUBCLASSES], texts.logit_scale
    counts = np.array([len(one) for one in subclass_parents(texts.texts).values()])
    starts = np.cumsum(counts) - counts

    def block(image: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n K"]:
        cosine = global_scores(image, subclasses, ensembling=texts.prompt_ensembling)
        cosine *= np.float32(scale)
        return np.maximum.reduceat(cosine, starts, axis=1) - logsumexp(cosine)

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        best = in_blocks(block, images.image, cells=4 * int(counts.sum()))
        return (best + log_softmax(scale * name_scores(images, texts))).astype(np.float32)

    return score


def by_pairs(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """FuDD: among the `CANDIDATES` classes nearest by name, cosine with the mean of the texts that
    tell a class from the other candidates, scaled to unit length; other classes come after them, by
    name. A candidate without such texts is compared by name.
    """
    of_pairs, names = texts[PAIRS], mean_vectors(texts[NAMES])
    num_classes = texts.num_classes
    width = of_pairs.embed.shape[1]
    sums = _sums(of_pairs)
    place = _places(texts.texts, num_classes)

    def block(packed: Float[np.ndarray, "n both"]) -> Float[np.ndarray, "n K"]:
        image, by_name = packed[:, :width], packed[:, width:]
        nearest = best_columns(by_name, CANDIDATES)
        vectors = np.zeros((*nearest.shape, width), np.float32)
        for other in nearest.T:
            vectors += sums[place[nearest, other[:, None]]]
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors = np.where(length > 0, unit(vectors), names[nearest])
        scores = by_name - BELOW
        chosen = np.einsum("ne,nce->nc", image, vectors).astype(np.float32)
        np.put_along_axis(scores, nearest, chosen, axis=1)
        return scores

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        if num_classes <= CANDIDATES:
            return cosines_every(images.image).astype(np.float32)
        packed = np.concatenate([images.image, name_scores(images, texts)], axis=1)
        return in_blocks(block, packed, cells=4 * CANDIDATES * width)

    every = names.astype(np.float64)
    if num_classes <= CANDIDATES:  # all are candidates of every image
        together = sums[place].sum(axis=1)
        length = np.linalg.norm(together, axis=-1, keepdims=True)
        every = np.where(length > 0, unit(together), names)
    cosines_every = cosines_with(every)
    return score


def _sums(of_pairs: TextBank) -> Float[np.ndarray, "rows E"]:
    """Of the texts of each pair, as a mean is scaled to unit length; the last row, of zeros, stands
    for no text.
    """
    rows = np.concatenate(of_pairs.members)
    ends = np.cumsum([len(one) for one in of_pairs.members])
    sums = np.zeros((len(ends) + 1, of_pairs.embed.shape[1]), of_pairs.embed.dtype)
    step = max(1, MAX_CELLS // of_pairs.embed.shape[1])
    first = 0
    while first < len(ends):
        start = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + step, side="right")))
        starts = np.concatenate([[0], ends[first : last - 1] - start])
        sums[first:last] = np.add.reduceat(
            of_pairs.embed[rows[start : ends[last - 1]]], starts, axis=0
        )
        first = last
    return sums


def _places(texts: ClassTexts, num_classes: int) -> Int[np.ndarray, "K K"]:
    """Where the texts are that tell a class (row) from another (column); behind all: none."""
    place = np.full((num_classes, num_classes), len(texts.pairs), np.int32)
    for position, pair in enumerate(texts.pairs):
        place[pair] = position
    np.fill_diagonal(place, len(texts.pairs))
    return place


def by_label_distance(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """Loki: minus the expected squared distance to the true class, sum_k p_k d^2(k, c), for d the
    Euclidean distance of the names' embeddings, of unit length.
    """
    names, scale = mean_vectors(texts[NAMES]), texts.logit_scale
    cosines = cosines_with(names)

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        # sum_k p_k (2 - 2 <w_k, w_c>), without an array of classes by classes
        expected = softmax(scale * name_scores(images, texts)) @ names
        return (2 * cosines(expected) - 2).astype(np.float32)

    return score


def by_combined_names(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """ConSE: cosine of a class name with the mean of the `COMBINED` most probable classes' names,
    weighted by probability.
    """
    names, scale = mean_vectors(texts[NAMES]), texts.logit_scale
    cosines = cosines_with(names)

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        probability = softmax(scale * name_scores(images, texts))
        best = best_columns(probability, COMBINED)
        kept = np.zeros_like(probability)
        np.put_along_axis(kept, best, np.take_along_axis(probability, best, axis=1), axis=1)
        return cosines(unit(kept @ names)).astype(np.float32)

    return score
