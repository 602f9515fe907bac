"""Differences between two evaluations of the same images: intervals and significance.

Images are what is drawn: the phrases or captions of one image are kept together, as they are not
independent. Trainings that differ in their seed are drawn too, where there are several.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.evaluation.bootstrap import CONFIDENCE, blocks, bootstrap_interval
from grain_jax.evaluation.ranking import wilson_interval

RESAMPLES = 10_000
SMOOTHING = 2.0  # images of the mean rate that each class is given, see `class_mean_interval`


@dataclass(frozen=True)
class Difference:
    """Mean of B minus mean of A, over the same answers."""

    first: float  # mean of A, over seeds too
    second: float  # of B
    low: float  # of the 95 % interval of second - first
    high: float
    p_value: float  # two-sided

    @property
    def value(self) -> float:
        return self.second - self.first


def paired_difference(
    first: Float[np.ndarray, "S N"],
    second: Float[np.ndarray, "R N"],
    groups: Int[np.ndarray, "N"],
    *,
    same_trainings: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compares A and B on the same N answers, each of one or several trainings (S and R of them).

    With one training a side, the interval is the percentile bootstrap of the difference of means
    (Efron 1979), groups drawn with replacement, and the p-value is of the paired permutation test:
    under the hypothesis that A and B are alike, each group's difference is as likely to have the
    other sign. All signs are tried where there are at most `resamples` of them, else as many at
    random, the given one counted. Neither says anything about other seeds.

    With several, both are of Student's t (Welch, with Satterthwaite's degrees of freedom): the
    variance of the difference is that of the trainings' means, and of the images. A bootstrap of
    three trainings would take their spread for two thirds of what it is. A side with a single
    training is taken to spread as the other one.

    Args:
        first: how right A is, in [0, 1], by training and answer.
        second: how right B is.
        groups: the image of each answer, a number.
        same_trainings: the s-th training of A is the s-th of B, by another method.
    """
    _, groups = np.unique(groups, return_inverse=True)
    sizes = np.bincount(groups).astype(np.float64)  # [G]
    before, after = (
        np.bincount(groups, weights=side.mean(axis=0), minlength=len(sizes))
        for side in (first, second)
    )
    if len(first) == len(second) == 1:
        generator = np.random.default_rng(seed)
        low, high = _ratio_interval(
            (after - before)[:, None], sizes[:, None], generator=generator, resamples=resamples
        )
        p_value = sign_flip_p_value(after - before, generator=generator, resamples=resamples)
    else:
        of_trainings = _variance_of_trainings(first, second, same_trainings=same_trainings)
        low, high, p_value = _students_t(after - before, sizes, of_trainings)
    return Difference(
        first=float(first.mean()),
        second=float(second.mean()),
        low=low,
        high=high,
        p_value=p_value,
    )


def mean_interval(
    values: Float[np.ndarray, "N"],
    groups: Int[np.ndarray, "N"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """95 % interval of a mean of values in [0, 1]: percentile bootstrap over groups.

    Where every group has the same mean, as where all answers are right, that would be a single
    number: Wilson's interval over as many trials as groups is taken. None with a single group.

    Args:
        values: how right each answer is.
        groups: the image of each answer, a number.
    """
    return mean_of_means_interval([(values, groups)], seed=seed, resamples=resamples)


def mean_of_means_interval(
    measured: Sequence[tuple[Float[np.ndarray, "_"], Int[np.ndarray, "_"]]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """As `mean_interval`, of the mean of several means over the same groups, which are drawn for
    all of them at once: of recall from images to texts and from texts to images.

    Args:
        measured: values and the group of each; every group occurs in each.
    """
    if (num_groups := len(np.unique(measured[0][1]))) < 2:
        return None
    units = np.empty((num_groups, 2 * len(measured)))  # sums, then numbers of answers
    sums, sizes = units[:, : len(measured)], units[:, len(measured) :]
    for k, (values, groups) in enumerate(measured):
        _, groups = np.unique(groups, return_inverse=True)
        sums[:, k] = np.bincount(groups, weights=values)
        sizes[:, k] = np.bincount(groups)
    if np.ptp(sums / sizes, axis=0).max() < 1e-12:
        return wilson_interval(float((sums.sum(axis=0) / sizes.sum(axis=0)).mean()), num_groups)
    return _ratio_interval(sums, sizes, generator=np.random.default_rng(seed), resamples=resamples)


def class_mean_interval(
    rates: Float[np.ndarray, "K"], counts: Int[np.ndarray, "K"]
) -> tuple[float, float]:
    """95 % interval of the mean over K classes of the accuracy of each, every class weighing alike.

    Wilson's, over as many images as have the variance of that mean in a plain accuracy (the
    effective sample size of Korn and Graubard 1998). The images of each class are taken to be
    independent draws, and the classes and their numbers of images to be given: it says nothing of
    other classes.

    A class of few images that is all right or all wrong would seem to have no variance. So the
    rate of each is taken with `SMOOTHING` more images, right as often as classes are on average,
    and what that takes off the variance of classes that are alike is put back. With a few classes
    of few images, or where such classes differ much, it covers more than 95 %, and less where a
    class of a handful is a large part of the mean.

    Args:
        rates: accuracy of each class, in [0, 1].
        counts: its images, at least 1.
    """
    mean = float(rates.mean())
    smoothed = (counts * rates + SMOOTHING * mean) / (counts + SMOOTHING)
    kept = 1 - counts / (counts + SMOOTHING) ** 2  # of the variance, where all rates are equal
    weights = 1 / (counts * kept)
    variances = smoothed * (1 - smoothed)
    plain = mean * (1 - mean)
    # Where all are right, or all wrong, the limit as they become so.
    ratio = (variances * weights).sum() / plain if plain > 0 else weights.sum()
    return wilson_interval(mean, float(len(rates) ** 2 / ratio))


def _ratio_interval(
    sums: Float[np.ndarray, "G M"],
    sizes: Float[np.ndarray, "G M"],
    *,
    generator: np.random.Generator,
    resamples: int,
) -> tuple[float, float]:
    """The interval of the mean of M means over answers, of groups with these sums and numbers of
    answers.
    """
    means = sums.shape[1]
    low, high = bootstrap_interval(
        np.concatenate([sums, sizes], axis=1),
        lambda totals: (totals[:, :means] / totals[:, means:]).mean(axis=1, keepdims=True),
        generator=generator,
        resamples=resamples,
    )
    return float(low[0]), float(high[0])


def _variance_of_trainings(
    first: Float[np.ndarray, "S N"], second: Float[np.ndarray, "R N"], *, same_trainings: bool
) -> list[tuple[float, int]]:
    """Variances of the mean over trainings, and the degrees of freedom of each."""
    if same_trainings:
        return [_variance_of_mean(second.mean(axis=1) - first.mean(axis=1))]
    known = [side.mean(axis=1) for side in (first, second) if len(side) > 1]
    found = [_variance_of_mean(means) for means in known]
    if len(known) == 1:  # of a single training of the other side
        found.append((found[0][0] * len(known[0]), found[0][1]))
    return found


def _variance_of_mean(values: Float[np.ndarray, "S"]) -> tuple[float, int]:
    return float(values.var(ddof=1)) / len(values), len(values) - 1


def _students_t(
    differences: Float[np.ndarray, "G"],
    sizes: Float[np.ndarray, "G"],
    of_trainings: Sequence[tuple[float, int]],
) -> tuple[float, float, float]:
    """Interval and p-value of the mean difference, from the variances of trainings and images."""
    import scipy.stats

    value, count = differences.sum() / sizes.sum(), len(sizes)
    parts = list(of_trainings)
    if count > 1:
        residuals = differences - value * sizes
        of_images = count / (count - 1) * (residuals**2).sum() / sizes.sum() ** 2
        parts.append((float(of_images), count - 1))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return float(value), float(value), float(value == 0)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    spread = np.sqrt(variance)
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * spread
    p_value = 2 * scipy.stats.t.sf(abs(value) / spread, freedom)
    return float(value - half), float(value + half), float(p_value)


def sign_flip_p_value(
    differences: Float[np.ndarray, "G"],
    *,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> float:
    """Two-sided p-value of a paired permutation test on the sum of the differences.

    Equal differences are flipped as one, by how many of them keep their sign.
    """
    nonzero = differences[differences != 0]  # a sign changes nothing of the others
    observed = abs(nonzero.sum()) - 1e-9 * np.abs(nonzero).sum()
    if 2 ** len(nonzero) <= resamples:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(nonzero))))
        return float((np.abs(signs @ nonzero) >= observed).mean())
    sizes, counts = np.unique(np.abs(nonzero), return_counts=True)
    reached = 1  # the signs as they are
    for size in blocks(resamples, len(sizes)):
        kept = generator.binomial(counts, 0.5, size=(size, len(sizes)))
        reached += int((np.abs((2 * kept - counts) @ sizes) >= observed).sum())
    return reached / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): with all below 0.05 called real, the
    probability of any false one is at most 0.05.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
