"""Where an image that a table or a list names lies below its folder: one rule for all of them."""

import os
import posixpath
import re
from pathlib import Path

# Where "/" separates, "b:c.png" is a name like any other.
DRIVE = re.compile("[A-Za-z]:/" if os.sep == "/" else "[A-Za-z]:")


def path_inside(name: str, folder: Path) -> str:
    r"""`name` below `folder`, with "/" between its parts and without "." and "..".

    A backslash separates as "/" does, unless `folder` has a file of that very name. Symbolic links
    inside the folder are followed: who fills it decides. Raises ValueError for an absolute path,
    and for ".." that leads out.
    """
    literal = posixpath.normpath(name)
    odd = "\\" in name and os.sep == "/"
    if odd and not _leads_out(literal) and os.path.isfile(folder / literal):
        return literal
    path = posixpath.normpath(name.replace("\\", "/"))
    if _leads_out(path):
        raise ValueError(
            f"{name!r} leads out of the folder; images must lie inside it, where links are "
            "followed."
        )
    return path


def _leads_out(path: str) -> bool:
    return path.startswith(("/", "../")) or path == ".." or bool(DRIVE.match(path))
