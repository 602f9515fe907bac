"""The files of an input: which of them are read, and what identifies their content."""

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


def find_files(path: Path, suffix: str) -> list[Path]:
    """The file `path`, or the files of a folder and its subfolders that end so, sorted by name.

    Raises ValueError where there are none.
    """
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob(f"*{suffix}") if file.is_file())
    if not found:
        raise ValueError(f"--input={path} has no files that end in {suffix}.")
    return found


def choose_subset(subsets: list[str], split: str, subset: str | None) -> str:
    """The part of a collection to read: `subset`, or else the only one whose name begins with the
    name of the split. Raises ValueError where there is none or several.
    """
    wanted = split if subset is None else subset
    if wanted in subsets:
        return wanted
    alike = [name for name in subsets if subset is None and name.startswith(wanted)]
    if len(alike) == 1:
        return alike[0]
    given = f"--split={split}" if subset is None else f"--subset={subset}"
    raise ValueError(
        f"{given} names no part of the input, which has {', '.join(subsets)}; choose one with "
        "--subset."
    )
