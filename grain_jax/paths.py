"""Paths as people write them: "~" is their home folder, also where no shell has replaced it.

A shell leaves the "~" of `--output=~/sets` and of a string in Python alone.
"""

import os
from pathlib import Path


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
