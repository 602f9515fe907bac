"""List the image files of a folder and its subfolders, and the files that are ignored.

Symbolic links are followed; each folder is read once.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from grain_jax.data.image_files import MAX_IMAGE_BYTES

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
)
# Images of formats that are not supported; ignoring them is always noted.
OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".ppm", ".pgm", ".tga", ".ico", ".svg"),
    *(".psd", ".raw", ".dng", ".cr2", ".nef", ".arw", ".dcm"),
)
# Files and folders created by operating systems, besides those whose names begin with a dot.
LITTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found")

Identity = tuple[int, int]  # device and inode of a folder, the same through every link


@dataclass
class FolderContent:
    """The result of `read_folder`: sorted paths, relative to the folder, with "/" as separator."""

    images: list[str] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)  # of `images`
    unread: list[str] = field(default_factory=list)  # images of formats that are not supported
    others: list[str] = field(default_factory=list)  # files whose names are not those of images
    broken: list[str] = field(default_factory=list)  # links that lead nowhere
    denied: list[str] = field(default_factory=list)  # folders that cannot be read
    repeated: list[str] = field(default_factory=list)  # links to folders that were read already
    shared: list[tuple[str, str]] = field(
        default_factory=list
    )  # (link, path) of folders that another call read


def read_folder(folder: Path, elsewhere: dict[Identity, str] | None = None) -> FolderContent:
    """The files of a folder and its subfolders, without hidden files and `LITTER`.

    Each folder is read once, also with several links to it; links to a parent are not followed.
    `elsewhere`: identities and paths of folders that other calls have read. They are listed as
    `shared` instead of being read again. Folders read by this call are added to it.
    """
    content = FolderContent()
    around = {folder_identity(parent) for parent in folder.resolve().parents}
    own: dict[Identity, str] = {folder_identity(folder): str(folder)}
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        real: list[str] = []
        linked: list[str] = []
        for entry in _entries(folder, inside, content):
            name = f"{inside}/{entry.name}" if inside else entry.name
            try:
                status = entry.stat()
            except OSError:  # a link that leads nowhere or in a circle, or a file just deleted
                content.broken.append(name)
                continue
            if stat.S_ISDIR(status.st_mode):
                identity = status.st_dev, status.st_ino
                if elsewhere is not None and identity in elsewhere:
                    content.shared.append((name, elsewhere[identity]))
                elif identity in own or identity in around:
                    content.repeated.append(name)
                else:
                    own[identity] = str(folder / name)
                    (linked if entry.is_symlink() else real).append(name)
            elif suffix(name) in IMAGE_SUFFIXES and stat.S_ISREG(status.st_mode):
                content.images.append(name)
                if status.st_size > MAX_IMAGE_BYTES:
                    content.too_large.append(name)
            elif suffix(name) in OTHER_IMAGE_SUFFIXES:
                content.unread.append(name)
            else:
                content.others.append(name)
        waiting += reversed([*real, *linked])
    for names in vars(content).values():
        names.sort()
    if elsewhere is not None:
        elsewhere |= own
    return content


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden or in `LITTER`."""
    return name.startswith(".") or name.casefold() in LITTER


def suffix(name: str) -> str:
    """The suffix in lower case, with the dot; "" for none."""
    return os.path.splitext(name)[1].lower()


def folder_identity(folder: str | Path) -> Identity:
    """Device and inode of a folder. Raises OSError where it cannot be reached."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def printable(text: str) -> str:
    r"""A file name with "\xe9" for bytes that are not UTF-8, which could not be printed."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _entries(folder: Path, inside: str, content: FolderContent) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder / inside) as entries:
            return sorted((e for e in entries if not is_litter(e.name)), key=lambda e: e.name)
    except OSError:
        content.denied.append(inside)
        return []
