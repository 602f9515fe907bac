"""One command line for several checkpoints: an option that is repeated, or a list with commas."""

from collections.abc import Sequence
from pathlib import Path, PurePath

from grain_jax.evaluation.kept_predictions import NOT_KEPT
from grain_jax.paths import local_path, user_path
from grain_jax.training import run_folder

OPTION = "--checkpoint"
# Options that name a file, or a folder with one for each checkpoint: their words on the command
# line, of which the first is today's, and what the files end in.
PLACES = {"output": (("--output", "--out"), ".json"), "predictions": (("--predictions",), ".jsonl")}


def one_a_checkpoint(arguments: Sequence[str]) -> list[list[str]]:
    """The same arguments once for each checkpoint; as they are where there is none or one.

    An --output or --predictions that is a folder (it ends in "/", or is one) becomes a file in it
    for each checkpoint, called after it: "runs/a" is written to "FOLDER/a.json". A path that exists
    is one checkpoint, with any commas in it. Raises ValueError for a checkpoint that is given
    twice, where two would write to one file, and as `folders`.
    """
    rest, given = _taken_out(arguments, (OPTION,))
    names = [name for value in given for name in _separated(value)]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"{OPTION} names {twice[0]!r} twice; give each checkpoint once.")
    files: list[list[str]] = [[] for _ in names]
    for option, folder in folders(arguments).items():
        words, suffix = PLACES[option]
        if names:
            rest, _ = _taken_out(rest, words)
            for one, file in zip(files, _files(option, folder, names, suffix), strict=True):
                one.append(f"--{option}={file}")
    if len(names) < 2 and not any(files):
        return [list(arguments)]
    return [[f"{OPTION}={name}", *rest, *one] for name, one in zip(names, files, strict=True)]


def folders(arguments: Sequence[str]) -> dict[str, Path]:
    """The folder that each of `PLACES` names, whether it exists or not; those that name one.

    Raises ValueError for an address: files of results are of this machine.
    """
    found = dict[str, Path]()
    for option, (words, _) in PLACES.items():
        _, values = _taken_out(arguments, words)
        if len(values) == 1 and _is_folder(values[0]):
            found[option] = local_path(values[0], option=f"--{option}")
    return found


def _is_folder(value: str) -> bool:
    if value in ("", str(NOT_KEPT)):
        return False
    return value.endswith("/") or user_path(value).is_dir()


def _files(option: str, folder: Path, names: Sequence[str], suffix: str) -> list[Path]:
    """A file in the folder for each checkpoint."""
    found: dict[str, str] = {}
    for name in names:
        file = f"{_called(name)}{suffix}"
        if (known := found.setdefault(file, name)) != name:
            raise ValueError(
                f"--{option}={folder} would get one file, {file}, for both {known!r} and {name!r}; "
                f"evaluate one of them by itself, with another --{option}."
            )
    return [folder / file for file in found]


def _called(checkpoint: str) -> str:
    """The name of a run, also where its folder of checkpoints or "." is given; of other models the
    last part of their path, or of their name on the hub.
    """
    path = PurePath(checkpoint)
    if user_path(checkpoint).exists():
        path = user_path(checkpoint).resolve()
    return path.parent.name if path.name == run_folder.FOLDER else path.name


def _taken_out(arguments: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without the options, and the values that these have, alone or in the next word."""
    rest, values = list[str](), list[str]()
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        following = None if name not in options or equals else next(words, None)
        if name in options and (equals or following is not None):
            values.append(value if equals else str(following))
        else:
            rest.append(word)  # an option without a value too: the parser says so
    return rest, values


def _separated(value: str) -> list[str]:
    if "," not in value or user_path(value).exists():
        return [value]
    return [name for name in value.split(",") if name]
