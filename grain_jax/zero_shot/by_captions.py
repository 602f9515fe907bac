"""Scores by captions of other images that are like the image: X-MoRe, and CaSED's over given
classes, or over words out of the captions.
"""

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.arithmetic import softmax, unit
from grain_jax.zero_shot.by_text import name_scores
from grain_jax.zero_shot.method import (
    CaptionBank,
    ClassBanks,
    Images,
    Score,
    Support,
    caption_bank,
)
from grain_jax.zero_shot.neighbours import nearest
from grain_jax.zero_shot.scorers import global_scores
from grain_jax.zero_shot.text_kinds import NAMES

X_MORE_CAPTIONS = 16
CASED_CAPTIONS, CASED_CAPTION_WEIGHT = 10, 0.3
MOST_CAPTIONS = max(X_MORE_CAPTIONS, CASED_CAPTIONS)


def by_x_more(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """Probabilities by the image, and by the mean of its `X_MORE_CAPTIONS` nearest captions, each
    weighted by its confidence, 1 - entropy / log K.

    Weights are scaled to a sum of 1 for each image; two without any confidence are equal.
    """
    captions = caption_bank(bank)
    num_classes = texts.num_classes

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        centroids = caption_centroids(images, captions, X_MORE_CAPTIONS)
        both = [_probabilities(images, texts), _text_probabilities(centroids, texts)]
        weights = np.stack([_confidence(one, num_classes) for one in both])  # [2, n]
        total = weights.sum(axis=0)
        weights = np.where(total > 0, weights / np.where(total > 0, total, 1.0), 0.5)
        return weights[0][:, None] * both[0] + weights[1][:, None] * both[1]

    return score


def by_cased(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """0.7 times the probabilities by the image plus 0.3 times those by the mean of its
    `CASED_CAPTIONS` nearest captions, over the classes in place of words out of the captions.
    """
    captions = caption_bank(bank)

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        centroids = caption_centroids(images, captions, CASED_CAPTIONS)
        by_caption = _text_probabilities(centroids, texts)
        by_image = _probabilities(images, texts)
        return (1 - CASED_CAPTION_WEIGHT) * by_image + CASED_CAPTION_WEIGHT * by_caption

    return score


def caption_centroids(images: Images, bank: CaptionBank, count: int) -> Float[np.ndarray, "n E"]:
    """The mean embedding, of unit length, of the `count` captions most similar to each image;
    captions are searched once for both methods.
    """
    found, _ = images.once(
        ("captions", bank), lambda: nearest(images.image, bank.text, MOST_CAPTIONS)
    )
    sums = np.zeros((len(images), bank.text.shape[1]))
    for captions in found[:, :count].T:
        sums += bank.text[captions]
    return unit(sums).astype(np.float32)


def _probabilities(images: Images, texts: ClassBanks) -> Float[np.ndarray, "n K"]:
    return softmax(texts.logit_scale * name_scores(images, texts).astype(float))


def _text_probabilities(
    centroids: Float[np.ndarray, "n E"], texts: ClassBanks
) -> Float[np.ndarray, "n K"]:
    named = global_scores(centroids, texts[NAMES], ensembling=texts.prompt_ensembling)
    return softmax(texts.logit_scale * named.astype(float))


def candidate_probabilities(
    image: Float[np.ndarray, "E"],
    captions: Float[np.ndarray, "c E"],
    candidates: Float[np.ndarray, "C E"],
    *,
    logit_scale: float,
) -> tuple[Float[np.ndarray, "C"], Float[np.ndarray, "C"]]:
    """CaSED's two softmaxes over the candidates of one image: by the image, and by the mean, of
    unit length, of its retrieved captions. All embeddings are of unit length.
    """
    centroid = unit(captions.astype(float).mean(axis=0))
    both = np.stack([image.astype(float), centroid]) @ candidates.T.astype(float)
    by_image, by_caption = softmax(logit_scale * both)
    return by_image, by_caption


def _confidence(
    probabilities: Float[np.ndarray, "n K"], num_classes: int
) -> Float[np.ndarray, "n"]:
    """1 - entropy / log K: 0 of the uniform distribution, 1 of a certain one."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    entropy = -(probabilities * logs).sum(axis=1)
    return np.clip(1.0 - entropy / np.log(max(num_classes, 2)), 0.0, 1.0)
