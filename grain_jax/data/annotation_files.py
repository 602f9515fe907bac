"""A folder of annotations, read: the rows of every stage, merged by image.

Of two rows of an image the later one counts, except that one with an error never hides one
without. `annotation_layout.py` says what the files are.
"""

import collections
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.data.annotation_layout import (
    check_marker,
    journal_name,
    numbered,
    part_name,
    read_journal,
    read_manifest,
)
from grain_jax.data.annotation_merge import (
    DECIDING,
    JUDGED,
    Annotation,
    Decision,
    decided,
    decisions_of,
    merged,
)
from grain_jax.data.annotation_rows import (
    STAGES,
    Row,
    import_pyarrow,
    journal_line,
    row_of,
    schema,
)

MAX_PART_BYTES = 2**31  # of a part in memory; what `AnnotationWriter` writes is far smaller
CACHED_PARTS = 4
LIST_ATTEMPTS = 10
_ABOUT = tuple(f"judged_{stage}" for stage in JUDGED)
_KEPT = tuple(f"kept_{stage}" for stage in JUDGED)


@dataclass(frozen=True)
class Attempt:
    """What is known of the last time a stage was given an image."""

    failed: bool
    settings: tuple[str, str, str]  # `Provenance.settings`
    input_hash: str | None
    image_hash: str | None = None


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
        self._numbers = {name: part for part, (name, _) in enumerate(self._parts)}
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

    def place(self, index: int) -> str:
        """The name of the row of that position, which it keeps whatever is added."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._parts[part][0]}:{index - int(self._starts[part])}"

    def position(self, place: str) -> int:
        """The position of the row with that name. Raises ValueError where there is none."""
        name, _, offset = place.rpartition(":")
        part = self._numbers.get(name)
        if part is not None and offset.isdecimal() and int(offset) < self._parts[part][1]:
            return int(self._starts[part]) + int(offset)
        raise ValueError(f"{self.folder} has no row {place}, which a decision of `audit` keeps.")

    def columns(self, names: Sequence[str]) -> Any:
        """A `pyarrow.Table` of some columns of all rows."""
        pa = import_pyarrow()
        empty = schema(self.stage).empty_table().select(names)
        return pa.concat_tables([empty, *(self._table(i, names) for i in range(len(self._parts)))])

    def batches(self, names: Sequence[str]) -> Iterator[Any]:
        """Some columns of all rows in order, part by part, so that few are in memory at once."""
        for part in range(len(self._parts)):
            yield self._table(part, names)

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
        # Position of the row that counts, -1 for none: first without, then with the decisions.
        self._latest = {
            stage: np.fromiter((rows.get(image, -1) for image in self.images), np.int64)
            for stage, rows in kept.items()
        }
        self._rows = {stage: rows.copy() for stage, rows in self._latest.items()}
        self._count_earlier_rows()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Annotation:
        """Without what decisions drop.

        Raises ValueError where the file that holds it is damaged, IndexError behind the last.
        """
        return decided(self.undecided(index), self.decisions(index))

    def undecided(self, index: int) -> Annotation:
        """With all that the stages say of the image."""
        return merged(self.images[index], self.rows(index))

    def rows(self, index: int) -> dict[str, Row]:
        """The row of each stage that has one for the image."""
        found = {stage: int(rows[index]) for stage, rows in self._rows.items()}
        return {stage: self.stages[stage].row(row) for stage, row in found.items() if row >= 0}

    def outputs(self, stage: str, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Positions of images with some outputs of their rows of a stage, as the files have them.

        Quicker than `rows` for all images.
        """
        images = {row: index for index, row in enumerate(self._rows[stage].tolist()) if row >= 0}
        position = 0
        for table in self.stages[stage].batches(names):
            for outputs in table.to_pylist():
                if position in images:
                    yield images[position], outputs
                position += 1

    def row_at(self, stage: str, place: str) -> Row:
        """The row of that name, whether it counts or not. Raises ValueError."""
        return self.stages[stage].row(self.stages[stage].position(place))

    def decisions(self, index: int) -> list[Decision]:
        """The decisions on the image that count."""
        return [
            decision
            for stage in DECIDING
            if (row := self.decided_row(stage, index)) is not None and self.is_current(row, index)
            for decision in decisions_of(row)
        ]

    def decided_row(self, stage: str, index: int) -> Row | None:
        """The row of `audit` or `review` of the image, be it about other rows by now or not."""
        position = int(self._rows[stage][index])
        return None if position < 0 else self.stages[stage].row(position)

    def is_current(self, row: Row, index: int) -> bool:
        """Whether a row of `audit` or `review` is about the rows that count."""
        return self._are_about(row.outputs, self.latest(index))

    def latest(self, index: int) -> dict[str, str | None]:
        """The names of the rows of `describe` and `ground` that count without decisions."""
        found = {stage: int(self._latest[stage][index]) for stage in JUDGED}
        return {
            stage: None if row < 0 else self.stages[stage].place(row)
            for stage, row in found.items()
        }

    def num_outdated(self) -> int:
        """Images with decisions that no longer count, as they are about other rows."""
        return len(
            {
                index
                for stage in DECIDING
                for index, outputs in self.outputs(stage, ("decisions", *_ABOUT))
                if not self._are_about(outputs, self.latest(index))
                and _actions(outputs) - {"kept_earlier", "kept_newer"}
            }
        )

    def to_describe_again(self) -> set[str]:
        """Images that `audit` sent back, and that were not described since."""
        return {
            self.images[index]
            for index, outputs in self.outputs("audit", ("decisions", *_ABOUT))
            if outputs["judged_describe"] == self.latest(index)["describe"]
            and "retry" in _actions(outputs)
        }

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

    def _count_earlier_rows(self) -> None:
        """Where `audit` kept an earlier row of an image, it counts until there is a newer one."""
        for index, outputs in self.outputs("audit", (*_ABOUT, *_KEPT)):
            latest = self.latest(index)
            if outputs["judged_describe"] != latest["describe"]:
                continue
            for stage in JUDGED:
                kept = outputs[f"kept_{stage}"]
                if kept is not None and outputs[f"judged_{stage}"] == latest[stage]:
                    self._rows[stage][index] = self.stages[stage].position(kept)

    @staticmethod
    def _are_about(outputs: Mapping[str, Any], latest: Mapping[str, str | None]) -> bool:
        return all(outputs[f"judged_{stage}"] == latest[stage] for stage in JUDGED)


def _actions(outputs: Mapping[str, Any]) -> set[str]:
    return {each["action"] for each in outputs["decisions"] or ()}


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
