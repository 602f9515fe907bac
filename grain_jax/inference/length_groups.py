"""Texts grouped by length, so that one long text does not make all others as long.

Exact where the text tower is causal and pooled at end-of-text: padding after it never matters.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int

SHORTEST_LENGTH = 16  # token lengths that get a compilation: this, doubled, up to the full length
MIN_SAVING = 0.2  # fraction of the positions of texts that a further group must save


@dataclass(frozen=True)
class LengthGroup:
    """Texts that are encoded together."""

    rows: Int[np.ndarray, "_"]  # which texts
    length: int  # tokens of each, padding included


def used_lengths(tokens: Int[np.ndarray, "T L"]) -> Int[np.ndarray, "T"]:
    """Columns of each row up to the last one that is not padding; at least 1."""
    columns = np.arange(1, tokens.shape[1] + 1)
    return np.maximum(np.where(tokens != 0, columns, 0).max(axis=1), 1)


def compiled_length(used: int, full: int) -> int:
    """`used` rounded up to a length that has a compilation, at most `full`."""
    length = SHORTEST_LENGTH
    while length < used:
        length *= 2
    return min(length, full)


def length_groups(
    lengths: Int[np.ndarray, "T"] | None,
    shape: tuple[int, int],
    *,
    padded_size: Callable[[int], int],
) -> Sequence[LengthGroup]:
    """The groups that a set of texts is encoded in, shortest first; every text is in one.

    A group of its own costs a compilation and rows of padding, so each has to save `MIN_SAVING` of
    the positions that one group of all would compute.

    Args:
        lengths: of the texts in tokens; None: padding is read, so they stay one group.
        shape: number of texts and tokens of the longest, as compiled.
        padded_size: rows that are computed for a number of texts.
    """
    count, full = shape
    if lengths is None:
        return [LengthGroup(np.arange(count), full)]
    compiled = np.array([compiled_length(length, full) for length in lengths.tolist()])
    bounds = [0, *np.unique(compiled).tolist()]
    least = MIN_SAVING * padded_size(count) * full

    def cost(below: int, length: int) -> int:
        return padded_size(int(((compiled > below) & (compiled <= length)).sum())) * length

    while len(bounds) > 2:
        # The border between two groups that saves least goes first.
        savings = [
            (cost(below, above) - cost(below, border) - cost(border, above), border)
            for (below, border), above in zip(pairwise(bounds), bounds[2:], strict=False)
        ]
        saving, border = min(savings)
        if saving >= least:
            break
        bounds.remove(border)
    return list(_cut(compiled, bounds))


def _cut(compiled: Int[np.ndarray, "T"], bounds: Sequence[int]) -> Iterator[LengthGroup]:
    for below, length in pairwise(bounds):
        yield LengthGroup(np.flatnonzero((compiled > below) & (compiled <= length)), length)
