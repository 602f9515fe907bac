"""Pictures that a command line names, and the files that answers go to."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grain_jax.evaluation.folders import IMAGE_SUFFIXES
from grain_jax.paths import expand_home


@dataclass(frozen=True)
class Target:
    """A picture to look at, and the name of its card below --out."""

    file: Path
    card: Path


def find_pictures(
    given: Sequence[str], out: Path | None
) -> tuple[list[Target], list[tuple[str, str]]]:
    """The pictures that files, folders and globs name, each once and with a card of its own; and
    what names none, with the reason. What lies in `out`, where that is inside a given folder, was
    written by this command.
    """
    targets: list[Target] = []
    nothing: list[tuple[str, str]] = []
    seen: set[Path] = set()
    taken: set[str] = set()
    for one in given:
        found, reason = 0, "there is no such file or folder."
        for path in _matches(one):
            for file, name in _files(path, out):
                found += 1
                if (resolved := file.resolve()) not in seen:
                    seen.add(resolved)
                    targets.append(Target(file, _card_name(name, taken)))
            reason = f"the folder holds no pictures ({', '.join(IMAGE_SUFFIXES)})."
        if not found:
            nothing.append((one, reason))
    return targets, nothing


def _matches(given: str) -> list[Path]:
    given = expand_home(given)
    if os.path.exists(given):
        return [Path(given)]
    return [Path(match) for match in sorted(glob.glob(given, recursive=True))]


def _files(path: Path, out: Path | None) -> Iterator[tuple[Path, Path]]:
    """The file, or every picture of the folder, with what it is called below --out."""
    if not path.is_dir():
        yield path, Path(path.name)
        return
    written = {out.resolve()} if out is not None else set()
    written -= {path.resolve(), *path.resolve().parents}  # cards beside or above are no reason
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
            continue
        if not written.intersection(file.resolve().parents):
            yield file, name


def _card_name(name: Path, taken: set[str]) -> Path:
    """A .png that no other picture has, on file systems that do not tell case either."""
    card, number = name.with_suffix(".png"), 1
    while str(card).casefold() in taken:
        number += 1
        card = name.with_name(f"{name.stem}-{number}.png")
    taken.add(str(card).casefold())
    return card


def check_outputs(
    targets: Sequence[Target],
    *,
    out: Path | None,
    csv: Path | None,
    json: Path | None,
    overwrite: bool,
) -> None:
    """Raises ValueError for what would be lost or could not be written, before anything is
    computed.
    """
    files = [path for path in (csv, json) if path is not None]
    if len(files) == 2 and files[0].resolve() == files[1].resolve():
        raise ValueError(f"--csv and --json both name {str(files[0])!r}; give each its own file.")
    for path in files:
        if not path.parent.is_dir():
            raise ValueError(f"There is no folder {str(path.parent)!r}; make it first.")
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out={out} is a file; needed a folder.")
        files += [out / target.card for target in targets]
    read = {target.file.resolve() for target in targets}
    for path in files:
        if path.resolve() in read:
            raise ValueError(f"{str(path)!r} would replace a picture to look at; change --out.")
        if path.is_dir() or (path.exists() and not overwrite):
            raise ValueError(
                f"{str(path)!r} exists; give another place, or --overwrite to replace it."
            )
