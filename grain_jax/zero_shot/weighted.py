"""Methods that weigh a class's texts, or parts of the image: AutoCLIP, PerceptionCLIP, and WCA on
regions or on crops.
"""

import math

import numpy as np
from jaxtyping import Float, Int

from grain_jax.zero_shot.arithmetic import (
    cosines_with,
    in_blocks,
    log_softmax,
    logsumexp,
    mean_vectors,
    softmax,
    unit,
)
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Images, Score, Support
from grain_jax.zero_shot.scorers import TextBank
from grain_jax.zero_shot.text_kinds import CONTEXTS, NAMES, REGIONS

ENTROPY_FRACTION = 0.85  # AutoCLIP's beta: entropy of the weights against that of equal ones
CONTEXT_TEMPERATURE = 1.0  # PerceptionCLIP's, of the contexts
PART_SCALE, TEXT_SCALE = math.e**4, math.e**2  # WCA's, of cosines in the two softmaxes


def by_weighted_templates(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """AutoCLIP: each image weighs the templates, the same for all classes, by one step that raises
    the log-sum-exp of its class scores, of such a length that the entropy of the weights is
    `ENTROPY_FRACTION` of the largest. The score is the weighted mean of the cosines.
    """
    names = texts[NAMES]
    members, of_class = names.distinct
    rows = np.stack(members)  # [D, P]: every class has the same templates
    vectors = names.embed[rows.T.reshape(-1)]  # [P * D, E]
    counts = np.log(np.bincount(of_class)).astype(np.float32)

    def block(image: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n K"]:
        found = (image @ vectors.T).reshape(len(image), rows.shape[1], rows.shape[0])  # [n, P, D]
        of_classes = softmax(found.mean(axis=1) + counts)
        gradient = (found @ of_classes[:, :, None])[:, :, 0]
        weights = _weights_of_entropy(gradient, ENTROPY_FRACTION).astype(np.float32)
        return (weights[:, None] @ found)[:, 0, of_class]

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        scores = in_blocks(block, images.image, cells=len(vectors))
        return scores.astype(np.float32)

    return score


def _weights_of_entropy(
    gradient: Float[np.ndarray, "n P"], fraction: float
) -> Float[np.ndarray, "n P"]:
    """softmax(step * gradient) at the step, found by bisection, where the entropy is `fraction` of
    that of equal weights; a long one where no step has so little, as several gradients are the
    largest.
    """
    gradient = gradient.astype(np.float64)
    gradient = gradient - gradient.max(axis=1, keepdims=True)
    spread = -gradient.min(axis=1, keepdims=True)
    gradient = gradient / np.where(spread > 0, spread, 1.0)
    target = fraction * math.log(gradient.shape[1]) if gradient.shape[1] > 1 else 0.0

    def too_even(step: Float[np.ndarray, "n 1"]) -> np.ndarray:
        logs = log_softmax(step * gradient)
        return -(np.exp(logs) * logs).sum(axis=1, keepdims=True) > target

    low, high = np.zeros((len(gradient), 1)), np.ones((len(gradient), 1))
    for _ in range(20):
        even = too_even(high)
        if not even.any():
            break
        low, high = np.where(even, high, low), np.where(even, 2 * high, high)
    for _ in range(40):
        middle = (low + high) / 2
        even = too_even(middle)
        low, high = np.where(even, middle, low), np.where(even, high, middle)
    return softmax(high * gradient)


def by_name_in_contexts(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """PerceptionCLIP: what the image is like (its context) is inferred from all classes, then the
    class given the context: log sum_z P(z | x) P(class | x, z).
    """
    prompts, scale = texts[CONTEXTS], texts.logit_scale
    members, of_class = prompts.distinct
    rows: Int[np.ndarray, "D Z"] = np.stack(members)
    # Classes of the same texts count each.
    counts = np.log(np.bincount(of_class)).astype(np.float32)
    vectors = prompts.embed[rows.T.reshape(-1)]  # [Z * D, E]

    def block(image: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n K"]:
        logits = scale * (image @ vectors.T).reshape(len(image), rows.shape[1], rows.shape[0])
        whole = logsumexp(logits + counts)  # [n, Z, 1]
        context = whole
        if CONTEXT_TEMPERATURE != 1:
            context = logsumexp(logits / CONTEXT_TEMPERATURE + counts)
        logits += context - whole
        top = logits.max(axis=1, keepdims=True)
        logits -= top
        joint = np.log(np.exp(logits, out=logits).sum(axis=1)) + top[:, 0]
        return (joint - logsumexp(context[:, :, 0]))[:, of_class]

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        return in_blocks(block, images.image, cells=4 * len(vectors)).astype(np.float32)

    return score


def by_weighted_regions(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """WCA with regions in place of crops: regions weigh by their cosine with the image,
    descriptions by theirs with the class name; cosine of the two weighted means.
    """
    cosines = cosines_with(weighted_texts(texts, REGIONS))

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        regions = images.regions
        assert regions is not None
        return cosines(weighted_parts(regions, images.image)).astype(np.float32)

    return score


def weighted_parts(
    parts: Float[np.ndarray, "n V E"], image: Float[np.ndarray, "n E"]
) -> Float[np.ndarray, "n E"]:
    """WCA's image side: mean of an image's parts, weighted by softmax of their cosine with the
    image, of unit length.
    """
    alike = (parts @ image[:, :, None])[:, :, 0]
    weights = softmax(PART_SCALE * alike)[:, None]
    return unit((weights @ parts)[:, 0])


def weighted_texts(texts: ClassBanks, kind: str) -> Float[np.ndarray, "K E"]:
    """WCA's text side: mean of a class's texts of a `kind`, weighted by softmax of their cosine
    with the class name, of unit length.
    """
    bank, names = texts[kind], mean_vectors(texts[NAMES])
    return np.stack([_weighted(bank, k, name) for k, name in enumerate(names)])


def _weighted(bank: TextBank, k: int, name: Float[np.ndarray, "E"]) -> Float[np.ndarray, "E"]:
    embed = bank.of_class(k)
    return unit(softmax(TEXT_SCALE * (embed @ name)) @ embed)
