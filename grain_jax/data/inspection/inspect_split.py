"""Inspect one split of a prepared data set: read every record once, in bounded memory.

The records are cut into chunks, which processes measure in any order; what they find is added up.
Texts are counted in temporary files, and of each image 8 bytes stay in memory.
"""

import itertools
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt32, UInt64

from grain_jax.config import DataConfig
from grain_jax.data.inspection.measurements import Measurements
from grain_jax.data.inspection.near_duplicates import (
    NearDuplicates,
    can_hash,
    near_duplicates,
    perceptual_hash,
)
from grain_jax.data.inspection.repeated_texts import (
    RepeatedText,
    RepeatedTexts,
    TextCounter,
    matching_texts,
    text_keys,
)
from grain_jax.data.processes import end_with_parent
from grain_jax.data.records import Record, read_records
from grain_jax.data.tfds_records import RecordSource
from grain_jax.data.tokenizer import Tokenizer, build_tokenizer
from grain_jax.data.transforms import ImageError

CHUNK = 256  # records that are in memory at once, in each process
WAITING = 4  # chunks a process that are given out ahead


@dataclass(frozen=True)
class InspectionSpec:
    """What to inspect, and how."""

    directory: Path  # that `prepare` wrote
    split: str
    tokenizer: str = "clip"  # as data.tokenizer
    max_images: int | None = None  # as many, evenly spaced; None: all
    near_distance: int = 3  # bits in which hashes of images that look alike may differ


@dataclass
class Inspection:
    """What a split holds. Positions are those of records in the split."""

    spec: InspectionSpec
    total: int  # records of the split
    measured: Measurements
    captions: RepeatedTexts
    descriptions: RepeatedTexts
    near: NearDuplicates | None  # None without ImageHash

    @property
    def is_whole(self) -> bool:
        """Whether every record was read."""
        return self.measured.images == self.total


@dataclass
class _Part:
    """What was found in one chunk."""

    rows: slice  # of the records that are read
    measured: Measurements
    captions: tuple[UInt64[np.ndarray, "C"], UInt32[np.ndarray, "C"]]  # keys, records
    descriptions: tuple[UInt64[np.ndarray, "D"], UInt32[np.ndarray, "D"]]
    hashes: UInt64[np.ndarray, "N"]
    hashed: Bool[np.ndarray, "N"]


def inspect_split(
    spec: InspectionSpec, *, workers: int, progress: Callable[[int, int], None]
) -> Inspection:
    """Reads the records and measures them. Same result for any number of `workers`.

    `progress` gets the records read so far and those there are to read. Raises ValueError where the
    folder, the split or the tokenizer cannot be read or the split is empty, and OSError.
    """
    source = RecordSource(spec.directory, spec.split)
    if not len(source):
        raise ValueError(f"Split {spec.split!r} of {spec.directory} has no records.")
    wanted = min(len(source), spec.max_images or len(source))
    indices = np.linspace(0, len(source) - 1, wanted).round().astype(np.uint32)
    measured = Measurements()
    hashes, hashed = np.zeros(wanted, np.uint64), np.zeros(wanted, bool)
    with tempfile.TemporaryDirectory(prefix="grain_jax-inspect-") as folder:
        captions = TextCounter(Path(folder, "captions"))
        descriptions = TextCounter(Path(folder, "descriptions"))
        try:
            for part in _parts(spec, source, indices, workers):
                measured.merge(part.measured)
                captions.add(*part.captions)
                descriptions.add(*part.descriptions)
                hashes[part.rows], hashed[part.rows] = part.hashes, part.hashed
                progress(measured.images, wanted)
            repeated = captions.result(), descriptions.result()
        finally:
            captions.close()
            descriptions.close()
    near = _near(hashes, hashed, indices, spec) if can_hash() else None
    return Inspection(spec, len(source), measured, *repeated, near)


def _near(
    hashes: UInt64[np.ndarray, "N"],
    hashed: Bool[np.ndarray, "N"],
    indices: UInt32[np.ndarray, "N"],
    spec: InspectionSpec,
) -> NearDuplicates:
    places = indices[hashed]
    found = near_duplicates(hashes[hashed], spec.near_distance)
    return NearDuplicates(tuple(tuple(places[list(group)].tolist()) for group in found.groups))


def example_text(source: RecordSource, example: RepeatedText, kind: str) -> str:
    """The text of an example of repeated "captions" or "descriptions", read again."""
    texts = _texts(source[example.record], kind)
    return next(matching_texts(texts, example.key))


def _texts(record: Record, kind: str) -> list[str]:
    if kind == "captions":
        return [caption.text for caption in record.captions]
    return [region.description for region in record.regions]


def _parts(
    spec: InspectionSpec, source: RecordSource, indices: UInt32[np.ndarray, "N"], workers: int
) -> Iterator[_Part]:
    chunks = [slice(start, start + CHUNK) for start in range(0, len(indices), CHUNK)]
    workers = min(workers, len(chunks) // 4)  # a process takes seconds to start
    if workers <= 1:
        reader = _Reader(source, build_tokenizer(DataConfig(tokenizer=spec.tokenizer)))
        for rows in chunks:
            yield reader.part(rows, indices[rows].tolist())
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe in a process with threads
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(spec,)) as pool:
        left, pending = iter(chunks), set[Future[_Part]]()
        try:
            while True:
                for rows in itertools.islice(left, WAITING * workers - len(pending)):
                    pending.add(pool.submit(_part_in_worker, rows, indices[rows].tolist()))
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass
class _Reader:
    """Measures chunks of a split."""

    source: RecordSource
    tokenizer: Tokenizer

    def part(self, rows: slice, indices: list[int]) -> _Part:
        records = read_records(self.source, indices)
        measured = Measurements()
        measured.add(indices, records, self.tokenizer)
        hashes, hashed = _hashes(records)
        return _Part(
            rows,
            measured,
            _keys(indices, records, "captions"),
            _keys(indices, records, "descriptions"),
            hashes,
            hashed,
        )


def _keys(
    indices: list[int], records: list[Record], kind: str
) -> tuple[UInt64[np.ndarray, "T"], UInt32[np.ndarray, "T"]]:
    texts = [_texts(record, kind) for record in records]
    numbers = np.repeat(np.asarray(indices, np.uint32), [len(each) for each in texts])
    return text_keys([text for each in texts for text in each]), numbers


def _hashes(records: list[Record]) -> tuple[UInt64[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """The hash of each image, and whether it has one."""
    hashes, hashed = np.zeros(len(records), np.uint64), np.zeros(len(records), bool)
    if can_hash():
        for row, record in enumerate(records):
            assert isinstance(record.image, bytes)
            try:
                hashes[row], hashed[row] = perceptual_hash(record.image), True
            except ImageError:
                continue
    return hashes, hashed


_reader: _Reader | None = None  # of a worker process


def _start_worker(spec: InspectionSpec) -> None:
    global _reader
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C, no traceback from each process
    end_with_parent()
    tokenizer = build_tokenizer(DataConfig(tokenizer=spec.tokenizer))
    _reader = _Reader(RecordSource(spec.directory, spec.split), tokenizer)


def _part_in_worker(rows: slice, indices: list[int]) -> _Part:
    assert _reader is not None
    return _reader.part(rows, indices)
