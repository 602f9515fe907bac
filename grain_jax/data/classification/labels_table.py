"""`labels.csv`: image files with their labels.

The file is read strictly: a stray quote would otherwise turn all lines after it into one label.
"""

import csv
import io
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

from grain_jax.data.image_paths import path_inside
from grain_jax.data.text_files import read_text_file

NAME = "labels.csv"
COLUMNS = ("file", "label")
SEPARATORS = (",", ";", "\t")  # Excel writes ";" where "," is the decimal point
MAX_BYTES = 1 << 30
SHOWN = 3  # entries that a note lists


def read_labels_table(path: Path, *, note: Callable[[str], None] = print) -> list[tuple[str, str]]:
    """(file, label) of each line; files are relative to the folder of the table and inside it.

    `note` is called with a sentence on cells that span several lines. Raises ValueError, with the
    line, where it is invalid or lists a file again.
    """
    text = read_text_file(path, max_bytes=MAX_BYTES)
    separator, columns = _header(text, path)
    lines = io.StringIO(text, newline="").readlines()
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    on_disk = FilesOnDisk(path.parent)
    several: list[str] = []  # ranges of lines in one row
    pairs: list[tuple[str, str]] = []
    seen: dict[str, int] = {}
    line, header = 1, True  # `line`: first line of the next row
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) and header:
                header = False
            elif any(cell.strip() for cell in cells):
                where = f"Line {line} of {str(path)!r}"
                file, label = _cells(cells, columns, path, where)
                for number in range(line + 1, reader.line_num + 1):
                    swallowed = _file_of_line(lines[number - 1], separator, columns, path)
                    if swallowed and on_disk.find(swallowed):
                        raise ValueError(
                            f"{where} opens a quote that is closed in line {reader.line_num}, and "
                            f"line {number} in between lists the image {swallowed!r}. Close the "
                            f"quote in line {line}, or write it as two quotes inside quotes."
                        )
                if reader.line_num > line:
                    several.append(f"{line} to {reader.line_num}")
                if file in seen:
                    raise ValueError(
                        f"Line {line} of {str(path)!r} lists {file!r} a second time, first in "
                        f"line {seen[file]}."
                    )
                seen[file] = line
                pairs.append((file, label))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"Line {line} of {str(path)!r} opens a quote that is not closed correctly "
            f"({error}). Close it, or write a quote in a cell as two quotes inside quotes."
            if '"' in text
            else f"Line {line} of {str(path)!r} is not valid CSV: {error}."
        ) from None
    if several:
        shown = ", ".join(several[:SHOWN]) + (", ..." if len(several) > SHOWN else "")
        note(
            f"{str(path)!r}: {len(several)} of {len(pairs)} entries have a cell of several lines "
            f"(lines {shown}); each counts as one image."
        )
    return pairs


def _file_of_line(line: str, separator: str, columns: list[str], path: Path) -> str:
    """The file that a line lists if it is read on its own; "" for none."""
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
        return _cells(cells, columns, path, "")[0]
    except (ValueError, csv.Error):
        return ""


def _header(text: str, path: Path) -> tuple[str, list[str]]:
    """The separator and the names of the columns."""
    lines = text.replace("\r", "\n").split("\n", 100)[:100]
    first = next((line for line in lines if line.strip()), "")
    columns: list[str] = []
    for separator in SEPARATORS:
        columns = [cell.strip(' "').casefold() for cell in first.split(separator)]
        if set(COLUMNS) <= set(columns):
            break
    else:
        raise ValueError(
            f"{str(path)!r} needs the columns {','.join(COLUMNS)} in its first line; it has "
            f"{first[:200]!r}."
        )
    if twice := [column for column in COLUMNS if columns.count(column) > 1]:
        raise ValueError(f"{str(path)!r} has more than one column {twice[0]!r}.")
    return separator, columns


def _cells(cells: list[str], columns: list[str], path: Path, where: str) -> tuple[str, str]:
    """The file and the label of a row. Raises ValueError, starting with `where`."""
    if len(cells) > len(columns):
        raise ValueError(
            f"{where} has {len(cells)} cells for {len(columns)} columns. Put a label that contains "
            "the separator in quotes."
        )
    row = dict(zip(columns, cells, strict=False))
    file, label = (row.get(column, "").strip() for column in COLUMNS)
    if not file or not label:
        raise ValueError(f"{where} lacks a file or a label.")
    if any(end in text for text in (file, label) for end in "\r\n"):
        raise ValueError(
            f"{where} opens a quote that is closed in a later line, so that a file or label has "
            "several lines. Close it in the same line."
        )
    try:
        inside = path_inside(file, path.parent)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if inside == ".":
        raise ValueError(f"{where}: {file!r} is the folder itself; expected an image file.")
    return inside, label


class FilesOnDisk:
    """Finds files whose names have another Unicode form on disk.

    macOS stores "é" as two characters, a keyboard types one.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, dict[str, str]] = {}  # folder -> NFC name -> name on disk

    def find(self, file: str) -> str | None:
        """The path of the file as on disk, relative to the root; None where it does not exist."""
        if os.path.isfile(self._root / file):
            return file
        if file.isascii():
            return None
        found = ""
        for part in file.split("/"):
            name = self._names(found).get(unicodedata.normalize("NFC", part))
            if name is None:
                return None
            found = f"{found}/{name}" if found else name
        return found if os.path.isfile(self._root / found) else None

    def _names(self, folder: str) -> dict[str, str]:
        if folder not in self._folders:
            try:
                names = os.listdir(self._root / folder)
            except OSError:
                names = []
            self._folders[folder] = {unicodedata.normalize("NFC", name): name for name in names}
        return self._folders[folder]
