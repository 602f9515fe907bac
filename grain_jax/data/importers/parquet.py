"""Tables of Parquet and Arrow: shards of a Hugging Face data set, or what `save_to_disk` wrote.

`--input` is a `.parquet` or `.arrow` file, a pattern of names, a folder of `.parquet` files, of
which the part that `--subset` or the name of the split tells is read, or a folder of
`save_to_disk`. The image column holds bytes, paths, or both as Hugging Face's {bytes, path};
captions are texts or lists of texts. A class name becomes a caption through `--template` where
there are no captions. One row group of a Parquet file is in memory at a time; Arrow files are
mapped.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from grain_jax.data.importers.columns import ColumnOptions, TableImporter, texts_of
from grain_jax.data.importers.input_files import choose_subset, file_states, find_files
from grain_jax.data.importers.item import ImagesFolder, ImportedImage, InvalidRecordError
from grain_jax.data.records import Caption
from grain_jax.extras import how_to_install

DICT_FILE, STATE_FILE = "dataset_dict.json", "state.json"  # of save_to_disk
MAX_GROUP_BYTES = 2**32


@dataclass(frozen=True)
class _Chunk:
    """Rows that are read together: a row group, or a whole Arrow file."""

    file: int
    group: int  # -1: the whole file
    first_row: int  # in the file


class ParquetTable(TableImporter):
    """One record for each row, files in the order of their names. An `Importer`."""

    images_folder: ClassVar[ImagesFolder] = "optional"

    def _locate(self, path: Path, split: str, subset: str | None, options: ColumnOptions) -> None:
        _pyarrow()
        self._files = find_tables(path, split, subset)
        self._chunks: list[_Chunk] = []
        lengths: list[int] = []
        schema = None
        for number, file in enumerate(self._files):
            try:
                opened, sizes = _open(file)
            except (ValueError, OSError) as error:  # pyarrow's errors are these
                raise ValueError(f"{file} is not a table that can be read: {error}") from None
            schema = opened if schema is None else schema
            if opened.names != schema.names:
                raise ValueError(
                    f"{file} has the columns {', '.join(opened.names)}, and {self._files[0]} has "
                    f"{', '.join(schema.names)}; prepare them one by one."
                )
            groups = [-1] if file.suffix == ".arrow" else range(len(sizes))
            firsts = np.cumsum([0, *sizes])[:-1].tolist()
            self._chunks += [_Chunk(number, g, f) for g, f in zip(groups, firsts, strict=True)]
            lengths += sizes
        assert schema is not None  # there is a file
        self._bounds = np.cumsum([0, *lengths])
        where = str(self._files[0])
        self._columns = options.find(schema.names, where)
        self._classes = _class_names(schema, self._columns.label)
        kind = str(schema.field(self._columns.label).type) if self._columns.label else None
        self._template = options.caption_template(
            self._columns, where, label_kind=kind, has_names=bool(self._classes)
        )
        self._image_kind = str(schema.field(self._columns.image).type)
        self._kept: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, index: int) -> ImportedImage:
        number = int(np.searchsorted(self._bounds, index, side="right")) - 1
        at = index - int(self._bounds[number])
        chunk = self._chunks[number]
        name = f"{self._files[chunk.file].name}, row {chunk.first_row + at}"
        try:
            table = self._table(number)
            row = {column: table.column(column)[at].as_py() for column in self._columns.all}
        except (ValueError, OSError) as error:  # a damaged page, or a text that is not UTF-8
            raise InvalidRecordError(f"{name}: cannot be read: {error}") from None
        content, path = self._image(row, name)
        captions = [
            text
            for column in self._columns.captions
            for text in texts_of(row[column], f"{name}: {column!r}")
        ]
        label = self._label(row, name)
        if label is not None and not self._columns.captions:
            captions = [self._template.format(label)]
        return ImportedImage(
            id=path or f"{self._files[chunk.file].name}:{chunk.first_row + at}",
            image=path or name,
            captions=tuple(map(Caption, captions)),
            label=label,
            content=content,
        )

    def holds_images(self) -> bool:
        """Whether the table has the bytes of images, so that no folder of them is read."""
        if "struct" not in self._image_kind:
            return "binary" in self._image_kind
        try:
            return self[0].content is not None
        except InvalidRecordError:
            return False

    def fingerprint(self) -> dict[str, object]:
        folder = self._files[0].parent.resolve()
        return {"path": str(folder), "files": file_states(self._files)}

    def checksum(self, start: int, stop: int) -> str:
        first, last = np.searchsorted(self._bounds, [start, stop - 1], side="right") - 1
        files = sorted({chunk.file for chunk in self._chunks[first : last + 1]})
        states = file_states([self._files[number] for number in files])
        made_of = [states, self._bounds[first : last + 2].tolist(), start, stop]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": None}  # each process reads what it needs

    def _table(self, number: int) -> Any:
        if self._kept is None or self._kept[0] != number:
            self._kept = None  # before the next is read
            chunk = self._chunks[number]
            self._kept = (number, _read(self._files[chunk.file], chunk.group, self._columns.all))
        return self._kept[1]

    def _image(self, row: dict[str, Any], name: str) -> tuple[bytes | None, str]:
        """The bytes of the image, or None and its path."""
        value = row[self._columns.image]
        given = value if isinstance(value, dict) else {"bytes": value, "path": value}
        content, path = given.get("bytes"), given.get("path")
        if isinstance(content, bytes):
            return content, ""
        if isinstance(path, str) and path:
            return None, path
        raise InvalidRecordError(
            f"{name}: {self._columns.image!r} has neither the bytes of an image nor its path."
        )

    def _label(self, row: dict[str, Any], name: str) -> str | None:
        value = row[self._columns.label] if self._columns.label else None
        if value is None or isinstance(value, str):
            return value or None
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRecordError(f"{name}: {self._columns.label!r} is not a class: {value!r}.")
        if value == -1:  # of test sets without labels
            return None
        if self._classes and not 0 <= value < len(self._classes):
            raise InvalidRecordError(
                f"{name}: {self._columns.label!r} is {value}, of {len(self._classes)} classes."
            )
        return self._classes[value] if self._classes else str(value)


def find_tables(path: Path, split: str, subset: str | None) -> list[Path]:
    """The files of a table, in order. Raises ValueError where there are none."""
    if path.is_dir() and (path / DICT_FILE).is_file():
        subsets = sorted(folder.parent.name for folder in path.glob(f"*/{STATE_FILE}"))
        return find_tables(path / choose_subset(subsets, split, subset), split, None)
    if path.is_dir() and (path / STATE_FILE).is_file():
        _refuse_subset(subset, path)
        return _saved_files(path)
    return find_files(path, ".parquet", split, subset)


def _refuse_subset(subset: str | None, path: Path) -> None:
    if subset is not None:
        raise ValueError(f"--subset={subset} is not needed: {path} is one part; leave it out.")


def _saved_files(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
        indexed = bool(state.get("_indices_data_files"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder / STATE_FILE} is not what save_to_disk writes.") from None
    if indexed:
        raise ValueError(
            f"{folder} holds rows that were selected or shuffled, and their order apart; call "
            "flatten_indices() before save_to_disk."
        )
    files = [folder / name for name in names if Path(name).name == name]
    if not files or len(files) < len(names) or not all(file.is_file() for file in files):
        raise ValueError(f"{folder / STATE_FILE} names files that are not in its folder.")
    return files


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"--from=parquet needs pyarrow, which is not installed: {how_to_install('parquet')}"
        ) from None
    return pyarrow


def _open(path: Path) -> tuple[Any, list[int]]:
    """The schema of a file, and the number of rows of each of its chunks."""
    pyarrow = _pyarrow()
    if path.suffix == ".arrow":
        table = _read(path, -1, None)
        return table.schema, [table.num_rows]
    with pyarrow.parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        if large := [group for group in groups if group.total_byte_size > MAX_GROUP_BYTES]:
            raise ValueError(
                f"a row group has {large[0].total_byte_size} bytes, of {MAX_GROUP_BYTES} that are "
                "read at once. Write it again with a smaller row_group_size."
            )
        return file.schema_arrow, [group.num_rows for group in groups]


def _read(path: Path, group: int, columns: Sequence[str] | None) -> Any:
    """A row group of a Parquet file, or all of an Arrow file, which is mapped and not loaded."""
    pyarrow = _pyarrow()
    if group >= 0:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.read_row_group(group, columns=list(columns) if columns else None)
    source = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source).read_all()  # Arrow's other layout, of .feather files


def _class_names(schema: Any, label: str | None) -> list[str]:
    """The names of integer labels, which Hugging Face stores with a table; [] without them."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None or label is None:
        return []
    try:
        names = json.loads(stored)["info"]["features"][label].get("names", [])
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return names if all(isinstance(name, str) for name in names) else []
