"""Classes that are defined by texts, by example images, or by both, on one scale of scores.

An image is far more similar to images than to texts (the modality gap), so the score of a class by
its texts cannot be compared with that of another by its examples. Each is set against what it is on
the example images themselves: `Level`. Where every class has texts and examples, this is the sum of
both scores, each weighted by how well it tells the examples apart; where texts say nothing of them,
as names that the model never read, the examples decide alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from grain_jax.zero_shot.arithmetic import blocks, cosines_with, unit
from grain_jax.zero_shot.method import Support

EXAMPLE_WEIGHT = 0.75  # of examples against texts; measured: docs/experiments.md
# Spreads between the scores of an image's own class and of others, where none of its class can be
# looked at: between the 2.0 and 3.7 that were measured of drawn birds (docs/experiments.md).
USUAL_SEPARATION = 3.0
# Pairs of classes, each as far apart as `USUAL_SEPARATION` allows, that are added to the pairs of
# classes with one example, as few pairs tell little of a spread; measured: docs/experiments.md.
ASSUMED_PAIRS = 3
# A choice, without a figure: in comparisons of classes that are defined unlike, scores separate at
# least so much. With texts that say nothing, the best of many would else pass for one found.
LEAST_SEPARATION = 2.0
# A choice, without a figure: of scores that tell nothing apart, so that they still decide alone.
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Level:
    """Where scores of one kind lie on the example images."""

    others: float  # mean, of the classes that an image is not of
    spread: float  # standard deviation of those
    own: float  # mean, of the class that an image is of

    @property
    def separation(self) -> float:
        """From the others to the own class, in spreads; 0 where scores say nothing."""
        return max(self.own - self.others, 0.0) / self.spread

    @property
    def midpoint(self) -> float:
        """Half way from the others to the own class."""
        return self.others + max(self.separation, LEAST_SEPARATION) / 2 * self.spread

    def standardized(self, scores: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n K"]:
        """Distance from the midpoint, in spreads."""
        return (scores - self.midpoint) / self.spread


@dataclass(frozen=True)
class ExampleClasses:
    """K classes, fitted to their texts and examples; called with images."""

    has_texts: Bool[np.ndarray, "K"]  # classes that texts have a part in
    has_examples: Bool[np.ndarray, "K"]  # likewise
    means: Float[np.ndarray, "K E"]  # mean example, of unit length; zero for a class without
    texts: Level | None  # None: no class has texts, or there is but one class
    examples: Level | None  # None: no class has examples that count, or there is but one class
    both: Level | None  # of the mixture; None: no class has both
    weight: float

    def __call__(
        self, text_scores: Float[np.ndarray, "n K"], image: Float[np.ndarray, "n E"]
    ) -> Float[np.ndarray, "n K"]:
        """Scores on the scale of the text scores, which are those of classes without examples.

        Where no class has texts: cosines with the mean examples.

        Args:
            text_scores: by any method; of a class without texts they are not looked at.
            image: embeddings of the same images, of unit length.
        """
        if not self.has_examples.any():
            return text_scores
        similarity = cosines_with(self.means)(image)
        if self.texts is None or self.examples is None:
            return np.where(self.has_examples, similarity, text_scores)
        found = self.examples.standardized(similarity)
        if self.both is not None:
            mixed = _mixed(self.texts, self.examples, self.weight, text_scores, similarity)
            found = np.where(self.has_texts, self.both.standardized(mixed), found)
        on_text_scale = self.texts.midpoint + self.texts.spread * found
        return np.where(self.has_examples, on_text_scale, text_scores)


def fit_examples(
    text_scores: Float[np.ndarray, "S K"],
    support: Support,
    has_texts: Bool[np.ndarray, "K"],
    *,
    weight: float,
    logit_scale: float,
) -> ExampleClasses:
    """Fits K classes to S example images.

    Images of a class count as one, so that a class with more of them has no other say. How similar
    an image is to its own class is measured without it; where no class has two, it is taken to be
    `USUAL_SEPARATION` spreads above the others. No spread is less than 1 / `logit_scale`, as few
    examples tell little of it. Where one class alone has examples, or texts are of classes without,
    the other kind of score stands for what was not seen: the same distance from others to own, the
    same spread. One example in all does not count, see `tells_nothing`.

    Args:
        text_scores: of the example images by texts; of a class without texts they are not looked
            at.
        has_texts: classes that texts have a part in; each of the others has an example.
        weight: of the examples, 0 to 1, in a class with both. 0: its texts alone, 1: its examples.
        logit_scale: what the model multiplies cosines by.

    Raises ValueError where one example in all is all that a class is defined by.
    """
    num_classes = len(has_texts)
    counts = np.bincount(support.labels, minlength=num_classes)
    count_as = np.where(has_texts, weight > 0, True) & (counts > 0)
    if tells_nothing(len(support.labels), num_classes):
        if (count_as & ~(has_texts & (weight < 1))).any():
            raise ValueError(
                "One example in all, of a class that is defined by it alone: how similar images of "
                "a class are is not known from one. Give another of it, or one of another class."
            )
        count_as = np.zeros(num_classes, bool)
    sums = np.zeros((num_classes, support.image.shape[1]))
    np.add.at(sums, support.labels, support.image)
    means = unit(sums)
    similarity = cosines_with(means)
    rows = _Rows(support.labels, counts)
    least = 1.0 / logit_scale
    texts = _text_level(text_scores, rows, has_texts, least)
    if not count_as.any():
        return ExampleClasses(has_texts, count_as, means, texts, None, None, weight)
    others, spread = rows.of_others(lambda some: similarity(support.image[some]), counts > 0, least)
    several = counts[support.labels] > 1
    examples: Level | None = None
    if not several.any() and others is not None:
        examples = _level_of_single(others, spread, num_classes=int((counts > 0).sum()))
    elif several.any():
        own = rows.mean(_own_similarity(support, sums), several)
        if others is not None:
            examples = Level(others, spread, own)
        elif texts is not None:
            examples = Level(own - (texts.own - texts.others), texts.spread, own)
    both = count_as & has_texts
    mixture = None
    if texts is not None and examples is not None and both.any():

        def mixed(some: slice) -> Float[np.ndarray, "n K"]:
            found = similarity(support.image[some])
            return _mixed(texts, examples, weight, text_scores[some], found)

        mixture = _mixture_level(texts, examples, weight, rows.of_others(mixed, both, 0.0)[1])
    return ExampleClasses(has_texts, count_as, means, texts, examples, mixture, weight)


def tells_nothing(num_examples: int, num_classes: int) -> bool:
    """Whether examples do not count: one in all says neither how similar another of its class is
    nor how similar images of other classes are. A class alone is compared with nothing.
    """
    return num_examples == 1 and num_classes > 1


def _level_of_single(others: float, spread: float, *, num_classes: int) -> Level:
    """Where each of the classes has one example: `USUAL_SEPARATION` to the own class, at most 1.

    Among few classes the spread is more of what it can be than of what was measured.
    """
    pairs = num_classes * (num_classes - 1) / 2
    widest = max(1.0 - others, 0.0) / USUAL_SEPARATION
    squares = pairs * spread**2 + ASSUMED_PAIRS * widest**2
    spread = float(np.sqrt(squares / (pairs + ASSUMED_PAIRS)))
    return Level(others, spread, min(others + USUAL_SEPARATION * spread, 1.0))


@dataclass(frozen=True)
class _Rows:
    """The example images: of which class each is, and how many that class has."""

    labels: Int[np.ndarray, "S"]
    counts: Int[np.ndarray, "K"]

    @property
    def weights(self) -> Float[np.ndarray, "S"]:
        return 1.0 / self.counts[self.labels]

    def own(self, scores: Float[np.ndarray, "S K"]) -> Float[np.ndarray, "S"]:
        """The score of each image's own class."""
        return scores[np.arange(len(self.labels)), self.labels]

    def mean(self, values: Float[np.ndarray, "S"], chosen: Bool[np.ndarray, "S"]) -> float:
        """Over the classes of the chosen images."""
        return float(np.average(values[chosen], weights=self.weights[chosen]))

    def of_others(
        self,
        scores: Callable[[slice], Float[np.ndarray, "n K"]],
        chosen: Bool[np.ndarray, "K"],
        least: float,
    ) -> tuple[float | None, float]:
        """Mean and spread of the chosen classes on images that are not theirs; None, and the least
        spread, where there are no such images. `scores` is called with rows, block after block.
        """
        positions = np.flatnonzero(chosen)
        place = np.full(len(chosen), -1)
        place[positions] = np.arange(len(positions))
        total, mean, squares = 0.0, 0.0, 0.0
        for some in blocks(len(self.labels), cells=len(chosen)):
            values = scores(some)[:, positions].astype(np.float64)
            own, weights = place[self.labels[some]], self.weights[some]
            inside = np.flatnonzero(own >= 0)
            values[inside, own[inside]] = 0.0
            added = float(weights @ (len(positions) - (own >= 0)))
            if added == 0:
                continue
            mean_here = float(weights @ values.sum(axis=1)) / added
            values -= mean_here
            values[inside, own[inside]] = 0.0
            squares += float(weights @ np.einsum("nk,nk->n", values, values))
            # Chan et al.: the moments of two parts give those of the whole.
            apart, total = mean_here - mean, total + added
            mean += apart * added / total
            squares += apart**2 * added * (total - added) / total
        if total == 0:
            return None, least
        return mean, max(math.sqrt(squares / total), least)


def _text_level(
    scores: Float[np.ndarray, "S K"], rows: _Rows, has_texts: Bool[np.ndarray, "K"], least: float
) -> Level | None:
    others, spread = rows.of_others(lambda some: scores[some], has_texts, least)
    if others is None:
        return None
    with_texts = has_texts[rows.labels]
    if not with_texts.any():
        return Level(others, spread, others + USUAL_SEPARATION * spread)
    return Level(others, spread, rows.mean(rows.own(scores), with_texts))


def _own_similarity(support: Support, sums: Float[np.ndarray, "K E"]) -> Float[np.ndarray, "S"]:
    """Cosine of each image with the mean of the other examples of its class; 0 without others."""
    found = np.empty(len(support.labels))
    for some in blocks(len(found), cells=sums.shape[1]):
        image = support.image[some]
        found[some] = (unit(sums[support.labels[some]] - image) * image).sum(axis=1)
    return found


def _mixed(
    texts: Level,
    examples: Level,
    weight: float,
    text_scores: Float[np.ndarray, "*n K"],
    similarity: Float[np.ndarray, "*n K"],
) -> Float[np.ndarray, "*n K"]:
    """Both standardized scores, each times its weight and the square of its separation.

    Were they normal and independent, the odds of the class would have the separations themselves;
    squared was better (docs/experiments.md), as the weaker score is wrong where the other is too.
    """
    of_texts, of_examples = _weights(texts, examples, weight)
    by_texts = of_texts * texts.standardized(text_scores)
    return by_texts + of_examples * examples.standardized(similarity)


def _weights(texts: Level, examples: Level, weight: float) -> tuple[float, float]:
    return (
        (1 - weight) * max(texts.separation**2, LEAST_WEIGHT),
        weight * max(examples.separation**2, LEAST_WEIGHT),
    )


def _mixture_level(texts: Level, examples: Level, weight: float, measured: float) -> Level:
    """That of `_mixed`; its spread is at least that of independent parts."""
    one = np.ones(1)
    ends = [
        float(_mixed(texts, examples, weight, one * of_texts, one * of_examples)[0])
        for of_texts, of_examples in (
            (texts.others, examples.others),
            (texts.own, examples.own),
        )
    ]
    independent = float(np.hypot(*_weights(texts, examples, weight)))
    return Level(ends[0], max(measured, independent), ends[1])
