"""How often the classes of a set occur in training captions: which are unseen, rare or frequent.

`class_counts.json.gz` holds published counts for 14 sets in CC3M and CC12M (Udandarao et al.,
arXiv 2404.04125; github.com/bethgelab/frequency_determines_performance at 11ef009, MIT license, see
NOTICE): "text" counts captions with the words of the class name, "text_and_image" those whose image
a tagger says shows it, too. Stanford Cars and Oxford Pets are left out: nearly all of their classes
have none, for how their labels are spelled.
"""

import functools
import gzip
import json
import re
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Literal

import numpy as np

from grain_jax.data.classification.class_names import nearest_name
from grain_jax.data.classification.class_texts import classes_of_keys
from grain_jax.data.text_files import read_texts, split_entry
from grain_jax.paths import user_path

Frequency = Literal["unseen", "rare", "frequent"]
FREQUENCIES: tuple[Frequency, ...] = ("unseen", "rare", "frequent")
CLASSES = "classes"  # key of the class names of a set
OTHER_NAMES = {"cub200": "cub", "cub2002011": "cub", "oxfordflowers102": "flowers102"}


@functools.cache
def _published() -> dict[str, dict[str, list[Any]]]:
    packed = resources.files("grain_jax.data.classification") / "class_counts.json.gz"
    return json.loads(gzip.decompress(packed.read_bytes()))


def published_counts() -> tuple[str, ...]:
    """Names of the counts that come with the package, as "cub:cc12m_text"."""
    return tuple(
        f"{dataset}:{counted}"
        for dataset, counts in _published().items()
        for counted in counts
        if counted != CLASSES
    )


def published_kinds() -> tuple[str, ...]:
    """What is counted for every set of the package, as "cc12m_text"."""
    return tuple(dict.fromkeys(name.partition(":")[2] for name in published_counts()))


def published_counts_of(name: str, kind: str) -> str:
    """The name of the published counts of a set, by the name that suites give it, as
    "cub:cc12m_text" of "cub200"; "" where the package has none.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    found = f"{OTHER_NAMES.get(plain, plain)}:{kind}"
    return found if found in published_counts() else ""


def read_counts(source: str) -> dict[str, int]:
    """{class: number of captions} of published counts, or of a .json file.

    Raises ValueError for an unknown name, and for other content than whole numbers from 0.
    """
    dataset, _, counted = source.partition(":")
    if source in published_counts():
        found = _published()[dataset]
        return dict(zip(found[CLASSES], found[counted], strict=True))
    if not user_path(split_entry(source)[0]).exists():
        known = published_counts()
        near = nearest_name(source, known)
        raise ValueError(
            f"There is no file {source!r}, and no counts of that name come with grain_jax; "
            f"expected a .json file {{class: number of captions}}, or one of {len(known)} names "
            f"such as {near or known[0]!r}."
        )
    given = read_texts(source)
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{source!r} must hold an object {{class: number of captions}}.")
    for name, count in given.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(
                f"The count of {name!r} in {source!r} is {count!r}; expected a whole number from 0."
            )
    return given


class OtherClasses(ValueError):
    """Counts of other classes than those of a set."""


def bind_counts(
    given: Mapping[str, int],
    names: dict[str, str],
    source: str,
    title: str,
    note: Callable[[str], None],
    *,
    name_texts: Mapping[str, str],
) -> dict[str, int]:
    """Class name -> count. Keys are bound as those of descriptions (`bind_descriptions`).

    Classes without a count are noted, and belong to no group. Raises ValueError for keys that are
    ambiguous or repeated, `OtherClasses` where all are of other classes.
    """
    found: dict[str, int] = {}
    for key, classes in classes_of_keys(given, names, source, name_texts=name_texts):
        for name in classes:
            if name in found:
                raise ValueError(
                    f"{source!r} counts class {name!r} more than once (again as {key!r})."
                )
            found[name] = given[key]
    if not found:
        raise OtherClasses(
            f"No key of {source!r} is a class of {title!r}: keys are like "
            f"{next(iter(given), '')!r}, classes like {next(iter(names.values()))!r}."
        )
    if missing := [name for name in names.values() if name not in found]:
        near = nearest_name(missing[0], list(given))
        note(
            f"{title}: {len(missing)} of {len(names)} classes have no count in {source} "
            f"({missing[0]!r} first{f'; the nearest is {near!r}' if near else ''}) and are left "
            "out of the accuracies by frequency."
        )
    return found


def frequency_groups(counts: Mapping[str, int]) -> dict[str, Frequency]:
    """The group of each class: unseen (a count of 0), or the rarer or more frequent half of others.

    Halves are by rank, the rarer one larger by one class where the number is odd; of classes of the
    same count none is in another half than the rest, which makes the rarer one larger too.
    """
    seen = sorted(count for count in counts.values() if count > 0)
    last = seen[(len(seen) - 1) // 2] if seen else 0  # the largest count that is rare

    def group(count: int) -> Frequency:
        if count == 0:
            return "unseen"
        return "rare" if count <= last else "frequent"

    return {name: group(count) for name, count in counts.items()}


def group_indices(groups: Mapping[str, Frequency], class_names: tuple[str, ...]) -> np.ndarray:
    """Position in FREQUENCIES of the group of each class, -1 for a class without a count."""
    return np.array(
        [FREQUENCIES.index(groups[name]) if name in groups else -1 for name in class_names], int
    )
