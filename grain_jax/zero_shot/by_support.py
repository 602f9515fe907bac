"""Scores by labelled images of the classes, together with their names: classifiers in closed form.

None of these is zero-shot. What a paper adds up, 100 times the cosine and more, is divided by the
logit scale here, so that scores have the size of a cosine; the order of the classes is the same.
"""

import numpy as np
from jaxtyping import Float, Int

from grain_jax.zero_shot.arithmetic import in_blocks, softmax
from grain_jax.zero_shot.by_text import name_scores
from grain_jax.zero_shot.examples import EXAMPLE_WEIGHT, fit_examples
from grain_jax.zero_shot.held_out import best_of, held_out, hit_rate
from grain_jax.zero_shot.method import (
    CaptionBank,
    ClassBanks,
    Images,
    Score,
    Support,
    labelled_images,
)
from grain_jax.zero_shot.neighbours import nearest

NEIGHBOURS, TEMPERATURE, INTERPOLATION = 20, 0.07, 0.5  # `by_neighbours`
GDA_WEIGHTS = tuple(10.0**power for power in range(-4, 3))  # 1e-4 to 100
DEFAULT_GDA_WEIGHT = 1.0  # where there are too few images to hold some out
GDA_HELD_OUT_FROM = 4  # images of every class


def by_examples(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """As `Model.classify` scores labels by name and examples, at its own weight."""
    support = labelled_images(support)
    fitted = fit_examples(
        name_scores(Images(support.image), texts),
        support,
        np.ones(texts.num_classes, bool),
        weight=EXAMPLE_WEIGHT,
        logit_scale=texts.logit_scale,
    )
    return lambda images, alpha: fitted(name_scores(images, texts), images.image)


def by_neighbours(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """Probabilities of the nearest labelled images' classes, interpolated with those by name.

    The `NEIGHBOURS` nearest vote with exp(cosine / `TEMPERATURE`).
    """
    support = labelled_images(support)
    labels = support.labels

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        found, cosine = nearest(images.image, support.image, NEIGHBOURS)
        weights = softmax(cosine.astype(float) / TEMPERATURE)
        scores = softmax(texts.logit_scale * name_scores(images, texts).astype(float))
        scores *= 1 - INTERPOLATION
        rows = np.arange(len(images))[:, None]
        np.add.at(scores, (rows, labels[found]), INTERPOLATION * weights)
        return scores

    return score


def by_gaussians(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """The name's score plus that of Gaussian discriminant analysis, weighted by the one of
    `GDA_WEIGHTS` that classifies held-out labelled images best, the least of equal ones.

    The weight is chosen by the fit to the other half, whose slopes are up to twice as long as those
    of the fit to all: it is multiplied by the ratio of the `spread` of both over all labelled
    images. Where a class has fewer than `GDA_HELD_OUT_FROM` images it is `DEFAULT_GDA_WEIGHT`.
    """
    support = labelled_images(support)
    num_classes = texts.num_classes
    fit = discriminant(support.image, support.labels, num_classes)
    weight = DEFAULT_GDA_WEIGHT
    parts = held_out(support.labels, at_least=GDA_HELD_OUT_FROM)
    if parts is not None:
        fitted, held = parts
        images = Images(support.image[held])
        named = texts.logit_scale * name_scores(images, texts)
        half = discriminant(support.image[fitted], support.labels[fitted], num_classes)
        added = discriminant_logits(images.image, half)
        weight = best_of(
            GDA_WEIGHTS, lambda one: hit_rate(named + one * added, support.labels[held])
        )
        halves, whole = (spread(support.image, one) for one in (half, fit))
        weight *= halves / whole if whole > 0 else 1.0

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        added = discriminant_logits(images.image, fit)
        return name_scores(images, texts) + weight / texts.logit_scale * added

    return score


def discriminant_logits(
    image: Float[np.ndarray, "n E"],
    fit: tuple[Float[np.ndarray, "K E"], Float[np.ndarray, "K"]],
) -> Float[np.ndarray, "n K"]:
    """xW + b of the slopes and offsets that `discriminant` gave."""
    slopes, offsets = fit
    return image.astype(float) @ slopes.T + offsets


def spread(
    image: Float[np.ndarray, "S E"],
    fit: tuple[Float[np.ndarray, "K E"], Float[np.ndarray, "K"]],
) -> float:
    """Root mean square distance of an image's `discriminant_logits` from their mean over the
    classes.
    """
    variances = in_blocks(
        lambda block: discriminant_logits(block, fit).var(axis=1, keepdims=True),
        image,
        cells=len(fit[1]),
    )
    return float(np.sqrt(variances.mean()))


def discriminant(
    image: Float[np.ndarray, "S E"], labels: Int[np.ndarray, "S"], num_classes: int
) -> tuple[Float[np.ndarray, "K E"], Float[np.ndarray, "K"]]:
    """Slopes and offsets of Gaussian discriminant analysis, equal priors, one covariance.

    The inverse covariance is Kubokawa and Srivastava's, E ((S - 1) Sigma + tr(Sigma) 1)^-1, which
    there is with fewer images than dimensions too. Every class has at least one image.
    """
    means = class_means(image, labels, num_classes)
    centred = image - means[labels]
    scatter = centred.T @ centred  # (S - 1) Sigma
    width = scatter.shape[0]
    ridge = np.trace(scatter) / max(len(image) - 1, 1)
    inverse = width * np.linalg.pinv(scatter + ridge * np.eye(width), hermitian=True)
    slopes = means @ inverse
    return slopes, -np.log(num_classes) - 0.5 * (slopes * means).sum(axis=1)


def class_means(
    image: Float[np.ndarray, "S E"], labels: Int[np.ndarray, "S"], num_classes: int
) -> Float[np.ndarray, "K E"]:
    """Mean embedding of the images of each class; zero for a class without images."""
    sums = np.zeros((num_classes, image.shape[1]))
    np.add.at(sums, labels, image)
    return sums / np.maximum(np.bincount(labels, minlength=num_classes), 1)[:, None]
