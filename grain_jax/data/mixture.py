"""Several sources as one, drawn from by weight, and the order that records are trained on in.

An order maps the global position p = step * batch_size + row to a record. It is a pure function of
p, so that a run resumes from its step alone, with other weights too: from that step on it has the
batches of a run that had these weights from the start.
"""

import bisect
import hashlib
import itertools
import json
import zlib
from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import Any, Protocol, runtime_checkable

import numpy as np

from grain_jax.data.records import Record, Source, read_records


@runtime_checkable
class Order(Protocol):
    """Global position -> index of a record. Pickled to loader processes."""

    def __getitem__(self, position: int, /) -> int: ...


class Mixture:
    """The records of several sources, one source after the other, and the weight of each.

    Args:
        sources: one or more, none of them empty.
        weights: fractions of the samples, up to a common factor; exact, and more than 0.
        names: what each source is called on the screen.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[Fraction], names: Sequence[str]
    ) -> None:
        assert len(sources) == len(weights) == len(names) > 0
        assert all(map(len, sources))
        self.sources, self.weights, self.names = tuple(sources), tuple(weights), tuple(names)
        self._starts = [0, *itertools.accumulate(map(len, sources))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int, /) -> Record:
        number, own = self._place(index)
        return self.sources[number][own]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """`self[i]` for each of `indices`, in one call for each source."""
        rows: dict[int, list[int]] = {}
        places = [self._place(index) for index in indices]
        for row, (number, _) in enumerate(places):
            rows.setdefault(number, []).append(row)
        read: dict[int, Record] = {}
        for number, own in rows.items():
            records = read_records(self.sources[number], [places[row][1] for row in own])
            read.update(zip(own, records, strict=True))
        return [read[row] for row in range(len(places))]

    def fraction(self, number: int) -> float:
        """The fraction of the samples that is drawn from one source."""
        return float(self.weights[number] / sum(self.weights))

    def records_of(self, number: int) -> range:
        """The indices of the records of one source."""
        return range(self._starts[number], self._starts[number + 1])

    def source_of(self, index: int) -> int:
        """The number of the source that has record `index`."""
        return self._place(index)[0]

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} of {len(self)}.")
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]


class _MixedOrder:
    """Sources in turn by their weights, each shuffled anew in each of its own epochs."""

    def __init__(self, mixture: Mixture, seed: int) -> None:
        scale = lcm(*(weight.denominator for weight in mixture.weights))
        self._shares = tuple(int(weight * scale) for weight in mixture.weights)
        self._starts = tuple(mixture.records_of(i).start for i in range(len(mixture.sources)))
        self._orders = tuple(
            _shuffled(len(source), _seed_of(seed, number))
            for number, source in enumerate(mixture.sources)
        )

    def __getitem__(self, position: int, /) -> int:
        number, own = turn(position, self._shares)
        return self._starts[number] + int(self._orders[number][own])


def turn(position: int, shares: Sequence[int]) -> tuple[int, int]:
    """The source whose turn a position is, and how many turns that source had before.

    Of the first p positions the first source has p * share / sum(shares), rounded up. The others
    divide what is left in the same way, so that each is within len(shares) of its exact share.
    `shares`: whole numbers above 0.
    """
    # `grain.MapDataset.mix` interleaves too, and rounds weights: 0.7 and 0.3 become 233 and 100.
    left = sum(shares)
    for number, share in enumerate(shares):
        before, after = (-(-p * share // left) for p in (position, position + 1))
        if after > before:
            return number, before
        position, left = position - before, left - share
    raise AssertionError("The last source takes every position that is left.")


def training_order(source: Source, seed: int) -> Order:
    """The order of the records of `source`: by weight where it is a `Mixture`.

    Every record comes once in an epoch of its source, in an order that differs in each epoch.
    """
    if isinstance(source, Mixture):
        return _MixedOrder(source, seed)
    return _shuffled(len(source), seed)


def replacements(source: Source, index: int) -> range:
    """The records that may replace one that cannot be decoded: those of the same source."""
    if isinstance(source, Mixture):
        return source.records_of(source.source_of(index))
    return range(len(source))


def source_sizes(source: Source) -> list[int]:
    """The number of records of each source of a mixture; of one source alone, of that."""
    if isinstance(source, Mixture):
        return [len(part) for part in source.sources]
    return [len(source)]


def source_marks(source: Source) -> list[str]:
    """For each source of a mixture, or one alone, a number made of the ids of three records."""
    parts = source.sources if isinstance(source, Mixture) else (source,)
    return [_mark(part) for part in parts]


def _mark(source: Source) -> str:
    places = sorted({0, len(source) // 2, len(source) - 1})
    ids = [record.id for record in read_records(source, places)]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def sample_indices(source: Source, limit: int) -> np.ndarray:
    """About `limit` records as training draws them, evenly spaced; of a mixture, by weight.

    A source of a mixture that is smaller than its part of the sample is counted several times.
    """
    if not isinstance(source, Mixture):
        return _evenly_spaced(len(source), min(len(source), limit))
    limit = min(len(source), limit)
    parts = [
        source.records_of(number).start
        + _evenly_spaced(len(part), max(1, round(limit * source.fraction(number))))
        for number, part in enumerate(source.sources)
    ]
    return np.concatenate(parts)


def _evenly_spaced(total: int, count: int) -> np.ndarray:
    return np.linspace(0, total - 1, count).round().astype(int)


def _shuffled(count: int, seed: int) -> Any:
    import grain  # here, as it imports jax, which commands that only count texts do without

    return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


def _seed_of(seed: int, number: int) -> int:
    """Of the shuffle of one source. The first has the run's, as a source alone has."""
    return zlib.crc32(f"{seed}/{number}".encode()) if number else seed
