"""The files that `python -m grain_jax.evaluate` writes."""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from grain_jax.command_line import ExitStatus
from grain_jax.evaluate_notes import print_line, same_place, say_error
from grain_jax.evaluation import results_file
from grain_jax.evaluation.kept_predictions import NOT_KEPT, Answers, keeping_answers
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


def answers_of_results(options: Places) -> AbstractContextManager[Answers]:
    """Where the answers of this evaluation go; nowhere in processes that do not write."""
    if not processes.speaks():
        return contextlib.nullcontext(Answers(None, None))
    results = options.output or results_file.default_folder(options.checkpoint)
    return keeping_answers(options.predictions, results)


def finish(
    options: Places,
    report: dict[str, Any],
    answers: Answers,
    tables: Callable[[Console], None] | None,
    output: Console,
    messages: Console,
    *,
    data: Path | None,
    tasks: str = "",
    line: str = "",
) -> int:
    """Prints the tables, if any, and writes the results of one model; returns the exit status.

    `data` and `tasks` are part of the results' name where no --output is given. `line`: all that is
    printed, with the file of results behind it.
    """
    try:
        if tables is not None:
            tables(output)
    finally:  # also where the reader of a pipe has gone
        said = _write(options, report, answers, messages, data, tasks)
        if answers.failure is not None:
            say_error(
                messages,
                f"the predictions could not be written: {answers.failure}. Give another "
                "--predictions, or none.",
            )
    for text in [". ".join([line, *said[:1]])] if line else said:
        print_line(output, text)
    return ExitStatus.DONE if said and answers.failure is None else ExitStatus.STOPPED


def _write(
    options: Places,
    report: dict[str, Any],
    answers: Answers,
    messages: Console,
    data: Path | None,
    tasks: str,
) -> list[str]:
    """What was written, as lines to print; [] and a message where it could not be."""
    try:
        path = options.output
        if path is None:
            folder = results_file.default_folder(options.checkpoint)
            path = folder / results_file.default_name(
                options.checkpoint, report, data=data, tasks=tasks
            )
        path, new = results_file.write_results(
            report, path, overwrite=options.overwrite, answers=answers.named
        )
    except (OSError, ValueError) as error:
        say_error(messages, f"the results could not be written: {error}. Give another --output.")
        return []
    said = [f"Written to {path}" if new else f"{path} holds these results already."]
    kept = answers.keep(path, replaced=new and options.overwrite)
    return said if kept is None else [*said, f"Predictions: {kept}"]
