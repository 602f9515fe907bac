"""Image files of a folder and its subfolders: which there are, and what is left out and why.

Symbolic links are followed, as who fills the folder decides; each folder is read once.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from grain_jax.data.checks import MAX_IMAGE_BYTES

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
)
# Images of formats that are not read: never left out without a word.
OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".ppm", ".pgm", ".tga", ".ico", ".svg"),
    *(".psd", ".raw", ".dng", ".cr2", ".nef", ".arw", ".dcm"),
)
# What systems and programs leave behind, beside files whose names begin with a dot.
LITTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found")

Identity = tuple[int, int]  # device and inode of a folder, the same through every link to it


@dataclass
class FolderContent:
    """What `read_folder` found, sorted; paths are relative to the folder, with "/" between."""

    images: list[str] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)  # of `images`
    unread: list[str] = field(default_factory=list)  # images of formats that are not read
    others: list[str] = field(default_factory=list)  # files whose names are not those of images
    broken: list[str] = field(default_factory=list)  # links that lead nowhere
    denied: list[str] = field(default_factory=list)  # folders that cannot be read
    repeated: list[str] = field(default_factory=list)  # links to folders that were read already
    shared: list[tuple[str, str]] = field(default_factory=list)  # likewise, by another call


def read_folder(folder: Path, elsewhere: dict[Identity, str] | None = None) -> FolderContent:
    """The files of a folder and its subfolders; hidden ones and `LITTER` are left out.

    Each folder is read once, however many links lead to it, and none that holds this one.
    `elsewhere`: folders that other calls have read, with their paths. They are not read again but
    listed as `shared`; what this call reads is added.
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
            except OSError:  # a link that leads nowhere or in a circle, or what has just gone
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
    """Whether a file or folder is hidden, or of those in `LITTER`."""
    return name.startswith(".") or name.casefold() in LITTER


def suffix(name: str) -> str:
    """The end of the name, in lower case and with the dot; "" for none."""
    return os.path.splitext(name)[1].lower()


def folder_identity(folder: str | Path) -> Identity:
    """What tells a folder from others, whatever it is called. Raises OSError."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def printable(text: str) -> str:
    r"""With "\xe9" for bytes of a file name that are not UTF-8: those can be neither printed nor
    written.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _entries(folder: Path, inside: str, content: FolderContent) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder / inside) as entries:
            return sorted((e for e in entries if not is_litter(e.name)), key=lambda e: e.name)
    except OSError:
        content.denied.append(inside)
        return []
