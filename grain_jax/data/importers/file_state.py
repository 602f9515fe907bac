"""What identifies the files of an input, so that a changed one is noticed."""

import zlib
from collections.abc import Iterable
from pathlib import Path


def crc32_of(path: Path) -> int:
    """The CRC-32 of a file's content."""
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(2**22):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def file_states(paths: Iterable[Path]) -> list[list[object]]:
    """[name, size in bytes, mtime in nanoseconds] of files that are too large to read for this."""
    return [[path.name, (state := path.stat()).st_size, state.st_mtime_ns] for path in paths]
