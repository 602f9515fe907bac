"""The files of an input: which of them are read, and what identifies their content."""

import zlib
from collections.abc import Iterable
from pathlib import Path

# First bytes of files that are not text in UTF-8.
NOT_TEXT = (
    (b"\x1f\x8b", "compressed with gzip; decompress it first: gunzip -k FILE"),
    (b"BZh", "compressed with bzip2; decompress it first: bunzip2 -k FILE"),
    (b"\xfd7zXZ", "compressed with xz; decompress it first: unxz -k FILE"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it first: unzstd FILE"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"PAR1", "a Parquet table; read it with --from=parquet"),
    (b"\xff\xfe", "in UTF-16; convert it: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"\xfe\xff", "in UTF-16; convert it: iconv -f UTF-16 -t UTF-8 FILE"),
)


def check_text(path: Path, others: Iterable[tuple[bytes, str]] = ()) -> bytes:
    """The first bytes of a file, without the spaces in front of them.

    Raises ValueError that says what to do for a file that begins as one of `NOT_TEXT` or `others`.
    """
    with path.open("rb") as file:
        start = file.read(256).lstrip()
    for begin, what in (*NOT_TEXT, *others):
        if start.startswith(begin):
            raise ValueError(f"--input={path} is {what.replace('FILE', str(path))}.")
    return start


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
