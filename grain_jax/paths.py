"""Paths as people write them: "~" is their home folder, also where no shell has replaced it.

A shell leaves the "~" of `--output=~/sets` and of a string in Python alone. A folder of a bucket is
an address, "gs://bucket/name"; where one is taken, `run_path` reads it.
"""

import difflib
import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from grain_jax import buckets

# `Path`, or what `run_path` gives for a folder of a bucket: it has the methods that are used here.
if TYPE_CHECKING:
    AnyPath = Path
else:
    AnyPath = PurePath


def expand_home(text: str) -> str:
    """`text` with a leading "~" or "~user" replaced by that home folder.

    A name such as "~draft.png" stays as it is where no user is called so. Raises ValueError where
    the user of this process has no home folder: HOME is not set, and no account has its number.
    """
    expanded = os.path.expanduser(text)
    if expanded == text and (text == "~" or text.startswith(("~/", f"~{os.sep}"))):
        raise ValueError(
            f"{text!r} starts at a home folder, and this process has none; set HOME, or give the "
            "whole path."
        )
    return expanded


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path that a user gave, "~" expanded. Raises ValueError where there is no home folder."""
    return Path(expand_home(os.fspath(text)))


def local_path(text: str, *, option: str = "") -> Path:
    """`user_path` of a file or folder of this machine.

    Raises ValueError, which begins with the `option` given, for an address such as gs://...
    """
    if "://" in text:
        raise ValueError(
            f"{option}{': ' if option else ''}{text!r} is an address, and a folder or file of this "
            "machine was expected; copy or mount it here first"
        )
    return user_path(text)


def run_path(text: str | os.PathLike[str], *, option: str = "") -> AnyPath:
    """`local_path`, or the folder of a bucket for "gs://bucket/name".

    Raises ValueError for any other address, for one without a folder in the bucket, and where what
    reads buckets is not installed.
    """
    text = os.fspath(text)
    return buckets.folder(text) if buckets.in_bucket(text) else local_path(text, option=option)


def nearest_hint(path: Path) -> str:
    """ "; did you mean 'PATH'?" with the path that exists and whose name is nearest; "" without.

    The first part that does not exist is taken for one that is misspelled.
    """
    known = path
    while not known.parent.exists():
        known = known.parent
    try:
        names = sorted(os.listdir(known.parent))
    except OSError:
        return ""
    rest = path.relative_to(known)
    near = difflib.get_close_matches(known.name, names, n=3, cutoff=0.7)
    found = next((p for name in near if (p := known.parent / name / rest).exists()), None)
    return "" if found is None or found == path else f"; did you mean {str(found)!r}?"


def no_file(path: Path) -> str:
    """ "There is no file 'PATH'", or that it is a folder, with the files in it that it may be."""
    if not path.is_dir():
        return f"There is no file {str(path)!r}"
    inside = sorted(one.name for one in path.iterdir() if one.is_file())[:3]
    such = f", such as {', '.join(map(repr, inside))} in it" if inside else ""
    return f"{str(path)!r} is a folder, and a file is needed{such}"


def absolute(path: AnyPath) -> AnyPath:
    """The whole path; an address is one already."""
    return path if buckets.in_bucket(path) else path.absolute()
