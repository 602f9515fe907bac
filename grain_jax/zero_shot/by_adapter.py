"""Scores by a cache of labelled images and by how alike their class distributions are: TIP-X of
SuS-X, and CapS-Adapter, which looks at captions of the labelled images too. Neither is zero-shot.

Both papers sum over the labelled images of a class. Here these are means: with a sum, a class that
has more images gets more of every image's score, and the sums of half of the images, on which the
weights are searched, are half of those that the weights are used with. The searched alphas and
gammas are the papers' times the mean number of images of a class, so that with as many images of
every class they are weights of the papers' sums.

Hyper-parameters are searched on every second labelled image of each class; with one image of a
class alone they are `DEFAULTS`. One parameter after another is searched, not the whole grid.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from grain_jax.zero_shot.arithmetic import in_blocks, softmax
from grain_jax.zero_shot.by_text import name_scores
from grain_jax.zero_shot.held_out import best_of, held_out, hit_count, hit_rate
from grain_jax.zero_shot.method import (
    CaptionBank,
    ClassBanks,
    Images,
    Score,
    Support,
    labelled_images,
    required,
)
from grain_jax.zero_shot.scorers import MAX_CELLS

SIGNATURE_TEMPERATURE = 0.5


@dataclass(frozen=True)
class Weights:
    """Hyper-parameters, with the names of the papers."""

    alpha: float = 1.0  # of the votes of the cache
    beta: float = 5.5  # how fast a vote falls with the distance of the labelled image
    gamma: float = 1.0  # of the likeness of class distributions
    delta: float = 0.0  # of captions against images in the distance


DEFAULTS = Weights()
DEFAULT_DELTA = 0.5  # where captions are looked at
ALPHAS = (0.0, *np.linspace(0.1, 50, 20).tolist())  # 0: names alone
BETAS = tuple(np.linspace(1, 50, 20).tolist())
GAMMAS = (0.0, *np.linspace(0.1, 30, 20).tolist())
DELTAS = tuple(np.linspace(0, 1, 11).tolist())


def by_tip_x(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """s x.w + alpha exp(-beta (1 - x.F)) L + gamma (-KL, scaled) L, divided by s.

    F are the labelled images. L has their one-hot labels, each divided by the number of images of
    its class (the paper: undivided). KL is from the image's distribution over the
    classes, softmax(x.w / 0.5), to that of the labelled image. It is scaled to the range of the
    affinities exp(...), both of the labelled images to each other: the paper takes the range over
    all test images, by which the score of one image would depend on others.
    """
    support = labelled_images(support)
    return _score(texts, support, start=DEFAULTS, deltas=())


def by_caps_adapter(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """TIP-X with (1 - delta) x.F + delta x.T in place of x.F, T the captions of the labelled
    images.
    """
    support = labelled_images(support)
    return _score(texts, support, start=replace(DEFAULTS, delta=DEFAULT_DELTA), deltas=DELTAS)


def _score(
    texts: ClassBanks, support: Support, *, start: Weights, deltas: Sequence[float]
) -> Score:
    weights = search(texts, support, start=start, deltas=deltas)
    cache = Cache(texts, support, weights)
    return lambda images, alpha: cache.scores(images)


class Cache:
    """Labelled images of K classes, each of which has at least one."""

    def __init__(self, texts: ClassBanks, support: Support, weights: Weights):
        order = np.argsort(support.labels, kind="stable")
        self.texts, self.weights = texts, weights
        self.image = support.image[order]
        self.keys = self._keys(support, order, weights.delta)
        counts = np.bincount(support.labels, minlength=texts.num_classes)
        self._counts, self._starts = counts.astype(np.float32), np.cumsum(counts) - counts

    def _keys(
        self, support: Support, order: Int[np.ndarray, "S"], delta: float
    ) -> Float[np.ndarray, "S E"]:
        """What an image's product with is its affinity to each labelled image."""
        if delta == 0:
            return self.image
        captions = required(
            support.captions,
            what="captions of the labelled images",
            option="support= with captions",
        )
        return (1 - delta) * self.image + delta * captions[order]

    @functools.cached_property
    def _log_signatures(self) -> Float[np.ndarray, "S K"]:
        return np.log(self.signatures(Images(self.image)))

    @functools.cached_property
    def _mean_logs(self) -> Float[np.ndarray, "K K"]:
        """Over the labelled images of each class."""
        return self.of_classes(self._log_signatures.T).T

    def signatures(self, images: Images) -> Float[np.ndarray, "n K"]:
        """Distribution over the classes of each image."""
        return softmax(name_scores(images, self.texts).astype(float) / SIGNATURE_TEMPERATURE)

    def affinities(self, similarities: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """exp(-beta (1 - similarity)) of products with `keys`."""
        return np.exp(-self.weights.beta * (1.0 - similarities))

    def divergences(self, signatures: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "n S"]:
        """KL divergence of each image's distribution from each labelled image's."""
        own = (signatures * np.log(signatures)).sum(axis=1, keepdims=True)
        return own - signatures @ self._log_signatures.T

    def of_classes(self, weights: Float[np.ndarray, "n S"]) -> Float[np.ndarray, "n K"]:
        """Means over the labelled images of each class."""
        return np.add.reduceat(weights, self._starts, axis=1) / self._counts

    @functools.cached_property
    def _range(self) -> tuple[float, float]:
        """Slope and offset from KL to the affinities' range, over pairs of labelled images."""
        near, low, most = [], [], []
        rows = max(1, MAX_CELLS // len(self.image))
        for start in range(0, len(self.image), rows):
            block = self.image[start : start + rows]
            similarities = block @ self.keys.T
            near.append(similarities.max())
            low.append(similarities.min())
            signatures = np.exp(self._log_signatures[start : start + rows])
            most.append(float(self.divergences(signatures).max()))
        lowest, highest = self.affinities(np.array([min(low), max(near)])).tolist()
        if max(most) <= 0:
            return 0.0, highest
        return (lowest - highest) / max(most), highest  # KL is 0 at the least: of itself

    def votes(self, images: Images) -> Float[np.ndarray, "n K"]:
        """Mean affinity to the labelled images of each class."""
        return in_blocks(
            lambda image: self.votes_of(image @ self.keys.T), images.image, cells=len(self.image)
        )

    def votes_of(self, similarities: Float[np.ndarray, "n S"]) -> Float[np.ndarray, "n K"]:
        """`votes` of images by their products with `keys`."""
        return self.of_classes(self.affinities(similarities))

    def likeness(self, images: Images) -> Float[np.ndarray, "n K"]:
        """Mean scaled negative divergence from the labelled images of each class.

        A divergence is linear in the labelled image's log distribution, so these are averaged
        first.
        """
        slope, offset = self._range
        signatures = self.signatures(images)
        own = (signatures * np.log(signatures)).sum(axis=1, keepdims=True)
        return slope * (own - signatures @ self._mean_logs.T) + offset

    def scores(self, images: Images) -> Float[np.ndarray, "n K"]:
        """Names, votes and likeness added up, divided by the logit scale."""
        added = self.weights.alpha * self.votes(images) + self.weights.gamma * self.likeness(images)
        return name_scores(images, self.texts) + added / self.texts.logit_scale


def search(
    texts: ClassBanks, support: Support, *, start: Weights, deltas: Sequence[float]
) -> Weights:
    """Hyper-parameters that classify held-out labelled images best, the first of equal ones;
    `start` where a class has a single image.

    Alphas and gammas are `ALPHAS` and `GAMMAS` times the mean number of images of a class. First
    delta with alpha, then beta with alpha, without the likeness of distributions, then gamma.
    """
    parts = held_out(support.labels, at_least=2)
    if parts is None:
        return start
    fitted, held = parts
    captions = None if support.captions is None else support.captions[fitted]
    known = Support(support.image[fitted], support.labels[fitted], captions)
    images, labels = Images(support.image[held]), support.labels[held]
    named = np.float32(texts.logit_scale) * name_scores(images, texts)
    shots = len(support.labels) / texts.num_classes
    alphas, gammas = ([shots * one for one in grid] for grid in (ALPHAS, GAMMAS))

    def best_votes(candidates: Sequence[Weights]) -> Weights:
        hits = np.zeros((len(candidates), len(alphas)), int)
        rows = max(1, MAX_CELLS // len(known.image))
        for first in range(0, len(labels), rows):
            part = slice(first, first + rows)
            delta, similarities = None, np.zeros((0, 0))
            for number, candidate in enumerate(candidates):
                cache = Cache(texts, known, candidate)
                if candidate.delta != delta:  # the same products for all that differ in beta
                    delta, similarities = candidate.delta, images.image[part] @ cache.keys.T
                votes = cache.votes_of(similarities)
                hits[number] += [
                    hit_count(named[part] + np.float32(alpha) * votes, labels[part])
                    for alpha in alphas
                ]
        number, place = divmod(int(hits.argmax()), len(alphas))
        return replace(candidates[number], alpha=alphas[place])

    found = best_votes([replace(start, delta=delta) for delta in deltas or (start.delta,)])
    found = best_votes([replace(found, beta=beta) for beta in BETAS])
    cache = Cache(texts, known, found)
    so_far, likeness = named + found.alpha * cache.votes(images), cache.likeness(images)
    gamma = best_of(gammas, lambda one: hit_rate(so_far + one * likeness, labels))
    return replace(found, gamma=gamma)
