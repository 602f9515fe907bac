"""One command line for several checkpoints: an option that is repeated, or a list with commas."""

from collections.abc import Iterator, Sequence

from grain_jax.paths import user_path

OPTION = "--checkpoint"
OF_ONE = ("output", "predictions")  # options that name one file


def one_a_checkpoint(arguments: Sequence[str]) -> list[list[str]]:
    """The same arguments once for each checkpoint; as they are where there is none or one.

    A path that exists is one checkpoint, with any commas in it. Raises ValueError for a checkpoint
    that is given twice.
    """
    rest: list[str] = []
    given: list[str] = []
    for word, value in _with_values(arguments):
        if value is None:
            rest.append(word)
        else:
            given += _separated(value)
    if len(given) < 2:
        return [list(arguments)]
    if twice := [name for i, name in enumerate(given) if name in given[:i]]:
        raise ValueError(f"{OPTION} names {twice[0]!r} twice; give each checkpoint once.")
    return [[f"{OPTION}={name}", *rest] for name in given]


def _with_values(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each word, and the checkpoint that it gives, alone or together with the next one."""
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name != OPTION:
            yield word, None
        elif equals:
            yield word, value
        else:
            following = next(words, None)
            yield word, following  # without one, the parser says so


def _separated(value: str) -> list[str]:
    if "," not in value or user_path(value).exists():
        return [value]
    return [name for name in value.split(",") if name]
