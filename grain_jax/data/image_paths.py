"""Paths of images in tables and lists, relative to a folder: one rule for all of them."""

import os
import posixpath
import re
from pathlib import Path

# Where "/" separates, "b:c.png" is a name like any other.
DRIVE = re.compile("[A-Za-z]:/" if os.sep == "/" else "[A-Za-z]:")


def path_inside(name: str, folder: Path) -> str:
    r"""The normalised relative path of `name` in `folder`, with "/" as separator and without "..".

    A backslash separates as "/" does, unless `folder` has a file with exactly that name. Symbolic
    links inside the folder are followed. Raises ValueError for an absolute path, and where ".."
    leads out of the folder.
    """
    literal = posixpath.normpath(name)
    odd = "\\" in name and os.sep == "/"
    if odd and not _leads_out(literal) and os.path.isfile(folder / literal):
        return literal
    path = posixpath.normpath(name.replace("\\", "/"))
    if _leads_out(path):
        raise ValueError(
            f"{name!r} leads out of the folder; give a relative path inside it (symbolic links are "
            "followed)."
        )
    return path


def _leads_out(path: str) -> bool:
    return path.startswith(("/", "../")) or path == ".." or bool(DRIVE.match(path))
