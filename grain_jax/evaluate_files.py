"""The files that `python -m grain_jax.evaluate` writes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rich.console import Console

from grain_jax.command_line import ExitStatus
from grain_jax.evaluate_notes import print_line, same_place, say_error
from grain_jax.evaluation import kept_predictions, results_file
from grain_jax.evaluation.kept_predictions import NOT_KEPT
from grain_jax.evaluation.predictions import check_suffix
from grain_jax.parallel import processes


class Places(Protocol):
    """Options that say where results go, and what they are of."""

    @property
    def checkpoint(self) -> Path: ...
    @property
    def output(self) -> Path | None: ...
    @property
    def predictions(self) -> Path | None: ...
    @property
    def overwrite(self) -> bool: ...


def check_places(options: Places, *, folders: Mapping[str, Path] | None = None) -> None:
    """Refuses places that cannot be written to, before anything is loaded. Raises ValueError.

    `folders`: what options name, where it is a folder, which may not be there yet.
    """
    for name, path in (("output", options.output), ("predictions", options.predictions)):
        if path is not None and not (name == "predictions" and path == NOT_KEPT):
            made = (folders or {}).get(name)
            results_file.check_place(name, path, overwrite=options.overwrite, made=made)
    named = options.predictions not in (None, NOT_KEPT)
    if options.predictions is not None and named:
        check_suffix(options.predictions)
    if options.output is None:
        results_file.default_folder(options.checkpoint)
    elif options.predictions is not None and same_place(options.predictions, options.output):
        raise ValueError("--output and --predictions name one file; give each its own.")


@contextlib.contextmanager
def place_of_predictions(options: Places) -> Iterator[Path | BinaryIO | None]:
    """Where `PredictionsFile` writes to: the file that the options name; without one an open file
    for `finish`, beside results in a file; else, and in processes that do not write, None.
    """
    output = options.output
    if options.predictions == NOT_KEPT or not processes.speaks():
        yield None
    elif options.predictions is not None:
        yield options.predictions
    elif output is not None and _is_stream(output):
        yield None
    else:
        folder = (
            results_file.default_folder(options.checkpoint) if output is None else output.parent
        )
        there = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
        with kept_predictions.nameless_file(there) as file:  # FOLDER/ is made for the results
            yield file


def _is_stream(path: Path) -> bool:
    """Whether it is a device or a pipe, beside which nothing is written."""
    return path.absolute().is_relative_to("/dev") or (path.exists() and not path.is_file())


def finish(
    options: Places,
    report: dict[str, Any],
    predictions: Path | BinaryIO | None,
    unwritten: OSError | None,
    tables: Callable[[Console], None] | None,
    output: Console,
    messages: Console,
    *,
    data: Path | None,
    tasks: str = "",
    line: str = "",
) -> int:
    """Prints the tables, if any, and writes the results of one model; returns the exit status.

    `predictions` are of `place_of_predictions`, and `unwritten` is why they could not be written,
    if so. `data` and `tasks` are part of the results' name where no --output is given. `line`: all
    that is printed, with the file of results behind it.
    """
    try:
        if tables is not None:
            tables(output)
    finally:  # also where the reader of a pipe has gone
        said, unwritten = _write(options, report, predictions, unwritten, messages, data, tasks)
        if unwritten is not None:
            say_error(
                messages,
                f"the predictions could not be written: {unwritten}. Give another --predictions, "
                "or none.",
            )
    for text in [". ".join([line, *said[:1]])] if line else said:
        print_line(output, text)
    return ExitStatus.DONE if said and unwritten is None else ExitStatus.STOPPED


def _write(
    options: Places,
    report: dict[str, Any],
    predictions: Path | BinaryIO | None,
    unwritten: OSError | None,
    messages: Console,
    data: Path | None,
    tasks: str,
) -> tuple[list[str], OSError | None]:
    """What was written, as lines to print, and why the predictions were not; [] and a message
    where the results could not be.
    """
    try:
        path = options.output
        if path is None:
            folder = results_file.default_folder(options.checkpoint)
            path = folder / results_file.default_name(
                options.checkpoint, report, data=data, tasks=tasks
            )
        path, new = results_file.write_results(report, path, overwrite=options.overwrite)
    except (OSError, ValueError) as error:
        say_error(messages, f"the results could not be written: {error}. Give another --output.")
        return [], unwritten
    said = [f"Written to {path}" if new else f"{path} holds these results already."]
    if predictions is None or unwritten is not None:
        return said, unwritten
    try:
        if not isinstance(predictions, Path):
            replace = new and options.overwrite
            predictions = kept_predictions.keep(predictions, path, replace=replace)
    except OSError as error:
        return said, error
    return [*said, f"Predictions: {predictions}"], None
