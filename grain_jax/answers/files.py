"""Images that a command line names, and the files that answers go to."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grain_jax.data.classification.image_folder import IMAGE_SUFFIXES, FolderContent, read_folder
from grain_jax.paths import expand_home


@dataclass(frozen=True)
class Target:
    """An image to look at, and the name of its visualization below --output."""

    file: Path
    visualization: Path


def find_images(
    given: Sequence[str], out: Path | None
) -> tuple[list[Target], list[tuple[str, str]]]:
    """The images that files, folders and globs name, each once and with a place for its
    visualization; and what names none, with the reason. What lies in `out`, where that is inside a
    given folder, was written by this command.
    """
    targets: list[Target] = []
    nothing: list[tuple[str, str]] = []
    seen: set[Path] = set()
    taken: set[str] = set()

    def take(file: Path, name: Path) -> None:
        if (resolved := file.resolve()) not in seen:
            seen.add(resolved)
            targets.append(Target(file, _card_name(name, taken)))

    for one in given:
        matches = _matches(one)
        if not matches:
            nothing.append((one or "''", "there is no such file or folder."))
        for path in matches:
            if not path.is_dir():
                take(path, Path(path.name))
                continue
            content = read_folder(path)
            images = [Path(name) for name in content.images if not _written(path / name, path, out)]
            for image in images:
                take(path / image, image)
            unreadable = _unreadable(content)
            nothing += [(str(path / name), reason) for name, reason in unreadable]
            if not images and not unreadable and len(matches) == 1:
                suffixes = ", ".join(IMAGE_SUFFIXES)
                nothing.append((one, f"the folder holds no images ({suffixes})."))
    return targets, nothing


def _matches(given: str) -> list[Path]:
    """What the path or glob names. What exists to the letter, such as a folder "set [1]", is no
    pattern.
    """
    given = expand_home(given)
    if not given:
        return []
    if os.path.lexists(given):
        return [Path(given)]
    literal, *parts = Path(given).parts
    if not os.path.lexists(literal):
        literal, parts = "", [literal, *parts]
    while parts and os.path.lexists(os.path.join(literal, parts[0])):
        literal, parts = os.path.join(literal, parts[0]), parts[1:]
    pattern = os.path.join(glob.escape(literal), *parts)
    return [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]


def _unreadable(content: FolderContent) -> list[tuple[str, str]]:
    """What of a folder was meant to be looked at and cannot be, with the reason."""
    return [
        *((name, "the link leads nowhere.") for name in content.broken),
        *((name, "the folder cannot be read.") for name in content.denied),
        *((name, "this format is not read; convert it, say to PNG.") for name in content.unread),
    ]


def _written(file: Path, folder: Path, out: Path | None) -> bool:
    """Whether it lies in `out`, and that is inside the folder: visualizations beside or above are
    not a reason to leave anything out.
    """
    if out is None or out.resolve() in (folder.resolve(), *folder.resolve().parents):
        return False
    return out.resolve() in file.resolve().parents


def _card_name(name: Path, taken: set[str]) -> Path:
    """A .png that no other image has, on file systems that do not tell case either."""
    visualization, number = name.with_suffix(".png"), 1
    while str(visualization).casefold() in taken:
        number += 1
        visualization = name.with_name(f"{name.stem}-{number}.png")
    taken.add(str(visualization).casefold())
    return visualization


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
            raise ValueError(f"--output={out} is a file; expected a folder.")
        files += [out / target.visualization for target in targets]
    read = {target.file.resolve() for target in targets}
    for path in files:
        if path.resolve() in read:
            raise ValueError(f"{str(path)!r} would replace an image to look at; change --output.")
        if path.is_dir() or (path.exists() and not overwrite):
            raise ValueError(
                f"{str(path)!r} exists; give another place, or --overwrite to replace it."
            )
