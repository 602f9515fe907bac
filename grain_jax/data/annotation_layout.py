"""The files of a folder of annotations.

    ANN/annotations.json                     what the folder is
    ANN/describe/manifest-0-of-1.json        the committed parts: rows, bytes, checksum
    ANN/describe/part-00000001-0-of-1.parquet
    ANN/describe/journal-00000002-0-of-1.jsonl   rows on their way to the next part

Nothing is changed in place. A row is in a journal as soon as it is made, and a journal becomes the
part of the same number. A part counts from when the manifest lists it; until then its journal does.
`grain_jax.annotation.writer` writes all of it.
"""

import json
import re
from pathlib import Path
from typing import Any

from grain_jax.data.annotation_rows import values_of_line

MARKER = "annotations.json"
FORMAT, VERSION = "grain_jax annotations", 1
MAX_MANIFEST_BYTES = 2**28
_PART = re.compile(r"part-(\d{8})-(\d+-of-\d+)\.parquet")
_JOURNAL = re.compile(r"journal-(\d{8})-(\d+-of-\d+)\.jsonl")


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
