"""The files of an input: which of them are read, and what identifies their content."""

import glob
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

# What tells shards of one part apart, between separators: 00003, 00003-of-00010, a hash.
COUNTERS = re.compile(
    r"(?:^|[-_.])(?:\d+-of-\d+|\d+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8,})"
    r"(?=[-_.]|$)"
)
WORDS = re.compile("[a-z]+")
SPLIT_WORDS = frozenset(
    (
        *("train", "training", "trainset", "test", "testing", "testset"),
        *("val", "valid", "validation", "valset", "dev", "eval", "evaluation"),
    )
)
UNNAMED = "numbered"  # the part of files whose names are numbers alone
BRACES, NUMBERS = re.compile(r"\{([^{}]*)\}"), re.compile(r"(\d+)\.\.(\d+)")
MAX_NUMBERS = 1_000_000  # in braces
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


def find_files(path: Path, suffix: str, split: str = "", subset: str | None = None) -> list[Path]:
    """The files of an input that end in `suffix`, sorted by name.

    Args:
        path: a file; a pattern with `*`, `?` or braces, whose files are all read; or a folder, of
            which one part is read (`part_of`), with its subfolders.
        split: the name of the split that is built.
        subset: the part that is asked for, if any.

    Raises ValueError where there are none, and where files of several parts could be meant.
    """
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob(f"*{suffix}")
            if file.is_file() and not file.name.startswith(".")  # such as ._x.tar of macOS
        )
        if not files:
            raise ValueError(f"--input={path} has no files that end in {suffix}.")
        return _chosen(files, path, split, subset)
    if subset is not None:
        raise ValueError(
            f"--subset={subset} is not needed: --input={path} says which files; leave it out."
        )
    return [path] if path.is_file() else _matching(path)


def is_pattern(path: Path) -> bool:
    """Whether a path that does not exist names files by a pattern."""
    return not path.exists() and any(mark in str(path) for mark in "*?{")


def part_of(file: Path, root: Path) -> str:
    """The part of a collection that a file is of, by its path within `root`.

    It is the name of the file without the numbers and hashes of shards, behind those of its
    folders. A folder that has the name of a split has files of that part only.
    """
    kept_names: list[str] = []
    for name in (*file.relative_to(root).parts[:-1], file.stem):
        kept = COUNTERS.sub("", name).lstrip("-_.")
        if tells_split(name):
            kept_names.append(kept)
            break
        kept_names.append(kept.rstrip("0123456789"))  # part7, but not the year of train2017
    return "/".join(name for name in kept_names if name) or UNNAMED


def tells_split(name: str) -> bool:
    """Whether a name has a word that usually stands for a split."""
    return not SPLIT_WORDS.isdisjoint(WORDS.findall(name.lower()))


def _chosen(files: list[Path], path: Path, split: str, subset: str | None) -> list[Path]:
    root = _common_folder(files, path)
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(part_of(file, root), []).append(file)
    telling = [name for name in parts if tells_split(name)]
    if subset is None and not telling and len(parts) == 1:
        return files
    if subset is None and telling and len(telling) < len(parts):
        other = next(name for name in parts if name not in telling)
        raise ValueError(
            f"--input={path} has files of {', '.join(telling)}, and {parts[other][0].name}, whose "
            'name tells no split. Choose with --subset, or give --input as a pattern: "DIR/a-*".'
        )
    alike = [name for name in parts if subset is None and split in WORDS.findall(name.lower())]
    if split not in parts and len(alike) == 1:
        return parts[alike[0]]
    return parts[choose_subset(sorted(parts), split, subset)]


def _common_folder(files: list[Path], root: Path) -> Path:
    """The deepest folder of all files whose name, and those above it, tell no split."""
    for name in Path(os.path.commonpath([file.parent for file in files])).relative_to(root).parts:
        if tells_split(name):
            break
        root /= name
    return root


def _matching(path: Path) -> list[Path]:
    """The files of a pattern, sorted. Raises ValueError where a name of it has none."""
    found: set[str] = set()
    for name in _without_braces(str(path)):
        matching = [file for file in glob.glob(name, recursive=True) if os.path.isfile(file)]
        if not matching:
            raise ValueError(f"--input={path}: there is no file {name}.")
        found.update(matching)
    return [Path(name) for name in sorted(found)]


def _without_braces(text: str) -> list[str]:
    """The names that a text with {a,b} or {000..123} stands for, as in a shell."""
    found = BRACES.search(text)
    if found is None:
        return [text]
    choices = found[1].split(",")
    if numbers := NUMBERS.fullmatch(found[1]):
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < MAX_NUMBERS:
            raise ValueError(f"--input={text}: {found[0]} should be a first and a last number.")
        choices = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    begin, end = text[: found.start()], text[found.end() :]
    return [name for choice in choices for name in _without_braces(f"{begin}{choice}{end}")]


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
