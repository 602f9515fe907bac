"""Names of zero-shot sets in metrics."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from grain_jax.config import EvaluationConfig
from grain_jax.data.classification.image_folder import printable
from grain_jax.paths import user_path

TFDS = "tfds:"  # in front of the name of a TFDS data set, which is given in place of a folder


def zero_shot_folders(
    settings: EvaluationConfig, *, final: bool, taken: Sequence[str]
) -> dict[str, str]:
    """Name in metrics -> folder of labelled images, for the sets that are evaluated.

    A set is named after its folder. Where two folders have the same name, or one in `taken`, names
    of parent folders are put in front: "flowers-val".

    Args:
        final: the sets evaluated at the end of a run, else those evaluated at intervals.
        taken: names of evaluation sets of the run's own data.

    Raises ValueError for a folder that is given twice in one setting.
    """
    every: dict[Path, str] = {}
    for setting in ("zero_shot", "zero_shot_during_training"):
        given = [_full(folder) for folder in getattr(settings, setting)]
        if twice := [str(path) for i, path in enumerate(given) if path in given[:i]]:
            raise ValueError(f"evaluation.{setting} names the folder {twice[0]!r} twice.")
        every |= dict(zip(given, getattr(settings, setting), strict=True))
    names = _distinct_names(list(every), taken=taken)
    during = {_full(folder) for folder in settings.zero_shot_during_training}
    return {
        name: every[path]
        for path, name in zip(every, names, strict=True)
        if final or path in during
    }


def _full(folder: str | os.PathLike[str]) -> Path:
    """The absolute path with links unresolved, as sets are named by the path that is given."""
    if os.fspath(folder).startswith(TFDS):
        return Path(folder)
    return Path(os.path.abspath(user_path(folder)))


def folder_name(folder: str | os.PathLike[str]) -> str:
    """The name of the set in `folder`: the last part of its absolute path, "root" for "/".

    A link gives its own name, "." that of the current folder.
    """
    return _parts(_full(folder))[-1]


def _parts(path: Path) -> list[str]:
    if str(path).startswith(TFDS):  # "eurosat-rgb-2.0.0" of tfds:eurosat/rgb:2.0.0
        return ["-".join(filter(None, re.split("[/:]", str(path).removeprefix(TFDS))))]
    return [printable(part) for part in path.parts if part != os.sep] or ["root"]


def _distinct_names(paths: Sequence[Path], *, taken: Sequence[str]) -> list[str]:
    """The last parts of each path, as many as make the names distinct and not in `taken`."""
    parts = [_parts(path) for path in paths]
    depths = [1] * len(paths)
    while True:
        names = ["-".join(own[-depth:]) for own, depth in zip(parts, depths, strict=True)]
        counts = Counter([*names, *taken])
        longer = [i for i, name in enumerate(names) if counts[name] > 1]
        if not longer:
            return names
        if all(depths[i] > len(parts[i]) for i in longer):  # "a-b/c" and "a/b-c"
            return [f"{name}-{i + 1}" if i in longer else name for i, name in enumerate(names)]
        for i in longer:
            depths[i] += 1
