"""Tables of image paths and captions as open_clip reads them: CSV or TSV with a header line.

Several rows of one path are several captions of one image, wherever they stand. Only the places of
rows are kept in memory, at most 40 bytes for each row.
"""

import array
import csv
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.data.importers.columns import Columns, find_columns
from grain_jax.data.importers.input_files import check_text, crc32_of
from grain_jax.data.importers.item import ImportedImage, InvalidRecordError
from grain_jax.data.records import Caption

SEPARATORS = ("\t", ",", ";", "|")
NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
MAX_ROW_BYTES = 2**20


class CsvTable:
    """One record for each path, in the order of first mention. An `Importer`."""

    def __init__(
        self,
        path: Path,
        *,
        separator: str | None = None,
        image_column: str | None = None,
        caption_columns: Sequence[str] | None = None,
        label_column: str | None = None,
    ) -> None:
        if not path.is_file():
            raise ValueError(f"--input={path} is not a file; expected a CSV or TSV file.")
        self._path = path
        header = _header(path)
        self._separator = _separator(header, path, separator)
        names = _names(header, path, self._separator)
        self._columns: Columns = find_columns(
            names, str(path), image=image_column, captions=caption_columns, label=label_column
        )
        if not self._columns.captions:
            raise ValueError(
                f"{path} has no column of captions with a usual name; it has {', '.join(names)}. "
                "Give --caption_columns."
            )
        self._at = {name: names.index(name) for name in self._columns.all}
        self._width = len(names)
        self._starts, self._lines, keys, self._crc32 = self._scan()
        # Rows of one path together, paths in the order of first mention.
        unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        self.keys = unique[np.argsort(first)]  # `path_key` of each record
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        owner = rank[inverse]
        self._order = np.argsort(owner, kind="stable").astype(np.int32)
        self._bounds = np.searchsorted(owner[self._order], np.arange(len(first) + 1))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> ImportedImage:
        captions: list[Caption] = []
        labels: dict[str, int] = {}  # -> the line of the first row with it
        image = ""
        for row in self._order[self._bounds[index] : self._bounds[index + 1]]:
            values = self._row(int(row))
            image = values[self._columns.image]
            captions += [Caption(values[name]) for name in self._columns.captions]
            if self._columns.label and values[self._columns.label]:
                labels.setdefault(values[self._columns.label], self._lines[row])
        if len(labels) > 1:
            (first, line), (other, other_line) = list(labels.items())[:2]
            raise InvalidRecordError(
                f"{self._path}:{other_line}: {image!r} has the label {other!r}, and in line {line} "
                f"{first!r}; give it one."
            )
        label = next(iter(labels), None)
        return ImportedImage(id=image, image=image, captions=tuple(captions), label=label)

    def fingerprint(self) -> dict[str, object]:
        return {"path": str(self._path.resolve()), "rows": len(self._order), "crc32": self._crc32}

    def checksum(self, start: int, stop: int) -> str:
        digest = hashlib.sha256(repr((self._separator, self._columns)).encode())
        with self._path.open("rb") as file:
            for row in self._order[self._bounds[start] : self._bounds[stop]]:
                digest.update(self._bytes(file, int(row)))
        return digest.hexdigest()

    def _scan(self) -> tuple["array.array[int]", "array.array[int]", np.ndarray, int]:
        """Places and line numbers of the rows, with the end as a last place; a hash of each path.

        A row that cannot be read is a record of its own.
        """
        starts, lines, keys = array.array("q"), array.array("I"), array.array("Q")
        with self._path.open("rb") as file:
            source = _Lines(file)
            reader = csv.reader(source, delimiter=self._separator, strict=True)
            next(reader)
            while True:
                start, line = source.read, source.number + 1
                try:
                    row = next(reader)
                except StopIteration:
                    break
                except csv.Error:  # such as a quote that is never closed: costs its line alone
                    row = []
                    source.go_to_line_after(start, line)
                if not row and source.blank:
                    continue
                starts.append(start)
                lines.append(line)
                key = self._key(row) if source.read - start <= MAX_ROW_BYTES else None
                keys.append(path_key(key or f"\0{start}"))
            starts.append(source.read)
        return starts, lines, np.asarray(keys, np.uint64), crc32_of(self._path)

    def _key(self, row: list[str]) -> str | None:
        """The path in a row; None for a row that `_row` refuses."""
        if len(row) != self._width or any("\udc80" <= c <= "\udcff" for c in "".join(row)):
            return None
        return row[self._at[self._columns.image]] or None

    def _bytes(self, file: Any, row: int) -> bytes:
        file.seek(self._starts[row])
        data: bytes = file.read(min(self._starts[row + 1] - self._starts[row], MAX_ROW_BYTES + 1))
        return data

    def _row(self, row: int) -> dict[str, str]:
        where = f"{self._path}:{self._lines[row]}"
        with self._path.open("rb") as file:
            data = self._bytes(file, row)
        if len(data) > MAX_ROW_BYTES:
            raise InvalidRecordError(
                f"{where}: the row is longer than {MAX_ROW_BYTES} bytes; a quote that is not "
                "closed makes one row of all lines behind it."
            )
        try:
            text = data.decode("utf-8")
            values = next(csv.reader([text], delimiter=self._separator, strict=True))
        except UnicodeDecodeError as error:
            raise InvalidRecordError(
                f"{where}: not UTF-8 text ({error.reason} at byte {error.start}); save the file "
                "as UTF-8."
            ) from None
        except csv.Error as error:
            raise InvalidRecordError(f"{where}: {_explained(error)}.") from None
        if len(values) != self._width:
            raise InvalidRecordError(
                f"{where}: {len(values)} columns, and the first line has {self._width}; a text "
                "with a separator or a line end in it must be in quotes."
            )
        found = {name: values[at] for name, at in self._at.items()}
        if not found[self._columns.image]:
            raise InvalidRecordError(f"{where}: no path in column {self._columns.image!r}.")
        return found


def path_key(path: str) -> int:
    """A 64-bit hash of a path."""
    digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class _Lines:
    """The lines of a file, decoded so that none fails, with how far they were read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.read = self.number = 0
        self.blank = False  # the last line

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = piece = self._file.readline(MAX_ROW_BYTES)
        if not line:
            raise StopIteration
        while piece:
            self.read += len(piece)
            # The rest of a line that is too long is passed over: its length makes it an error.
            piece = b"" if piece.endswith(b"\n") else self._file.readline(MAX_ROW_BYTES)
        self.number += 1
        self.blank = not line.strip()
        return str(line.decode("utf-8", "surrogateescape"))

    def go_to_line_after(self, start: int, number: int) -> None:
        """Continues behind the line `number`, which begins at `start`."""
        self._file.seek(start)
        self.read, self.number = start, number - 1
        next(self)


def _header(path: Path) -> str:
    check_text(path)
    with path.open("rb") as file:
        line = file.readline(MAX_ROW_BYTES)
    try:
        header = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--input={path} is not text in UTF-8: its first line has a byte that is not "
            f"({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    if not header.strip() or "\0" in header:
        raise ValueError(f"--input={path} has no header line with the names of columns.")
    return header


def _names(header: str, path: Path, separator: str) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(f"--input={path}: the first line: {_explained(error)}.") from None


def _explained(error: csv.Error) -> str:
    """What the library says of a row, with what to change."""
    said = str(error)
    if "field larger" in said:
        return f"a text of more than {csv.field_size_limit():,} characters, or an unclosed quote"
    if "unexpected end" in said:
        return 'unclosed quote: a text that begins with one ends with one, and "" is one in it'
    if "expected after" in said:
        return 'text behind a closing quote: a quote within a text in quotes is written as ""'
    if "new-line" in said:
        return "CR line ends, as old Macs wrote them; convert them: tr '\\r' '\\n' < FILE"
    return f"not a row of a table: {said}"


def _separator(header: str, path: Path, given: str | None) -> str:
    if given is not None:
        separator = NAMED.get(given, given)
        if len(separator) != 1 or separator in '"\r\n':
            raise ValueError(f"--separator={given!r} must be one character, or 'tab'.")
        return separator
    counts = {separator: header.count(separator) for separator in SEPARATORS}
    separator = max(SEPARATORS, key=lambda s: counts[s])
    if not counts[separator]:
        raise ValueError(
            f"The first line of {path} has no separator (tab, comma, semicolon or |): "
            f"{header[:60]!r}. Give --separator, or add a header with the names of columns."
        )
    return separator
