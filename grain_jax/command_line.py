"""What all commands have in common: exit statuses, and how options are parsed."""

import argparse
import enum
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from grain_jax.disk import disk_trouble


class ExitStatus(enum.IntEnum):
    """How every command ends; SIGTERM ends with 143 where a command saves first."""

    DONE = 0
    STOPPED = 1  # by what no option is to blame for: a full disk, steps that are not finite
    MISTAKE = 2  # something to change in the command, its settings or its data
    SKIPPED = 3  # done but for images that could not be read
    INTERRUPTED = 130  # Ctrl-C


def end(status: int) -> NoReturn:
    """Ends the process of a command; at once where it was interrupted, as threads of XLA may still
    compute, and the orderly end of Python would pull the ground from under them.
    """
    if status == ExitStatus.INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def status_of(error: Exception) -> ExitStatus:
    """`STOPPED` where the disk refused something, else `MISTAKE`."""
    return ExitStatus.MISTAKE if disk_trouble(error) is None else ExitStatus.STOPPED


class NotParsed(Exception):
    """The command ends here: help was asked for, or an option is wrong and has been named."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


Options = TypeVar("Options")


def parse(
    options: type[Options],
    arguments: Sequence[str],
    *,
    command: str,
    description: str | None,
    default: Options | None = None,
) -> Options:
    """The dataclass `options` from a command line; its comments are the text of --help.

    Prints what is wrong, with the nearest name that exists, or the help, and raises NotParsed.
    """
    _refuse_repeated(arguments)
    try:
        parsed = tyro.cli(
            options,
            prog=f"python -m grain_jax.{command}",
            description=description,
            args=list(arguments),
            default=default,
            use_underscores=True,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as end:
        raise NotParsed(ExitStatus.MISTAKE if end.code else ExitStatus.DONE) from None
    assert isinstance(parsed, options)
    return parsed


def _refuse_repeated(arguments: Sequence[str]) -> None:
    """ValueError for an option that is given twice, of which the parser would keep the last."""
    given: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            continue
        if not equals:
            following = arguments[position + 1 : position + 2]
            value = "" if not following or following[0].startswith("--") else following[0]
        name = name.replace("-", "_")
        if given.setdefault(name, value) != value:
            raise ValueError(
                f"--{name.strip('_')} is given twice, {given[name]!r} and {value!r}, and takes one "
                "value; give one of them, or run the command once for each."
            )


class Parser(argparse.ArgumentParser):
    """Shows the text of the command's module as it is, and refuses a value that is given twice.

    argparse would keep the last and drop the others without a word.
    """

    def __init__(self, command: str, description: str | None):
        super().__init__(
            prog=f"python -m grain_jax.{command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # a typing error would be taken for another option
        )
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)


def share_option(text: str) -> float:
    """A number from 0 to 1, as a type of argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:  # NaN too
        raise argparse.ArgumentTypeError(f"{text!r} should be a number from 0 to 1")
    return value


def shares_option(text: str) -> tuple[float, ...]:
    """Numbers from 0 to 1 with commas between them, as a type of argparse."""
    try:
        return tuple(share_option(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} should be numbers from 0 to 1, as in 1,0.5,0"
        ) from None


def count_option(text: str) -> int:
    """A whole number of at least 1, as a type of argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of at least 1")
    return value


class _StoreOnce(argparse.Action):
    """Stores a value; an error where there was one."""

    _earlier: Any = None
    _given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if self._given and option_string is not None:
            given = f"{str(self._earlier)!r} and {str(values)!r}"
            parser.error(
                f"{option_string} is given twice, {given}, and takes one value; give one of them, "
                "or run the command once for each."
            )
        self._given, self._earlier = True, values
        setattr(namespace, self.dest, values)
