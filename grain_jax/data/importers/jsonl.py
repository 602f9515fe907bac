"""One JSON object a line, one line an image. The format is described in `docs/data-format.md`."""

import array
import json
import math
import zlib
from pathlib import Path
from typing import Any

from grain_jax.data.importers.item import MAX_SIDE, BadItem, ImportedImage, ImportedRegion
from grain_jax.data.records import Caption

MAX_LINE_BYTES = 4 * 2**20
CAPTION_SOURCES = ("original", "synthetic")
BOX_UNITS = ("fraction", "pixel")
FIELDS = {"image", "id", "captions", "regions", "label", "bbox_unit", "width", "height"}


class JsonLines:
    """The lines of a file, empty ones left out."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"--input={path} is not a file; it needs one JSON object a line.")
        self._path = path
        self._starts, self._numbers = array.array("q"), array.array("q")
        start = number = checksum = 0
        fresh = True
        with path.open("rb") as file:
            # In pieces: a file without line ends must not fill the memory.
            while piece := file.readline(MAX_LINE_BYTES):
                if fresh:
                    number += 1
                    if piece.strip():
                        self._starts.append(start)
                        self._numbers.append(number)
                fresh = piece.endswith(b"\n")
                start += len(piece)
                checksum = zlib.crc32(piece, checksum)
        self._checksum = checksum

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> ImportedImage:
        where = f"{self._path}:{self._numbers[index]}"
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise BadItem(
                f"{where}: the line is longer than {MAX_LINE_BYTES} bytes; each image needs a "
                "line of its own."
            )
        try:
            return parse_line(line)
        except BadItem as error:
            raise BadItem(f"{where}: {error}") from None

    def fingerprint(self) -> dict[str, object]:
        return {"path": str(self._path.resolve()), "lines": len(self), "crc32": self._checksum}


def parse_line(line: bytes) -> ImportedImage:
    """One line as an image. Raises `BadItem`, without a place."""
    try:
        entry = json.loads(line)
    except UnicodeDecodeError as error:
        raise BadItem(f"not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise BadItem(f"not JSON: {error.msg} at column {error.colno}.") from None
    except RecursionError:
        raise BadItem("not JSON that can be read: nested too deeply.") from None
    except ValueError as error:  # a whole number of more digits than Python converts
        raise BadItem(f"not JSON that can be read: {error}.") from None
    if not isinstance(entry, dict):
        raise BadItem(f"needs an object with 'image' and 'captions', got {_shown(entry)}.")
    image = _text(entry, "image")
    if not image:
        raise BadItem("'image' is missing: the path of the picture inside the images folder.")
    unit = entry.get("bbox_unit", "fraction")
    if unit not in BOX_UNITS:
        raise BadItem(f"'bbox_unit' must be one of {BOX_UNITS}, got {_shown(unit)}.")
    return ImportedImage(
        id=_text(entry, "id") or image,
        image=image,
        captions=tuple(_caption(value, i) for i, value in enumerate(_list(entry, "captions"))),
        regions=tuple(_region(value, i) for i, value in enumerate(_list(entry, "regions"))),
        label=_text(entry, "label"),
        box_unit=unit,
        size=_size(entry, unit),
        ignored=tuple(sorted(set(entry) - FIELDS)),
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(entry: dict[str, Any], name: str) -> str | None:
    value = entry.get(name)
    if value is not None and not isinstance(value, str):
        raise BadItem(f"'{name}' must be a string, got {_shown(value)}.")
    return value


def _list(entry: dict[str, Any], name: str) -> list[Any]:
    value = entry.get(name)
    if value is not None and not isinstance(value, list):
        raise BadItem(f"'{name}' must be a list, got {_shown(value)}.")
    return value or []


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer past the floats
        return math.inf


def _caption(value: Any, index: int) -> Caption:
    if isinstance(value, str):
        return Caption(value)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise BadItem(
            f"captions[{index}] must be a string or {{'text', 'source'}}, got {_shown(value)}."
        )
    source = value.get("source", "original")
    if source not in CAPTION_SOURCES:
        raise BadItem(
            f"captions[{index}]: 'source' must be one of {CAPTION_SOURCES}, got {_shown(source)}."
        )
    return Caption(value["text"], source)


def _region(value: Any, index: int) -> ImportedRegion:
    if not isinstance(value, dict):
        raise BadItem(f"regions[{index}] must be an object, got {_shown(value)}.")
    bbox = value.get("bbox")
    numbers = [_number(v) for v in bbox] if isinstance(bbox, list) else []
    x0, y0, x1, y1 = numbers if len(numbers) == 4 else (None,) * 4
    if x0 is None or y0 is None or x1 is None or y1 is None:
        raise BadItem(f"regions[{index}]: 'bbox' must be [x0, y0, x1, y1], got {_shown(bbox)}.")
    description = value.get("description")
    if not isinstance(description, str):
        raise BadItem(
            f"regions[{index}]: 'description' must be a string (one region for each of several), "
            f"got {_shown(description)}."
        )
    score = _number(value.get("score", 1.0))
    if score is None:
        raise BadItem(f"regions[{index}]: 'score' must be a number, got {_shown(value['score'])}.")
    return ImportedRegion((x0, y0, x1, y1), description, score)


def _size(entry: dict[str, Any], unit: str) -> tuple[int, int] | None:
    """Width and height that pixel boxes refer to, where the line says them."""
    given = entry.get("width"), entry.get("height")
    if unit == "fraction" or given == (None, None):
        return None
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
            raise BadItem(
                f"'width' and 'height' must be positive whole numbers up to {MAX_SIDE}, "
                f"got {_shown(list(given))}."
            )
    return entry["width"], entry["height"]
