"""A folder of annotations, read: the rows of every stage, merged by image.

    ANN/annotations.json                     what the folder is
    ANN/describe/manifest-0-of-1.json        the committed parts: rows, bytes, checksum
    ANN/describe/part-00000001-0-of-1.parquet
    ANN/describe/journal-00000002-0-of-1.jsonl   rows on their way to the next part

Nothing is changed in place. A row is in a journal as soon as it is made, and a journal becomes the
part of the same number. A part counts from when the manifest lists it; until then its journal does.
Of two rows of an image the later one counts, except that one with an error never hides one
without. `grain_jax.annotation.writer` writes all of it.
"""

import collections
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.boxes import Box
from grain_jax.data.annotation_rows import (
    STAGES,
    Row,
    import_pyarrow,
    journal_line,
    row_of,
    schema,
    values_of_line,
)
from grain_jax.data.records import Caption

MARKER = "annotations.json"
FORMAT, VERSION = "grain_jax annotations", 1
MAX_PART_BYTES = 2**31  # of a part in memory; what `AnnotationWriter` writes is far smaller
MAX_MANIFEST_BYTES = 2**28
CACHED_PARTS = 4
LIST_ATTEMPTS = 10
_PART = re.compile(r"part-(\d{8})-(\d+-of-\d+)\.parquet")
_JOURNAL = re.compile(r"journal-(\d{8})-(\d+-of-\d+)\.jsonl")


@dataclass(frozen=True)
class AnnotatedRegion:
    """A box with the description that was found in it."""

    box_xyxy: Box  # in [0, 1] of the image
    description: str
    score: float


@dataclass(frozen=True)
class Annotation:
    """What all stages found out about one image."""

    image: str  # path inside the images folder
    image_hash: str | None = None  # SHA-256 of the file; None where no stage could read it
    captions: tuple[str, ...] = ()
    primary_subject: str | None = None
    descriptions: tuple[str, ...] = ()
    regions: tuple[AnnotatedRegion, ...] = ()
    given_captions: tuple[Caption, ...] = ()  # of a file that `ground` was given
    label: str | None = None  # class that `ground` was given descriptions of
    errors: Mapping[str, str] = field(default_factory=dict)  # by stage


@dataclass(frozen=True)
class Attempt:
    """What is known of the last time a stage was given an image."""

    failed: bool
    settings: tuple[str, str, str]  # `Provenance.settings`
    input_hash: str | None
    image_hash: str | None = None


def part_name(number: int, shard: str) -> str:
    """The file of the rows of a journal, `journal_name`, when it is full."""
    return f"part-{number:08d}-{shard}.parquet"


def journal_name(number: int, shard: str) -> str:
    """The file that rows are appended to."""
    return f"journal-{number:08d}-{shard}.jsonl"


def numbered(name: str) -> tuple[int, str, bool] | None:
    """(number, shard, whether it is a journal) of a file of a stage; None for any other file."""
    if match := _PART.fullmatch(name):
        return int(match[1]), match[2], False
    if match := _JOURNAL.fullmatch(name):
        return int(match[1]), match[2], True
    return None


def check_marker(folder: Path) -> None:
    """Raises ValueError where `folder` does not hold annotations of this version."""
    try:
        stored = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {MARKER}; expected a folder that `python -m grain_jax.annotate` "
            "wrote."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / MARKER} is damaged: {error}") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f"{folder / MARKER} does not name the format {FORMAT!r}.")
    if stored.get("version") != VERSION:
        raise ValueError(
            f"{folder} has version {stored.get('version')!r} of the format, and this grain_jax "
            f"reads version {VERSION}; use the grain_jax that wrote it, or a newer one."
        )


def read_manifest(path: Path) -> dict[str, dict[str, int]]:
    """Rows, bytes and crc32 of each part that a manifest lists.

    Raises ValueError where it is damaged.
    """
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"it is larger than {MAX_MANIFEST_BYTES} bytes")
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        for name, numbers in parts.items():
            if not _PART.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a part")
            if not all(isinstance(numbers[key], int) for key in ("rows", "bytes", "crc32")):
                raise ValueError(f"{name} has no whole number of rows, bytes and crc32")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a manifest of annotations: {error}") from None
    return parts


def read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The values of the whole rows of a journal, and how many bytes they take.

    What follows the first line that is not whole was cut off by the end of the process, or by a
    full disk, and is not counted.
    """
    rows, size = [], 0
    with path.open("rb") as file:
        for line in file:
            values = values_of_line(line)
            if values is None:
                break
            rows.append(values)
            size += len(line)
    return rows, size


class StageFiles:
    """The committed rows of one stage as of now, in the order in which they were made."""

    def __init__(self, folder: Path, stage: str) -> None:
        """Raises ValueError for a damaged or incomplete folder; a missing stage has no rows."""
        self.folder, self.stage = folder / stage, stage
        self._parts: list[tuple[str, int]] = []  # (file, rows)
        self._journals: dict[str, list[dict[str, Any]]] = {}
        self._checksums: dict[str, int] = {}
        for _ in range(LIST_ATTEMPTS):  # a writer may turn a journal into a part in between
            if (unlisted := self._list()) is None:
                break
        if unlisted is not None:
            raise ValueError(
                f"{self.folder / unlisted} is in no manifest, so the copy of this folder is not "
                "complete; copy it again, or remove the file."
            )
        self._starts = np.cumsum([0, *(rows for _, rows in self._parts)])
        self._tables: collections.OrderedDict[int, Any] = collections.OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": collections.OrderedDict()}

    def row(self, index: int) -> Row:
        """The row of that position. Raises ValueError where its file is damaged."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        if part not in self._tables:
            self._tables[part] = self._table(part, None)
            if len(self._tables) > CACHED_PARTS:
                self._tables.popitem(last=False)
        self._tables.move_to_end(part)
        offset = index - int(self._starts[part])
        return row_of(self._tables[part].slice(offset, 1).to_pylist()[0])

    def identity(self, index: int) -> list[str | int]:
        """What changes with the content of the row of that position, without reading a part."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        name, offset = self._parts[part][0], index - int(self._starts[part])
        if name in self._journals:
            return [name, offset, zlib.crc32(journal_line(self._journals[name][offset]))]
        return [name, offset, self._checksums[name]]

    def columns(self, names: Sequence[str]) -> Any:
        """A `pyarrow.Table` of some columns of all rows."""
        pa = import_pyarrow()
        empty = schema(self.stage).empty_table().select(names)
        return pa.concat_tables([empty, *(self._table(i, names) for i in range(len(self._parts)))])

    def _list(self) -> str | None:
        """Lists parts and journals; a file that does not fit with the others, None where all do."""
        self._parts, self._journals = [], {}
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return None
        listed: dict[str, dict[str, int]] = {}
        for name in names:
            if name.startswith("manifest-") and name.endswith(".json"):
                listed |= read_manifest(self.folder / name)
        found = dict.fromkeys(listed)
        for name in names:
            number = numbered(name)
            if number is None or name in listed:
                continue
            part = part_name(*number[:2])
            if not number[2]:
                if journal_name(*number[:2]) not in names:
                    return name
            elif part not in listed:
                try:
                    self._journals[part] = read_journal(self.folder / name)[0]
                except FileNotFoundError:
                    return name
                found[part] = None
        for part in sorted(found):
            rows = len(self._journals[part]) if part in self._journals else listed[part]["rows"]
            self._parts.append((part, rows))
            if part in listed:
                self._checksums[part] = listed[part]["crc32"]
                self._check_size(self.folder / part, listed[part]["bytes"])
        return None

    def _check_size(self, path: Path, expected: int) -> None:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise ValueError(_not_whole(path, "it is missing")) from None
        if size != expected:
            raise ValueError(_not_whole(path, f"it has {size} bytes of {expected}"))

    def _table(self, part: int, names: Sequence[str] | None) -> Any:
        """Rows of a part, all columns of this version; those that an older file lacks are None."""
        pa = import_pyarrow()
        name, rows = self._parts[part]
        wanted = schema(self.stage)
        if names is not None:
            wanted = pa.schema([wanted.field(each) for each in names])
        if name in self._journals:
            return pa.Table.from_pylist(self._journals[name], schema=wanted)
        path = self.folder / name
        try:
            return _read_part(path, self._checksums[name], rows, wanted)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise ValueError(_not_whole(path, str(error))) from None


def _read_part(path: Path, checksum: int, rows: int, wanted: Any) -> Any:
    pa = import_pyarrow()
    import pyarrow.parquet

    data = path.read_bytes()
    if zlib.crc32(data) != checksum:
        raise ValueError("its checksum is not the one in the manifest")
    with pyarrow.parquet.ParquetFile(pa.BufferReader(data)) as file:
        metadata = file.metadata
        if metadata.num_rows != rows:
            raise ValueError(f"it has {metadata.num_rows} rows, and the manifest says {rows}")
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > MAX_PART_BYTES:
            raise ValueError(f"it takes more than {MAX_PART_BYTES} bytes in memory")
        present = [name for name in wanted.names if name in file.schema_arrow.names]
        table = file.read(columns=present)
    arrays = [
        table[name].cast(wanted.field(name).type)
        if name in present
        else pa.nulls(rows, wanted.field(name).type)
        for name in wanted.names
    ]
    return pa.Table.from_arrays(arrays, schema=wanted)


def _not_whole(path: Path, why: str) -> str:
    return (
        f"{path} is damaged or not whole: {why}. Restore it from a copy; or remove it and its "
        "entry in the manifest beside it, after which its images count as not annotated."
    )


class Annotations:
    """Every image that any stage has a row for, in the order of their paths; random access."""

    def __init__(self, folder: Path) -> None:
        check_marker(folder)
        self.folder = folder
        self.stages = {stage: StageFiles(folder, stage) for stage in STAGES}
        kept = {stage: _kept_rows(files) for stage, files in self.stages.items()}
        self.images: list[str] = sorted(set().union(*kept.values()))
        # Position of the row that counts, -1 for none.
        self._rows = {
            stage: np.fromiter((rows.get(image, -1) for image in self.images), np.int64)
            for stage, rows in kept.items()
        }

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Annotation:
        """Raises ValueError where the file that holds it is damaged, IndexError behind the last."""
        return merged(self.images[index], self.rows(index))

    def rows(self, index: int) -> dict[str, Row]:
        """The row of each stage that has one for the image."""
        found = {stage: int(rows[index]) for stage, rows in self._rows.items()}
        return {stage: self.stages[stage].row(row) for stage, row in found.items() if row >= 0}

    def identity(self, index: int) -> list[list[str | int] | str]:
        """JSON that changes with what the stages say of the image."""
        found: list[list[str | int] | str] = [self.images[index]]
        for stage, rows in self._rows.items():
            if (row := int(rows[index])) >= 0:
                found.append([stage, *self.stages[stage].identity(row)])
        return found

    def attempts(self, stage: str) -> dict[str, Attempt]:
        """Of each image that the stage has a row for, the last one, be it an error or not."""
        return attempts(self.stages[stage])


def read_annotations(folder: Path) -> Annotations:
    """The annotations in a folder as of now, while it is written to as well.

    Raises ValueError for a folder without annotations, of a later version, or damaged, and
    ImportError without pyarrow.
    """
    return Annotations(folder)


def attempts(files: StageFiles) -> dict[str, Attempt]:
    """The last row of each image of a stage, without its outputs."""
    names = ("image", "error", "model", "prompt_hash", "sampling", "input_hash", "image_hash")
    found = {}
    seen: dict[tuple[str, str, str], tuple[str, str, str]] = {}  # one object for all rows
    for batch in files.columns(names).to_batches():
        for image, error, *settings, input_hash, image_hash in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            key = (settings[0], settings[1], settings[2])
            settings_of = seen.setdefault(key, key)
            found[image] = Attempt(error is not None, settings_of, input_hash, image_hash)
    return found


def merged(image: str, rows: Mapping[str, Row]) -> Annotation:
    """What the rows of the stages say of an image."""
    outputs = {name: value for row in rows.values() for name, value in row.outputs.items()}
    described = rows["describe"].outputs if "describe" in rows else {}
    grounded = rows["ground"].outputs if "ground" in rows else {}
    given = zip(grounded.get("captions") or (), grounded.get("caption_sources") or (), strict=False)
    hashes = [row.image_hash for row in rows.values() if row.image_hash is not None]
    regions = tuple(
        AnnotatedRegion(tuple(each["box_xyxy"]), each["description"], each["score"])
        for each in outputs.get("regions") or ()
    )
    return Annotation(
        image=image,
        image_hash=hashes[-1] if hashes else None,
        captions=tuple(described.get("captions") or ()),
        primary_subject=outputs.get("primary_subject"),
        descriptions=tuple(outputs.get("descriptions") or ()),
        regions=regions,
        given_captions=tuple(Caption(text, source) for text, source in given),
        label=grounded.get("label"),
        errors={stage: row.error for stage, row in rows.items() if row.error is not None},
    )


def _kept_rows(files: StageFiles) -> dict[str, int]:
    """Position of the row that counts of each image: the last without an error, else the last."""
    kept: dict[str, int] = {}
    good: set[str] = set()
    for position, (image, failed) in enumerate(_images(files)):
        if not failed:
            good.add(image)
        elif image in good:
            continue
        kept[image] = position
    return kept


def _images(files: StageFiles) -> Iterator[tuple[str, bool]]:
    for batch in files.columns(("image", "error")).to_batches():
        yield from zip(
            batch.column("image").to_pylist(),
            batch.column("error").is_valid().to_pylist(),
            strict=True,
        )
