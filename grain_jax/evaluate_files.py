"""The files that `python -m grain_jax.evaluate` writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from grain_jax.command_line import ExitStatus
from grain_jax.evaluate_notes import print_line, say_error
from grain_jax.evaluation import results_file


class Places(Protocol):
    """Options that say where results go, and what they are of."""

    @property
    def checkpoint(self) -> Path: ...
    @property
    def data(self) -> Path | None: ...
    @property
    def suite(self) -> str | None: ...
    @property
    def tasks(self) -> str | None: ...
    @property
    def output(self) -> Path | None: ...
    @property
    def predictions(self) -> Path | None: ...
    @property
    def overwrite(self) -> bool: ...


def finish(
    options: Places,
    report: dict[str, Any],
    unwritten: OSError | None,
    tables: Callable[[Console], None] | None,
    output: Console,
    messages: Console,
    *,
    line: str = "",
) -> int:
    """Prints the tables, if any, and writes the results of one model; returns the exit status.

    `line`: all that is printed, with the files behind it.
    """
    try:
        if tables is not None:
            tables(output)
    finally:  # also where the reader of a pipe has gone
        said = write_results(options, report, messages)
        if unwritten is not None:
            say_error(
                messages,
                f"the predictions could not be written: {unwritten}. Give another --predictions.",
            )
        elif said and options.predictions:
            said.append(f"Predictions: {options.predictions}")
    for text in [". ".join([line, *said])] if line else said:
        print_line(output, text)
    return ExitStatus.DONE if said and unwritten is None else ExitStatus.STOPPED


def write_results(options: Places, report: dict[str, Any], messages: Console) -> list[str]:
    """What was written, as lines to print; [] and a message where it could not be."""
    try:
        path = options.output
        if path is None:
            folder = results_file.default_folder(options.checkpoint)
            data = options.data if options.suite is None else Path(options.suite).with_suffix("")
            path = folder / results_file.default_name(
                options.checkpoint, report, data=data, tasks=options.tasks or ""
            )
        path, new = results_file.write_results(report, path, overwrite=options.overwrite)
    except (OSError, ValueError) as error:
        say_error(messages, f"the results could not be written: {error}. Give another --output.")
        return []
    return [f"Written to {path}" if new else f"{path} holds these results already."]
