"""Equal texts of a split, counted exactly in bounded memory.

Each text is a 64-bit hash with the number of its record, written to one of `PARTS` files by its
first bits, so that only one part of the texts is in memory when they are sorted. Of 100 million
texts two have the same hash with a probability of 0.03 %.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt32, UInt64

from grain_jax.data.captions import normalize_text

PARTS = 64
NUM_EXAMPLES = 10
_ENTRY = np.dtype([("key", "<u8"), ("record", "<u4")])


@dataclass(frozen=True)
class RepeatedText:
    """A text that several places of a split have."""

    count: int
    num_images: int  # images that have it
    key: int  # `text_key`
    record: int  # the first record that has it


@dataclass(frozen=True)
class RepeatedTexts:
    """How often the texts of a split repeat each other; compared by `normalize_text`."""

    total: int = 0
    distinct: int = 0
    in_several_images: int = 0  # texts, of `total`, that more than one image has
    examples: tuple[RepeatedText, ...] = ()  # those of the most images, most first


def text_key(text: str) -> int:
    """64-bit hash of a text, equal for texts that `normalize_text` makes equal."""
    normal = normalize_text(text).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(normal, digest_size=8).digest(), "little")


def text_keys(texts: Sequence[str]) -> UInt64[np.ndarray, "T"]:
    """`text_key` of each text."""
    return np.fromiter((text_key(text) for text in texts), np.uint64, count=len(texts))


class TextCounter:
    """Counts equal texts, in files of a folder that the caller removes."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where the folder, which must not be there yet, cannot be written to."""
        folder.mkdir()
        self._paths = [folder / f"{part:02d}" for part in range(PARTS)]
        with contextlib.ExitStack() as opened:
            self._files: list[Any] = [opened.enter_context(p.open("wb")) for p in self._paths]
            self._opened = opened.pop_all()

    def add(self, keys: UInt64[np.ndarray, "T"], records: UInt32[np.ndarray, "T"]) -> None:
        """Adds texts by their keys, each with the number of its record."""
        entries = np.empty(len(keys), _ENTRY)
        entries["key"], entries["record"] = keys, records
        parts = keys >> np.uint64(64 - PARTS.bit_length() + 1)
        for part in np.unique(parts).tolist():
            self._files[part].write(entries[parts == part].tobytes())

    def result(self) -> RepeatedTexts:
        """The counts; nothing can be added afterwards. Raises OSError."""
        self._opened.close()
        total = distinct = shared = 0
        examples: list[RepeatedText] = []
        for path in self._paths:
            entries = np.fromfile(path, _ENTRY)
            if not len(entries):
                continue
            counts, images, keys, first = _grouped(entries)
            total, distinct = total + len(entries), distinct + len(keys)
            shared += int(counts[images > 1].sum())
            for place in np.lexsort((first, -counts, -images))[:NUM_EXAMPLES].tolist():
                if counts[place] > 1:
                    numbers = (int(values[place]) for values in (counts, images, keys, first))
                    examples.append(RepeatedText(*numbers))
        examples.sort(key=lambda text: (-text.num_images, -text.count, text.record, text.key))
        return RepeatedTexts(total, distinct, shared, tuple(examples[:NUM_EXAMPLES]))

    def close(self) -> None:
        """Closes the files, also where there is no result."""
        self._opened.close()


def _grouped(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each distinct key: its count, the number of its records, the key, its first record."""
    entries = np.sort(entries, order=("key", "record"))
    keys, records = entries["key"], entries["record"]
    new_key = np.concatenate(([True], keys[1:] != keys[:-1]))
    new_record = new_key | np.concatenate(([True], records[1:] != records[:-1]))
    starts = np.flatnonzero(new_key)
    counts = np.diff(np.append(starts, len(entries)))
    images = np.add.reduceat(new_record.astype(np.int64), starts)
    return counts, images, keys[starts], records[starts]


def matching_texts(texts: Sequence[str], key: int) -> Iterator[str]:
    """Those of the texts that have the key."""
    return (text for text in texts if text_key(text) == key)
