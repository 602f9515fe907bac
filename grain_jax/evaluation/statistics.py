"""How much of a difference between two evaluations of the same images chance alone would make.

Images are what is drawn: the phrases or captions of one image are kept together (cluster
bootstrap and permutation), as they are not independent. Training seeds are drawn too, where there
are several.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 10_000
CONFIDENCE = 0.95
MAX_CELLS = 1 << 22  # of a block of resamples: bounds the memory


@dataclass(frozen=True)
class Difference:
    """Mean of B minus mean of A, over the same answers."""

    first: float  # mean of A, over seeds too
    second: float  # of B
    low: float  # of the 95 % bootstrap interval of second - first
    high: float
    p_value: float  # two-sided, of the permutation test

    @property
    def value(self) -> float:
        return self.second - self.first


def paired_difference(
    first: Float[np.ndarray, "S N"],
    second: Float[np.ndarray, "R N"],
    groups: Int[np.ndarray, "N"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compares A and B on the same N answers, each of several trainings (S and R of them).

    The interval is the percentile bootstrap of the difference of means (Efron 1979): groups are
    drawn with replacement, and trainings where a side has several. With one training a side it says
    nothing about other seeds. The p-value is of the paired permutation test: under the hypothesis
    that A and B are alike, each group's difference is as likely to have the other sign. All signs
    are tried where there are at most `resamples` ways, else as many at random, itself counted.

    Args:
        first: how right A is, in [0, 1], by training and answer.
        second: how right B is.
        groups: the image of each answer, a number.
    """
    _, groups = np.unique(groups, return_inverse=True)
    sizes = np.bincount(groups).astype(np.float64)  # [G]
    sums = [
        np.stack([np.bincount(groups, weights=answers, minlength=len(sizes)) for answers in side])
        for side in (first, second)
    ]
    generator = np.random.default_rng(seed)
    blocks = _bootstrap(sums[0], sums[1], sizes, generator=generator, resamples=resamples)
    drawn = np.concatenate(list(blocks))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    difference = sums[1].mean(axis=0) - sums[0].mean(axis=0)
    return Difference(
        first=float(first.mean()),
        second=float(second.mean()),
        low=float(low),
        high=float(high),
        p_value=sign_flip_p_value(difference, generator=generator, resamples=resamples),
    )


def _bootstrap(
    first: Float[np.ndarray, "S G"],
    second: Float[np.ndarray, "R G"],
    sizes: Float[np.ndarray, "G"],
    *,
    generator: np.random.Generator,
    resamples: int,
) -> Iterator[Float[np.ndarray, "_"]]:
    """Differences of means of resampled groups and trainings, block by block.

    Groups with the same sums and size are drawn as one, by how often it comes: most are right in
    both or wrong in both, so that 50,000 images are a handful of kinds.
    """
    kinds, counts = np.unique(np.vstack([first, second, sizes]).T, axis=0, return_counts=True)
    sides = kinds[:, : len(first)].T, kinds[:, len(first) : -1].T  # [S, kinds], [R, kinds]
    num_groups = len(sizes)
    for size in _blocks(resamples, len(kinds)):
        drawn = generator.multinomial(num_groups, counts / num_groups, size=size)
        total = np.zeros(size)
        for side, sign in zip(sides, (-1, 1), strict=True):
            trainings = generator.integers(len(side), size=(size, len(side)))
            weights = (trainings[:, :, None] == np.arange(len(side))).mean(axis=1)  # [size, S]
            total += sign * ((weights @ side) * drawn).sum(axis=1)
        yield total / (drawn @ kinds[:, -1])


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
    for size in _blocks(resamples, len(sizes)):
        kept = generator.binomial(counts, 0.5, size=(size, len(sizes)))
        reached += int((np.abs((2 * kept - counts) @ sizes) >= observed).sum())
    return reached / (resamples + 1)


def _blocks(resamples: int, width: int) -> Iterator[int]:
    step = max(1, MAX_CELLS // max(1, width))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): with all below 0.05 called real, the chance
    of any false one is at most 0.05.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
