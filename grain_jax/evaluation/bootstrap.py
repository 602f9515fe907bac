"""The percentile bootstrap (Efron 1979), of which every interval by resampling here is."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int

CONFIDENCE = 0.95
MAX_CELLS = 1 << 22  # of a block of resamples: bounds the memory
# Units of a kind, on average, from which it is drawn how often a kind comes, in one number. That
# takes longer than to draw a unit, so with fewer of a kind each unit is drawn by itself.
UNITS_OF_A_KIND = 8


def bootstrap_interval(
    units: Float[np.ndarray, "G C"],
    statistic: Callable[[Float[np.ndarray, "R C"]], Float[np.ndarray, "R M"]],
    *,
    generator: np.random.Generator,
    resamples: int,
) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "M"]]:
    """Bounds of the 95 % interval of statistics of sums over units.

    Units are drawn with replacement, as many as there are. Equal ones are drawn as one, by how
    often they come: most images are right in both of two evaluations or wrong in both, so that
    50,000 are a handful of kinds. Units that mostly differ are drawn one by one.

    Args:
        units: what each unit drawn (an image with all its answers) adds to C sums.
        statistic: the values of each row of sums.
    """
    kinds, counts = np.unique(units, axis=0, return_counts=True)
    alike = len(units) >= UNITS_OF_A_KIND * len(kinds)
    drawn = []
    for size in blocks(resamples, len(kinds) if alike else len(units)):
        if alike:
            times = generator.multinomial(len(units), counts / len(units), size=size)
        else:
            times = _times_drawn(counts, size, generator)
        drawn.append(statistic(times @ kinds))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    return low, high


def _times_drawn(
    counts: Int[np.ndarray, "K"], size: int, generator: np.random.Generator
) -> Int[np.ndarray, "R K"]:
    """How often each kind comes in `size` draws of as many units as there are, one by one."""
    kind = np.repeat(np.arange(len(counts)), counts)  # of each unit
    chosen = kind[generator.integers(len(kind), size=(size, len(kind)))]
    chosen += len(counts) * np.arange(size)[:, None]  # each draw has places of its own
    times = np.bincount(chosen.ravel(), minlength=size * len(counts))
    return times.reshape(size, len(counts))


def blocks(resamples: int, width: int) -> Iterator[int]:
    """Sizes of blocks of resamples of so many cells each, that together are all of them."""
    step = max(1, MAX_CELLS // max(1, width))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)
