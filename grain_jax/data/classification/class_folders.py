"""Labelled images with one subfolder per class, as in torchvision's `ImageFolder`."""

import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grain_jax.data.classification.image_folder import (
    IMAGE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    FolderContent,
    Identity,
    folder_identity,
    is_litter,
    printable,
    read_folder,
    suffix,
)
from grain_jax.data.image_files import MAX_IMAGE_BYTES

SPLIT = re.compile(
    r"(train|val|test)\d*|training|valid|validation|testing|dev|eval|evaluation", re.IGNORECASE
)
LAYOUTS = (
    "Expected a folder with a labels.csv (columns file,label), or with one subfolder of images "
    "for each class."
)
SHOWN = 3  # names listed in a message


@dataclass(frozen=True)
class ClassFolders:
    """The images of a folder with one subfolder per class."""

    files: tuple[str, ...]  # relative to the folder
    labels: tuple[str, ...]  # of each file
    classes: tuple[str, ...]  # including those without images
    notes: tuple[str, ...] = ()  # sentences on ignored files and on nested subfolders


def read_class_folders(root: Path) -> ClassFolders:
    """The images of a folder whose subfolders are classes.

    An empty subfolder is a class too, as the task would be easier without it. Raises ValueError for
    images that cannot be reached or belong to two classes, for subfolders with files but no images,
    and for subfolders that look like splits of a data set.
    """
    found: dict[str, FolderContent] = {}
    loose: list[str] = []
    read: dict[Identity, str] = {}
    above = {folder_identity(root): str(root)}
    for entry in _entries(root):
        try:
            status = entry.stat()
        except OSError as error:
            raise ValueError(
                f"{printable(entry.path)!r} cannot be reached ({error.strerror}): a link that "
                "leads nowhere. Restore its target, or remove it."
            ) from error
        if stat.S_ISDIR(status.st_mode):
            if same := (read | above).get((status.st_dev, status.st_ino)):
                raise _one_folder(entry.path, same)
            if entry.name != printable(entry.name):
                raise ValueError(
                    f"The name of the class folder {printable(entry.path)!r} is not in UTF-8, so "
                    "it cannot be used in a text. Rename it."
                )
            found[entry.name] = read_folder(Path(entry.path), read)
            _check_class(Path(entry.path), found[entry.name])
        elif suffix(entry.name) in (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES):
            loose.append(entry.name)
    folders = ClassFolders(
        files=tuple(f"{label}/{name}" for label in found for name in found[label].images),
        labels=tuple(label for label in found for _ in found[label].images),
        classes=tuple(found),
        notes=tuple(_notes(found, loose)),
    )
    with_images = list(dict.fromkeys(folders.labels))
    if with_images and all(SPLIT.fullmatch(label) for label in with_images):
        raise ValueError(
            f"The subfolders of {str(root)!r} look like splits of a data set, not like classes "
            f"({_first(with_images)}). {LAYOUTS}{layout_hint(root, folders)}"
        )
    return folders


def layout_hint(root: Path, folders: ClassFolders) -> str:
    """Hint for an error: the subfolder whose own subfolders look like classes; "" for none."""
    inside: dict[str, set[str]] = defaultdict(set)
    for file in folders.files:
        label, *rest = file.split("/", 2)
        if len(rest) > 1:
            inside[label].add(rest[0])
    several = sorted(
        (label for label, names in inside.items() if len(names) > 1),
        key=lambda label: (label.casefold().startswith("train"), label),  # a test split first
    )
    if not several:
        return ""
    return (
        f" The subfolders of {str(root / several[0])!r} look like the classes "
        f"({_first(sorted(inside[several[0]]))}); give that folder."
    )


def _entries(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            return sorted((e for e in entries if not is_litter(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise ValueError(f"The folder {str(root)!r} cannot be read: {error.strerror}.") from error


def _check_class(folder: Path, content: FolderContent) -> None:
    """Raises ValueError for a folder whose metrics would silently be wrong."""
    name = printable(str(folder))
    if content.denied:
        raise ValueError(
            f"The folder {printable(str(folder / content.denied[0]))!r} cannot be read. Change its "
            "permissions, or remove it."
        )
    if content.broken:
        raise ValueError(
            f"{len(content.broken)} of the files of {name!r} cannot be reached, "
            f"{printable(content.broken[0])!r} first: links that lead nowhere. Restore their "
            "targets, or remove them."
        )
    if content.shared:
        link, same = content.shared[0]
        raise _one_folder(str(folder / link), same)
    if content.too_large:
        raise ValueError(
            f"Image {printable(content.too_large[0])!r} of {name!r} is larger than "
            f"{MAX_IMAGE_BYTES} bytes. Shrink it, or remove it from the set."
        )
    if content.others and not content.images and not content.unread:
        raise ValueError(
            f"{name!r} holds files but no images ({_by_suffix(content.others)}; images end in "
            f"{', '.join(IMAGE_SUFFIXES)}). Move it out if it is not a class; else add images, "
            "or empty it."
        )


def _one_folder(path: str, same: str) -> ValueError:
    return ValueError(
        f"{printable(path)!r} and {printable(same)!r} are the same folder, through a link, so its "
        "images would be in two classes. Remove one of them."
    )


def _notes(found: dict[str, FolderContent], loose: Sequence[str]) -> Iterator[str]:
    def named(part: str) -> list[str]:
        return [f"{label}/{name}" for label in found for name in getattr(found[label], part)]

    if loose:
        yield (
            f"{len(loose)} images are not in a class folder and are ignored "
            f"({printable(loose[0])!r} first)."
        )
    if unread := named("unread"):
        yield (
            f"{len(unread)} images are ignored, as their format is not supported "
            f"({_by_suffix(unread)}; {printable(unread[0])!r} first). Convert them to PNG."
        )
    if others := named("others"):
        yield (
            f"{len(others)} files are ignored, as their names are not those of images "
            f"({_by_suffix(others)}; {printable(others[0])!r} first)."
        )
    if repeated := named("repeated"):
        yield (
            f"{len(repeated)} links to folders are ignored, as they lead to a folder that is read "
            f"already or that contains them ({printable(repeated[0])!r} first)."
        )
    if nested := [name for name in named("images") if name.count("/") > 1]:
        label, inner, _ = nested[0].split("/", 2)
        yield (
            f"{len(nested)} images are in subfolders of class folders, as in "
            f"{printable(f'{label}/{inner}')!r}; they belong to the outer class, {label!r}."
        )


def _by_suffix(names: Sequence[str]) -> str:
    counts = Counter(suffix(name) or "no suffix" for name in names)
    return ", ".join(f"{count} {printable(end)}" for end, count in counts.most_common(5))


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
