"""JSON lines, one image per line. The format is described in `docs/data-format.md`."""

import array
import bisect
import difflib
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from grain_jax.data.importers.input_files import check_text
from grain_jax.data.importers.item import ImportedImage, ImportedRegion, InvalidRecordError
from grain_jax.data.importers.json_values import (
    as_number,
    four_numbers,
    image_size,
    parse_object,
    shown,
)
from grain_jax.data.records import Caption

MAX_LINE_BYTES = 4 * 2**20
# From one line whose place in the file is kept to the next: at most so many, or hardly more bytes.
NOTED_LINES, NOTED_BYTES = 64, 2**18
CAPTION_SOURCES = ("original", "synthetic")
BOX_UNITS = ("fraction", "pixel")
FIELDS = {"image", "id", "captions", "regions", "label", "bbox_unit", "width", "height"}
CAPTION_FIELDS, REGION_FIELDS = {"text", "source"}, {"bbox", "description", "score"}
# Names of the fields in other tools. A line with one of these and without the expected name is an
# error, as the field would otherwise be ignored.
OTHER_NAMES = {
    "image": (
        *("file_name", "filename", "file", "path", "filepath", "image_path", "image_file"),
        *("img", "img_path"),
    ),
    "captions": (
        "caption",
        "text",
        "texts",
        "sentence",
        "sentences",
        "title",
        "alt_text",
        "prompt",
    ),
    "regions": ("region", "box", "boxes", "bbox", "bboxes", "objects", "annotations", "phrases"),
    "bbox_unit": ("unit", "box_unit", "bbox_units", "bbox_mode", "bbox_format"),
    "bbox": ("box", "xyxy", "bounding_box", "coordinates", "xywh"),
    "description": (
        *("descriptions", "phrase", "text", "caption", "label", "name", "category", "class"),
    ),
    "score": ("confidence", "conf", "scores", "logit"),
}
EMPTY: tuple[Any, ...] = (None, [], "", {})
CLOSE = 0.8  # of difflib; "captoins" is 0.88 close to "captions"
# First bytes of text files that are not JSON lines.
NOT_LINES = ((b"[", "one JSON list; write one element per line: jq -c '.[]' FILE"),)


class JsonLines:
    """The non-empty lines of a file. An `Importer`."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(
                f"--input={path} is not a file; expected a file with one JSON object per line."
            )
        _check_kind(path)
        self._path = path
        # Of a few lines only: every worker gets a copy, and some files have 12 million lines.
        self._noted, self._starts, self._numbers = (array.array("q") for _ in range(3))
        self._count = checksum = 0
        with path.open("rb") as file:
            for piece, start, number, fresh in _pieces(file, start=0, number=1):
                if fresh and piece.strip():
                    if (
                        not self._noted
                        or self._count - self._noted[-1] == NOTED_LINES
                        or start - self._starts[-1] >= NOTED_BYTES
                    ):
                        self._noted.append(self._count)
                        self._starts.append(start)
                        self._numbers.append(number)
                    self._count += 1
                checksum = zlib.crc32(piece, checksum)
        self._checksum = checksum
        self._after = (0, 0, 1)  # index of a record; where to look for it, and the line there

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> ImportedImage:
        line = self.line(index)
        try:
            return parse_line(line)
        except InvalidRecordError as error:
            raise InvalidRecordError(f"{self.where(index)}: {error}") from None

    def where(self, index: int) -> str:
        """File and line number of a record, for messages."""
        with self._path.open("rb") as file:
            return f"{self._path}:{self._find(file, index)[1]}"

    def line(self, index: int) -> bytes:
        """The bytes of a record's line. Raises `InvalidRecordError` where it is too long."""
        with self._path.open("rb") as file:
            start, number = self._find(file, index)
            file.seek(start)
            line = file.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise InvalidRecordError(
                f"{self._path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes; put each "
                "image on a line of its own."
            )
        self._after = (index + 1, start + len(line), number + 1)
        return line

    def _find(self, file: BinaryIO, index: int) -> tuple[int, int]:
        """Where a record's line starts, in bytes, and its number.

        Lines are passed over from the nearest one before it whose place is known: one that was
        noted, or the one read last.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"Record {index} of {self._path}, which has {self._count}.")
        near = bisect.bisect_right(self._noted, index) - 1
        known = (self._noted[near], self._starts[near], self._numbers[near])
        last = self._after
        record, start, number = last if known[0] <= last[0] <= index else known
        file.seek(start)
        for piece, position, line_number, fresh in _pieces(file, start=start, number=number):
            if fresh and piece.strip():
                if record == index:
                    return position, line_number
                record += 1
        raise InvalidRecordError(
            f"{self._path}: record {index} is gone; the file was changed while it was read. Run "
            "the command again."
        )

    def fingerprint(self) -> dict[str, object]:
        return {"path": str(self._path.resolve()), "lines": len(self), "crc32": self._checksum}

    def checksum(self, start: int, stop: int) -> str:
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            first = self._find(file, start)[0]
            left = (self._find(file, stop)[0] if stop < len(self) else 2**63) - first
            file.seek(first)
            while left > 0 and (piece := file.read(min(left, MAX_LINE_BYTES))):
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest()


def _pieces(file: BinaryIO, *, start: int, number: int) -> Iterator[tuple[bytes, int, int, bool]]:
    """Lines from `start` on, which is the start of line `number`: bytes, position, number, and
    whether the line starts there; one longer than MAX_LINE_BYTES comes in several pieces, so that
    a file without line ends does not fill the memory.
    """
    fresh = True
    while piece := file.readline(MAX_LINE_BYTES):
        yield piece, start, number, fresh
        fresh = piece.endswith(b"\n")
        number += fresh
        start += len(piece)


def _check_kind(path: Path) -> None:
    """Raises ValueError for a file that does not hold lines of JSON."""
    start = check_text(path, NOT_LINES)
    if start.rstrip() == b"{" or start.startswith((b"{\n", b"{\r\n")):
        raise ValueError(
            f"--input={path} is one JSON object over several lines; expected one object per line, "
            "one line per image."
        )


def parse_line(line: bytes) -> ImportedImage:
    """The image of one line. Raises `InvalidRecordError`, without file and line number."""
    return parse_entry(parse_object(line, expected="an object with 'image' and 'captions'"))


def parse_entry(entry: dict[str, Any]) -> ImportedImage:
    """The image of the object of a line. Raises `InvalidRecordError`, as `parse_line` does."""
    if {"images", "annotations"} <= set(entry):
        raise InvalidRecordError("this is a COCO file as a whole; expected one line per image.")
    image = _text(entry, "image")
    if not image:
        _check_names(entry, FIELDS, ("image",))
        raise InvalidRecordError(
            "'image' is missing; give the path of the image inside the images folder."
        )
    _check_names(entry, FIELDS, ("captions", "regions", "bbox_unit"))
    captions, regions = _list(entry, "captions"), _list(entry, "regions")
    unit = entry.get("bbox_unit", "fraction")
    if unit not in BOX_UNITS:
        raise InvalidRecordError(f"'bbox_unit' must be one of {BOX_UNITS}, got {shown(unit)}.")
    return ImportedImage(
        id=_text(entry, "id") or image,
        image=image,
        captions=tuple(_caption(value, i) for i, value in enumerate(captions)),
        regions=tuple(_region(value, i) for i, value in enumerate(regions)),
        label=_text(entry, "label"),
        box_unit=unit,
        size=_size(entry, unit),
        ignored=tuple(
            [
                *sorted(set(entry) - FIELDS),
                *(f"captions: {name}" for name in _others(captions, CAPTION_FIELDS)),
                *(f"regions: {name}" for name in _others(regions, REGION_FIELDS)),
            ]
        ),
    )


def _others(values: list[Any], known: set[str]) -> list[str]:
    return sorted({name for value in values if isinstance(value, dict) for name in value} - known)


def _check_names(
    entry: dict[str, Any], known: set[str], expected: tuple[str, ...], where: str = ""
) -> None:
    """Raises `InvalidRecordError` where one of `expected` seems to be there under another name.

    Empty fields are not considered, as other tools write those too.
    """
    others = [name for name in entry if name not in known and entry[name] not in EMPTY]
    if not others:
        return
    for name in expected:
        if entry.get(name) not in EMPTY:
            continue
        same = [other for other in others if other.casefold() in (name, *OTHER_NAMES[name])]
        if found := same or difflib.get_close_matches(name, others, n=1, cutoff=CLOSE):
            raise InvalidRecordError(
                f"{where}has no {name!r}; it has {shown(found[0])}. Rename it to {name!r} (see "
                "docs/data-format.md), or remove it."
            )


def _text(entry: dict[str, Any], name: str) -> str | None:
    value = entry.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRecordError(f"'{name}' must be a string, got {shown(value)}.")
    return value


def _list(entry: dict[str, Any], name: str) -> list[Any]:
    value = entry.get(name)
    if value is not None and not isinstance(value, list):
        raise InvalidRecordError(f"'{name}' must be a list, got {shown(value)}.")
    return value or []


def _caption(value: Any, index: int) -> Caption:
    if isinstance(value, str):
        return Caption(value)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise InvalidRecordError(
            f"captions[{index}] must be a string or {{'text', 'source'}}, got {shown(value)}."
        )
    source = value.get("source", "original")
    if source not in CAPTION_SOURCES:
        raise InvalidRecordError(
            f"captions[{index}]: 'source' must be one of {CAPTION_SOURCES}, got {shown(source)}."
        )
    return Caption(value["text"], source)


def _region(value: Any, index: int) -> ImportedRegion:
    if not isinstance(value, dict):
        raise InvalidRecordError(f"regions[{index}] must be an object, got {shown(value)}.")
    expected = tuple(name for name in sorted(REGION_FIELDS) if name not in value)
    _check_names(value, REGION_FIELDS, expected, f"regions[{index}] ")
    bbox = value.get("bbox")
    box = four_numbers(bbox)
    if box is None:
        raise InvalidRecordError(
            f"regions[{index}]: 'bbox' must be [x0, y0, x1, y1], got {shown(bbox)}."
        )
    description = value.get("description")
    if not isinstance(description, str):
        raise InvalidRecordError(
            f"regions[{index}]: 'description' must be a string (one region for each of several), "
            f"got {shown(description)}."
        )
    score = as_number(value.get("score", 1.0))
    if score is None:
        raise InvalidRecordError(
            f"regions[{index}]: 'score' must be a number, got {shown(value['score'])}."
        )
    return ImportedRegion(box, description, score)


def _size(entry: dict[str, Any], unit: str) -> tuple[int, int] | None:
    """Width and height that pixel boxes refer to; None where the line has none."""
    given = entry.get("width"), entry.get("height")
    if unit == "fraction" or given == (None, None):
        return None
    return image_size(*given)
