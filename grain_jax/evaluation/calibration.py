"""Fit what `zero_shot/calibration.py` applies: pure functions of scores and labels.

Whatever has a number for each image and class is looked at in blocks of images.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from grain_jax.zero_shot.arithmetic import log_softmax, softmax
from grain_jax.zero_shot.calibration import LabelSets, SetRule, nonconformity
from grain_jax.zero_shot.scorers import TextBank

LOG_TEMPERATURES = (math.log(1e-4), math.log(1e4))  # looked between
MAX_CELLS = 1 << 22  # similarities held at once
BLOCK_CELLS = 1 << 20  # logits of a block, of which several float64 copies are made
COSINE_BINS = 20_000
MAX_ROUNDS, MAX_DEPARTURE = 20_000, 1e-6  # of prior matching


def split_by_name(names: Sequence[str], fraction: float) -> Bool[np.ndarray, "N"]:
    """Which files are fitted to, about `fraction` of them: by the SHA-256 of the name, so that a
    file stays on its side however many others there are.
    """
    limit = fraction * 2**64
    digests = (hashlib.sha256(name.encode(errors="surrogatepass")).digest() for name in names)
    return np.array([int.from_bytes(digest[:8], "big") < limit for digest in digests], bool)


def blocks(
    logits: Float[np.ndarray, "N K"], temperature: float = 1.0
) -> Iterator[tuple[slice, Float[np.ndarray, "n K"]]]:
    """Rows, and float64 logits / temperature of them, of at most about `BLOCK_CELLS`."""
    step = max(1, BLOCK_CELLS // max(1, logits.shape[1]))
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        yield rows, logits[rows].astype(np.float64) / temperature


def check_logits(logits: Float[np.ndarray, "N K"]) -> None:
    """Raises ValueError for what nothing can be fitted to."""
    if logits.shape[0] == 0:
        raise ValueError("There are no images to fit to; give more.")
    if logits.shape[1] < 2:
        raise ValueError(
            f"There is {logits.shape[1]} class, whose probability is always 1; give two or more."
        )
    if not all(np.isfinite(block).all() for _, block in blocks(logits)):
        raise ValueError("The scores hold NaN or infinity; calibrate an earlier checkpoint.")


def negative_log_likelihood(
    logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"], temperature: float
) -> float:
    """Mean over images of - log softmax(logits / temperature) of the true label."""
    total = 0.0
    for rows, block in blocks(logits, temperature):
        true = log_softmax(block)[np.arange(len(block)), labels[rows]]
        total -= float(true.sum())
    return total / len(labels)


def fit_temperature(logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"]) -> float | None:
    """The temperature of the least negative log-likelihood (Guo et al. 2017), float64.

    The likelihood is convex in 1 / temperature, so a search over its logarithm finds the only
    minimum. It ends at the upper end of `LOG_TEMPERATURES` where the scores say nothing. None where
    the true label of every image scores highest: any lower temperature would be likelier. Raises
    ValueError for what nothing can be fitted to.
    """
    from scipy.optimize import minimize_scalar

    check_logits(logits)
    true = logits[np.arange(len(labels)), labels]
    if all((block >= true[rows, None]).sum() == len(block) for rows, block in blocks(logits)):
        return None
    found = minimize_scalar(
        lambda log: negative_log_likelihood(logits, labels, math.exp(log)),
        bounds=LOG_TEMPERATURES,
        method="bounded",
        options={"xatol": 1e-7},
    )
    return math.exp(float(found.x))


def says_nothing(temperature: float) -> bool:
    """Whether the search for a temperature ended at its upper end."""
    return math.log(temperature) > LOG_TEMPERATURES[1] - 1e-3


def match_prior(logits: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "K"]:
    """The shift of each class, of mean 0, with which its mean probability over the images is 1 / K.

    Prior matching, in float64 and in blocks of images (`zero_shot/priors.py` has them all at once).
    Its premise is that the classes are about
    equally frequent among the images. Raises ValueError where it does not converge: a class that no
    image comes near.
    """
    check_logits(logits)
    num_classes = logits.shape[1]
    shift = np.zeros(num_classes)
    for _ in range(MAX_ROUNDS):
        frequency = num_classes * mean_probabilities(logits, shift)
        if np.abs(frequency - 1).max() < MAX_DEPARTURE:
            return shift - shift.mean()
        if frequency.min() <= 0:
            break
        shift -= np.log(frequency)
    raise ValueError(
        "Prior matching does not converge: the scores of some class are far below the others' in "
        "every image. Give images of all the classes, or fewer classes."
    )


def mean_probabilities(
    logits: Float[np.ndarray, "N K"], shift: Float[np.ndarray, "K"]
) -> Float[np.ndarray, "K"]:
    """Mean over images of softmax(logits + shift)."""
    total = np.zeros(logits.shape[1])
    for _, block in blocks(logits):
        total += softmax(block + shift[None, :]).sum(axis=0)
    return total / len(logits)


def prior_departure(means: Float[np.ndarray, "K"]) -> float:
    """The largest distance of K x the mean probability of a class from 1."""
    return float(np.abs(len(means) * means - 1).max())


def false_reject_threshold(scores: Float[np.ndarray, "N"], rate: float) -> float:
    """The threshold below which a new image of the classes falls with at most this probability.

    The floor((N + 1) rate)-th smallest of the scores of images of the classes: with exchangeable
    images the bound is exact for any N. Raises ValueError where N is too small for the rate.
    """
    rank = math.floor((len(scores) + 1) * rate + 1e-9)
    if rank < 1:
        raise ValueError(
            f"A false-reject rate of {rate:g} takes at least {math.ceil(1 / rate) - 1} images to "
            f"fit to, and there are {len(scores)}; give more, or a higher rate."
            if rate > 0
            else "A false-reject rate of 0 would reject nothing; give a number above 0."
        )
    return float(np.sort(scores)[rank - 1])


def false_accept_threshold(outliers: Float[np.ndarray, "M"], rate: float) -> float:
    """The threshold that a new image of none of the classes reaches with at most this probability:
    just above the score of rank floor((M + 1) rate), from the largest. Raises ValueError where M is
    too small for the rate.
    """
    rank = math.floor((len(outliers) + 1) * rate + 1e-9)
    if rank < 1:
        raise ValueError(
            f"A false-accept rate of {rate:g} takes at least {math.ceil(1 / rate) - 1} outliers to "
            f"fit to, and there are {len(outliers)}; give more, or a higher rate."
            if rate > 0
            else "A false-accept rate of 0 would accept nothing; give a number above 0."
        )
    return float(np.nextafter(np.sort(outliers)[::-1][rank - 1], np.inf))


def fit_label_sets(
    logits: Float[np.ndarray, "N K"],
    labels: Int[np.ndarray, "N"],
    *,
    temperature: float = 1.0,
    coverage: float,
    rule: SetRule,
) -> LabelSets:
    """Split conformal sets: the quantile of the nonconformity of true labels, corrected for N.

    The ceil((N + 1) coverage)-th smallest (Vovk et al. 2005). With a temperature that was chosen
    without these images, sets of new images, exchangeable with these, hold the true label with at
    least this probability; with one that was fitted to the same images, approximately. Where N is
    too small for that the quantile is None, and the sets hold every label.
    """
    check_logits(logits)
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage:g}; expected a number between 0 and 1.")
    true = np.concatenate(
        [
            nonconformity(softmax(block), rule)[np.arange(len(block)), labels[rows]]
            for rows, block in blocks(logits, temperature)
        ]
    )
    rank = math.ceil((len(true) + 1) * coverage - 1e-9)
    quantile = None if rank > len(true) else float(np.sort(true)[rank - 1])
    return LabelSets(rule, coverage, quantile)


def summed_sets(
    probabilities: Float[np.ndarray, "N K"], coverage: float
) -> Bool[np.ndarray, "N K"]:
    """The most probable labels whose probabilities sum to `coverage`: right if they could be
    believed.
    """
    enough = nonconformity(probabilities, "aps") >= coverage
    least = np.where(enough, probabilities, 0.0).max(axis=1, keepdims=True)
    return probabilities >= least


def seen_histogram(
    regions: Float[np.ndarray, "N Q E"],
    bank: TextBank,
    labels: Int[np.ndarray, "N"],
) -> tuple[Int[np.ndarray, "bins"], Int[np.ndarray, "bins"]]:
    """How often descriptions of the image's own class, and of the others, have their best region
    at each cosine, from -1 to 1 in equal bins.
    """
    num_images, num_queries, width = regions.shape
    owner = np.zeros((len(bank.members), len(bank.embed)), bool)
    for k, rows in enumerate(bank.members):
        owner[k, rows] = True
    used = np.asarray(owner.any(axis=0))
    own_counts, other_counts = np.zeros(COSINE_BINS, int), np.zeros(COSINE_BINS, int)
    step = max(1, MAX_CELLS // max(1, num_queries * len(bank.embed)))
    for start in range(0, num_images, step):
        block = regions[start : start + step]
        cosines = (block.reshape(-1, width) @ bank.embed.T).reshape(len(block), num_queries, -1)
        bins = _cosine_bins(cosines.max(axis=1))
        own = owner[labels[start : start + step]]
        others = np.logical_and(~own, used[None, :])
        own_counts += np.bincount(bins[own], minlength=COSINE_BINS)
        other_counts += np.bincount(bins[others], minlength=COSINE_BINS)
    return own_counts, other_counts


def _cosine_bins(cosines: np.ndarray) -> np.ndarray:
    return np.clip(((cosines + 1) / 2 * COSINE_BINS).astype(int), 0, COSINE_BINS - 1)


def seen_threshold(own: Int[np.ndarray, "bins"], others: Int[np.ndarray, "bins"]) -> float | None:
    """The cosine from which a description counts as seen: where the fraction of own descriptions
    that are, less that of other classes', is largest (Youden's J). None where there are none of
    either, or no cosine tells them apart.
    """
    if own.sum() == 0 or others.sum() == 0:
        return None
    gain = seen_rates(own) - seen_rates(others)
    best = int(gain.argmax())
    return None if gain[best] <= 0 else -1 + 2 * best / COSINE_BINS


def seen_rates(counts: Int[np.ndarray, "bins"]) -> Float[np.ndarray, "bins"]:
    """The fraction at or above the lower edge of each bin."""
    return counts[::-1].cumsum()[::-1] / max(1, counts.sum())


def seen_rate(counts: Int[np.ndarray, "bins"], cosine: float) -> float:
    """The fraction at or above a cosine that `seen_threshold` gave."""
    return float(seen_rates(counts)[round((cosine + 1) / 2 * COSINE_BINS)])
