"""What all commands have in common: exit statuses, how options are parsed, a bar of progress."""

import contextlib
import dataclasses
import enum
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from grain_jax.config.migration import COMMANDS, migrate_options
from grain_jax.disk import cannot_write, disk_trouble
from grain_jax.paths import run_path, user_path


class ExitStatus(enum.IntEnum):
    """How every command ends; SIGTERM ends with 143 where a command saves first."""

    DONE = 0
    STOPPED = 1  # by what no option is to blame for: a full disk, steps that are not finite
    MISTAKE = 2  # something to change in the command, its settings or its data
    SKIPPED = 3  # done but for images that could not be read
    AGAIN = 75  # a step hung, another process left, no way to storage: launchers repeat the command
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


def print_error(error: Exception, console: Console, *, folder: Path, kept: str) -> ExitStatus:
    """Prints the error that ends a command, and returns its exit status.

    `kept`: what is not lost where the disk refused to write to `folder`.
    """
    message = f"Error: {error}"
    if cannot_write(error, folder):
        message += f" The same command continues once it can write; {kept}."
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    return status_of(error)


@contextlib.contextmanager
def may_be_cut() -> Iterator[None]:
    """Around what a command prints: where the reader of stdout closes it before the end, as `head`
    does, the rest is dropped without a word, and the command continues.
    """
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # the latter is how rich answers a closed pipe
        _drop_output()


def _drop_output() -> None:
    """Else Python writes what is left once more at its end, and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Advance(typing.Protocol):
    """Moves a bar of progress on."""

    def __call__(self, done: int, total: int, state: str) -> None: ...


@contextlib.contextmanager
def progress_bar(console: Console, title: str, *, state: str) -> Iterator[Advance]:
    """A bar with what is done of how many, the time left, and a state in words.

    `state` is shown until the first call of what it yields, where the total is not known.
    """
    with ProgressBar(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
        console=console,
    ) as bar:
        task = bar.add_task("", total=None, state=state)

        def advance(done: int, total: int, state: str) -> None:
            bar.update(task, total=total, completed=done, state=state)

        yield advance


def one_word(
    read: Callable[[str], Any], metavar: str, choices: tuple[str, ...] | None = None
) -> PrimitiveConstructorSpec[Any]:
    """How a value is read from its word; the message of a ValueError of `read` is shown.

    It stands in `Annotated[X | None, ...]`, where tyro's own reading takes the word "None" for
    None.
    """
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar if choices is None else "{" + ",".join(choices) + "}",
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
        choices=choices,
    )


def one_of(choices: tuple[str, ...]) -> PrimitiveConstructorSpec[Any]:
    """How one of `choices` is read."""
    return one_word(str, "", choices)


def default_is(text: str) -> Any:
    """What --help says of the default, where it is decided later."""
    return arg(help_behavior_hint=f"(default: {text})")


def number(text: str) -> float:
    """A finite number; NaN for anything else, which no bound accepts."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def positive(text: str) -> float:
    """A number above 0."""
    if not (value := number(text)) > 0:
        raise ValueError(f"{text!r} should be a number above 0")
    return value


def weight(text: str) -> float:
    """A number of at least 0."""
    if not (value := number(text)) >= 0:
        raise ValueError(f"{text!r} should be a number of at least 0")
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (value := number(text)) <= 1:
        raise ValueError(f"{text!r} should be a number from 0 to 1")
    return value


def inner_fraction(text: str) -> float:
    """A number between 0 and 1, neither of them."""
    if (value := fraction(text)) in (0, 1):
        raise ValueError(f"{text!r} should be between 0 and 1, neither of them")
    return value


def fractions(text: str) -> tuple[float, ...]:
    """Numbers from 0 to 1 with commas between them."""
    try:
        return tuple(fraction(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} should be numbers from 0 to 1, as in 1,0.5,0") from None


def count(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ValueError(f"{text!r} should be a whole number of at least 1")
    return value


def integer(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} should be a whole number") from None


# Types of fields of options; those that may be None say nothing of a default in --help.
_no_default = arg(help_behavior_hint="")
_step_or_best = tyro.conf.create_mutex_group(required=False)
Count = Annotated[int, one_word(count, "N")]
OptionalCount = Annotated[int | None, one_word(count, "N"), _no_default]
OptionalText = Annotated[str | None, one_word(str, "TEXT"), _no_default]
RequiredPath = Annotated[Path, one_word(user_path, "PATH")]
OptionalPath = Annotated[Path | None, one_word(user_path, "PATH"), _no_default]
Step = Annotated[int | None, _step_or_best, one_word(integer, "N"), default_is("the newest")]
Best = Annotated[bool, _step_or_best]
RunPath = Annotated[Path, one_word(run_path, "PATH")]  # of a bucket too
OUT = arg(aliases=("--out",))  # the name that --output had in most commands


class NotParsed(SystemExit):
    """The command ends here: help was asked for, or an option is wrong and has been named."""

    def __init__(self, status: int):
        super().__init__(int(status))
        self.status = status


Options = TypeVar("Options")


def parse(
    options: type[Options],
    arguments: Sequence[str] | None,
    *,
    command: str,
    description: str | None,
    default: Options | None = None,
    may_repeat: bool = False,
) -> Options:
    """The dataclass `options` from a command line; its comments are the text of --help.

    Older names of the options of `command` are understood. `arguments`: None for those of the
    process. A value that is given twice is refused, also where it is the same unless `may_repeat`.
    Prints what is wrong, with the nearest name that exists, or the help, and raises NotParsed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if command in COMMANDS:
        arguments = migrate_options(arguments, command)
    known = dict(_spellings(options))
    try:
        _refuse_repeated(arguments, known, may_repeat=may_repeat)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise NotParsed(ExitStatus.MISTAKE) from None
    try:
        parsed = tyro.cli(
            options,
            prog=f"python -m grain_jax.{command}",
            description=description,
            args=list(_words(arguments, known)),
            default=default,
            use_underscores=True,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as end:
        with may_be_cut():  # flushes: short help is still in the buffer
            pass
        raise NotParsed(ExitStatus.MISTAKE if end.code else ExitStatus.DONE) from None
    except BrokenPipeError:  # only the help is printed to stdout
        _drop_output()
        raise NotParsed(ExitStatus.DONE) from None
    assert isinstance(parsed, options)
    return parsed


def given_options(arguments: Sequence[str]) -> frozenset[str]:
    """Names of the options in a command line, as "--batch_size", without their values."""
    names = (word.partition("=")[0] for word in arguments if re.match(r"--?[A-Za-z]", word))
    return frozenset(map(_spelled, names))


def refuse_unread(given: Collection[str], unread: Mapping[str, str], *, command: str) -> None:
    """Raises ValueError for an option that was given and that the command would not read.

    `unread`: such options, each with what to do instead.
    """
    for name, instead in unread.items():
        if name in given:
            raise ValueError(f"{name} has no effect on {command}; {instead}.")


_ARG: type[Any] = type(arg())


def _spellings(options: type[Any], prefix: str = "") -> Iterator[tuple[str, tuple[str, bool]]]:
    """Each spelling of an option, with "_", its name, and whether it takes no value."""
    hints = typing.get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        notes = [note for note in getattr(hints[field.name], "__metadata__", ())]
        declared = typing.get_args(hints[field.name])[0] if notes else hints[field.name]
        name, aliases = field.name, ()
        for note in notes:
            if isinstance(note, _ARG):
                name = name if note.name is None else note.name
                aliases = note.aliases or aliases
        if dataclasses.is_dataclass(declared):
            assert isinstance(declared, type)
            yield from _spellings(declared, f"{prefix}{name}." if name else prefix)
            continue
        for spelling in (prefix + name, *aliases):
            yield _spelled(spelling), (_spelled(prefix + name), declared is bool)


def _spelled(name: str) -> str:
    return "--" + name.lstrip("-").replace("-", "_")


def _words(arguments: Sequence[str], known: dict[str, tuple[str, bool]]) -> Iterator[str]:
    """`arguments` as tyro takes them, without "=" in unknown options, whose nearest name it looks
    for then. A switch may have a value or "no" before it, and one dash do for two, as absl had it.
    """
    for position, argument in enumerate(arguments):
        if argument == "--":
            yield from arguments[position:]
            return
        name, equals, value = argument.partition("=")
        if re.match(r"-[a-z]\w", name) and _spelled(name) in known:
            name = f"-{name}"
        # Settings, whose names have a dot, always have a value.
        is_switch = "." not in name and known.get(_spelled(name), ("", False))[1]
        if name.startswith("--no") and known.get(_spelled(name[4:]), ("", False))[1]:
            continue
        if is_switch and value.lower() in ("false", "f", "0"):
            continue
        if is_switch and value.lower() in ("true", "t", "1"):
            yield name
        elif name.startswith("--") and equals and _spelled(name) not in known:
            yield from (name, value)
        else:
            yield f"{name}{equals}{value}"


def _refuse_repeated(
    arguments: Sequence[str], known: dict[str, tuple[str, bool]], *, may_repeat: bool
) -> None:
    """ValueError for an option that is given twice, of which the parser would keep the last."""
    given: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--":
            return
        if not name.startswith("--"):
            continue
        name, is_flag = known.get(_spelled(name), (_spelled(name), False))
        if is_flag:
            continue
        if not equals:
            following = arguments[position + 1 : position + 2]
            value = "" if not following or following[0].startswith("--") else following[0]
        if name in given and not (may_repeat and given[name] == value):
            raise ValueError(
                f"{name} is given twice, {given[name]!r} and {value!r}, and takes one value; give "
                "one of them, or run the command once for each."
            )
        given[name] = value
