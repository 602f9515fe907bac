"""Labelled images in Parquet tables, as Hugging Face stores data sets of images, mteb's too.

The image column holds encoded bytes, or {bytes, path} of which the bytes are read; the label column
a name, or a number whose name is in the metadata of the table (`ClassLabel`).
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.data.classification.stored_classes import SplitChoice, StoredImages
from grain_jax.data.image_files import MAX_IMAGE_BYTES
from grain_jax.data.importers.columns import LABEL_NAMES
from grain_jax.data.importers.input_files import part_of
from grain_jax.data.records import Record
from grain_jax.extras import how_to_install

SUFFIX = ".parquet"
MAX_GROUP_BYTES = 2**31
GROUPS_KEPT = 2  # row groups in memory: threads that read in order are in two at most


@dataclass(frozen=True)
class _Group:
    """A row group of a file."""

    path: Path
    name: str  # of the file, in messages and names of images
    number: int
    first_row: int


class ParquetImages:
    """A source of labelled images in tables; the row groups read last are kept.

    `__getitem__` raises ValueError for a row without the bytes of an image, a damaged file, and an
    image that is larger than `MAX_IMAGE_BYTES`.
    """

    read_in_order = True  # threads far apart would read each row group again and again

    def __init__(self, groups: Sequence[_Group], rows: Sequence[int], column: str) -> None:
        self._groups, self._column = tuple(groups), column
        self._bounds = np.cumsum([0, *rows])
        self.labels: tuple[str, ...] = ()
        self._kept: dict[int, Any] = {}
        self._lock = threading.Lock()

    def with_labels(self, labels: tuple[str, ...]) -> "ParquetImages":
        """The same images with the class name of each."""
        other = ParquetImages(self._groups, np.diff(self._bounds).tolist(), self._column)
        other.labels = labels
        return other

    @property
    def files(self) -> tuple[str, ...]:
        """A name for each image: "test-00000-of-00001.parquet:17", which row 17 of it is."""
        return tuple(
            f"{group.name}:{group.first_row + row}"
            for group, count in zip(self._groups, np.diff(self._bounds).tolist(), strict=True)
            for row in range(count)
        )

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, index: int, /) -> Record:
        number = int(np.searchsorted(self._bounds, index, side="right")) - 1
        row = index - int(self._bounds[number])
        group = self._groups[number]
        name = f"{group.name}:{group.first_row + row}"
        try:
            cell = self._column_of(number)[row].as_py()
        except (ValueError, OSError) as error:  # pyarrow's errors are these
            raise ValueError(f"Image {name!r} cannot be read: {error}.") from None
        image = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(image, bytes):
            raise ValueError(
                f"Image {name!r} has no bytes in {self._column!r}, as where a table holds paths "
                "only. Give a table with the images inside."
            )
        if len(image) > MAX_IMAGE_BYTES:
            raise ValueError(f"Image {name!r} is larger than {MAX_IMAGE_BYTES} bytes.")
        return Record(id=name, image=image, label=self.labels[index])

    def __getstate__(self) -> dict[str, Any]:
        state = {**vars(self), "_kept": {}}  # each process reads what it needs
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _column_of(self, number: int) -> Any:
        with self._lock:
            if number not in self._kept:
                while len(self._kept) >= GROUPS_KEPT:
                    del self._kept[next(iter(self._kept))]
                group = self._groups[number]
                with pyarrow_parquet().ParquetFile(group.path) as file:
                    table = file.read_row_group(group.number, columns=[self._column])
                self._kept[number] = table.column(self._column)
            return self._kept[number]


def is_parquet(path: Path) -> bool:
    """Whether a path is a Parquet file, or a folder with some, directly or in `data`."""
    if path.is_file():
        return path.suffix == SUFFIX
    return any(path.glob(f"*{SUFFIX}")) or any(path.glob(f"data/*{SUFFIX}"))


def open_parquet(
    path: Path, split: SplitChoice, *, image_column: str | None, label_column: str | None
) -> StoredImages:
    """The labelled images of a table: a file, or those files of a folder that are of the split.

    Raises ValueError without pyarrow, for a damaged file, files of unlike columns or class names,
    columns that are not given and cannot be found, and labels that are missing.
    """
    parquet = pyarrow_parquet()
    files, chosen = _files(path, split)
    root = path if path.is_dir() else path.parent
    where = repr(str(path))
    groups: list[_Group] = []
    rows: list[int] = []
    classes: list[Any] = []
    first: tuple[str, str, tuple[str, ...] | None] | None = None
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            with parquet.ParquetFile(file) as opened:
                schema = opened.schema_arrow
                image = _image_column(schema, image_column, str(file))
                label, names = _label_column(schema, label_column, str(file))
                first = first or (image, label, names)
                if (image, label, names) != first:
                    raise ValueError(f"its columns or class names differ from {files[0].name!r}'s")
                _add_groups(opened, file, name, groups, rows)
                classes += opened.read(columns=[label]).column(label).to_pylist()
        except (ValueError, OSError) as error:
            raise ValueError(f"{str(file)!r}: {error}.") from None
    assert first is not None  # there is a file
    if not classes:
        raise ValueError(f"{where} has no rows.")
    if None in classes or "" in classes:
        row = next(i for i, value in enumerate(classes) if value in (None, ""))
        raise ValueError(
            f"{where}: row {row} of {first[1]!r} has no label. Choose a split with labels."
        )
    source = ParquetImages(groups, rows, first[0])
    return StoredImages(
        classes=classes,
        names=first[2],
        names_file="",
        where=where,
        open_images=source.with_labels,
        beside=path if path.is_dir() else None,
        split=chosen,
    )


def open_table_images(path: Path, split: SplitChoice) -> ParquetImages:
    """The images of tables whose other columns are not looked at, such as captions.

    Raises ValueError as `open_parquet`, but for labels.
    """
    parquet = pyarrow_parquet()
    root = path if path.is_dir() else path.parent
    groups: list[_Group] = []
    rows: list[int] = []
    columns: set[str] = set()
    for file in _files(path, split)[0]:
        try:
            with parquet.ParquetFile(file) as opened:
                columns.add(_image_column(opened.schema_arrow, None, str(file)))
                _add_groups(opened, file, file.relative_to(root).as_posix(), groups, rows)
        except (ValueError, OSError) as error:
            raise ValueError(f"{str(file)!r}: {error}.") from None
    if len(columns) > 1:
        raise ValueError(
            f"The tables of {str(path)!r} have their images in {', '.join(sorted(columns))}; give "
            "those of one column at a time."
        )
    if not sum(rows):
        raise ValueError(f"{str(path)!r} has no rows.")
    return ParquetImages(groups, rows, columns.pop()).with_labels(("",) * sum(rows))


def pyarrow_parquet() -> Any:
    """The module `pyarrow.parquet`. Raises ValueError that says how to install it."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"Parquet tables need pyarrow, which is not installed: {how_to_install('parquet')}"
        ) from None
    return pyarrow.parquet


def _add_groups(opened: Any, file: Path, name: str, groups: list[_Group], rows: list[int]) -> None:
    """Adds the row groups of a file, and the number of rows of each."""
    start = 0
    for number in range(opened.num_row_groups):
        meta = opened.metadata.row_group(number)
        if meta.total_byte_size > MAX_GROUP_BYTES:
            raise ValueError(
                f"a row group has {meta.total_byte_size} bytes, of {MAX_GROUP_BYTES} that are read "
                "at once; write it with a smaller row_group_size"
            )
        groups.append(_Group(file, name, number, start))
        rows.append(meta.num_rows)
        start += meta.num_rows


def _files(path: Path, split: SplitChoice) -> tuple[list[Path], str]:
    """The files of a split, and its name; "" for a single file, which has none."""
    if path.is_file():
        split.refuse(f"{str(path)!r} is one file")
        return [path], ""
    found = sorted(path.glob(f"*{SUFFIX}")) or sorted(path.glob(f"data/*{SUFFIX}"))
    parts: dict[str, list[Path]] = {}
    for file in found:
        parts.setdefault(part_of(file, file.parent), []).append(file)
    chosen = split.among(list(parts), repr(str(path)))
    return parts[chosen], chosen


def _image_column(schema: Any, wanted: str | None, where: str) -> str:
    kinds = {field.name: str(field.type) for field in schema}
    images = [name for name, kind in kinds.items() if _holds_bytes(kind)]
    if wanted is not None and wanted not in kinds:
        raise ValueError(f"there is no column {wanted!r}, but {', '.join(kinds)}")
    if wanted is not None:
        if wanted not in images:
            raise ValueError(f"{wanted!r} holds {kinds[wanted]}, not the bytes of images")
        return wanted
    if len(images) != 1:
        raise ValueError(
            f"there are {len(images)} columns with the bytes of images, of {', '.join(kinds)}; "
            "choose with --image_column"
        )
    return images[0]


def _holds_bytes(kind: str) -> bool:
    return kind in ("binary", "large_binary") or (
        kind.startswith("struct<") and "bytes: binary" in kind
    )


def _label_column(
    schema: Any, wanted: str | None, where: str
) -> tuple[str, tuple[str, ...] | None]:
    """The column of labels, and the names of its numbers: () without names, None for texts."""
    kinds = {field.name: str(field.type) for field in schema}
    named = _class_labels(schema)
    usual = [name for name in kinds if name.casefold() in LABEL_NAMES]
    if wanted is not None and wanted not in kinds:
        raise ValueError(f"there is no column {wanted!r}, but {', '.join(kinds)}")
    found = [wanted] if wanted is not None else [n for n in kinds if n in named] or usual
    if len(found) != 1:
        raise ValueError(
            f"there are {len(found)} columns of classes ({', '.join(found) or 'none'}), of "
            f"{', '.join(kinds)}; choose with --label_column"
        )
    kind = kinds[found[0]]
    if kind.startswith(("int", "uint")):
        return found[0], named.get(found[0], ())
    if kind in ("string", "large_string"):
        return found[0], None
    raise ValueError(f"{found[0]!r} holds {kind}, not one class an image")


def _class_labels(schema: Any) -> dict[str, tuple[str, ...]]:
    """Columns of numbered classes, each with the names that Hugging Face stores with the table."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return {}
    try:
        features = json.loads(stored)["info"]["features"]
        found = {
            str(column): tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("its metadata 'huggingface' is damaged") from None
    if odd := [n for names in found.values() for n in names if not isinstance(n, str) or not n]:
        raise ValueError(f"its metadata names a class {odd[0]!r}")
    return {column: names for column, names in found.items() if column in schema.names}
