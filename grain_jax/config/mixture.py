"""`data.mixture`: prepared data sets and the weights that their images are drawn with."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from grain_jax.paths import expand_home


@dataclass(frozen=True)
class MixedSet:
    """One entry of `data.mixture`."""

    data_dir: str  # as it was given
    weight: Fraction  # exactly the decimal number that was given; more than 0

    @property
    def location(self) -> str:
        """One spelling for every path of the folder; an address, such as gs://..., as it is."""
        return folder_location(self.data_dir)


def folder_location(data_dir: str) -> str:
    """One spelling for every path of a folder of this machine; an address without a last "/"."""
    if "://" in data_dir:
        return data_dir.rstrip("/")
    return os.path.realpath(expand_home(data_dir))


def parse_mixture(entries: Sequence[str]) -> tuple[MixedSet, ...]:
    """The sets of `data.mixture`, each "DIR=WEIGHT", split at the last "=".

    Raises ValueError, with every mistake, for an entry without a folder, a weight that is not a
    finite number above 0, and a folder that is given twice.
    """
    sets, found = _parse(entries)
    if found:
        raise ValueError("\n".join(found))
    return sets


def mixture_problems(entries: Sequence[str]) -> list[str]:
    """Everything that `parse_mixture` would refuse."""
    return _parse(entries)[1]


def fractions(sets: Sequence[MixedSet]) -> list[float]:
    """The fraction of the samples that is drawn from each set; they sum to 1."""
    total = sum((each.weight for each in sets), start=Fraction(0))
    return [float(each.weight / total) for each in sets]


def _parse(entries: Sequence[str]) -> tuple[tuple[MixedSet, ...], list[str]]:
    sets, found = [], []
    for text in entries:
        data_dir, _, number = text.rpartition("=")
        weight = _weight(number)
        if not data_dir or weight is None:
            found.append(
                f"data.mixture: given {text!r}, expected a folder and a weight, a number above 0, "
                "as 'DIR=0.7'."
            )
        else:
            sets.append(MixedSet(data_dir, weight))
    if not found:
        found = [*_repeated(sets)]
    return tuple(sets), found


def _weight(text: str) -> Fraction | None:
    """The decimal number, exactly; None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return Fraction(text.strip()) if math.isfinite(value) and value > 0 else None


def _repeated(sets: Sequence[MixedSet]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for each in sets:
        try:
            location = each.location
        except ValueError as error:  # "~" without a home folder
            yield f"data.mixture: {error}"
            continue
        if location in seen:
            yield (
                f"data.mixture: {seen[location]!r} and {each.data_dir!r} are the same folder; give "
                "it once, with the sum of its weights."
            )
        seen.setdefault(location, each.data_dir)
