"""Results of evaluations as one page: tables with intervals, plots, classes, grounded images.

  python -m grain_jax.evaluate report A.json B.json --output=report.html
  python -m grain_jax.evaluate report A.json --images=val=RECORDS

A and B are result files that `evaluate` wrote, with the answers that it keeps beside them;
--predictions has those that `--predictions=FILE` of the same evaluations wrote, in the same order.
The page is one file that loads nothing from elsewhere. An --output that ends in .md is Markdown,
one in .csv all results as a table. See `docs/evaluation.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from grain_jax.command_line import (
    OUT,
    ExitStatus,
    NotParsed,
    OptionalText,
    default_is,
    integer,
    one_word,
    parse,
)
from grain_jax.disk import write_whole
from grain_jax.evaluate_notes import say_end
from grain_jax.evaluation import kept_predictions
from grain_jax.evaluation.kept_predictions import NOT_KEPT
from grain_jax.evaluation.report_page.evaluations import Evaluation, read_evaluations
from grain_jax.evaluation.report_page.render import (
    check_output,
    csv_table,
    html_page,
    markdown_page,
    page_title,
    report_sections,
)
from grain_jax.evaluation.results_file import check_place
from grain_jax.paths import user_path
from grain_jax.terminal import escape_unprintable

AGAINST = "name"  # the method that others are compared with


def files(text: str) -> tuple[Path | None, ...]:
    """Paths with commas between them, None for nothing; one whose name has a comma stands alone."""
    if user_path(text).is_file():
        return (user_path(text),)
    return tuple(user_path(part.strip()) if part.strip() else None for part in text.split(","))


def folders(text: str) -> tuple[tuple[str, Path], ...]:
    """Pairs of a set and a folder, as in "val=PHOTOS,test=RECORDS"."""
    found: list[str] = []
    for part in text.split(","):
        if "=" in part:
            found.append(part)
        elif found:
            found[-1] += f",{part}"  # of a folder whose name has a comma
        else:
            found.append(part)
    pairs = [part.partition("=")[::2] for part in found]
    for name, folder in pairs:
        if not name or not folder:
            raise ValueError(f"{text!r} should be SET=FOLDER, as in validation=photos")
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError(f"{text!r} names a set twice")
    return tuple((name, user_path(folder)) for name, folder in pairs)


@dataclass(frozen=True)
class Options:
    """What `evaluate report` takes."""

    # result files of evaluate, .json
    results: Annotated[
        Positional[tuple[Annotated[Path, one_word(user_path, "A.json")], ...]],
        arg(help_behavior_hint="(one or more)"),
    ] = ()
    # what evaluate --predictions wrote, in the order of the result files; nothing for one without;
    # none: of no result file
    predictions: Annotated[
        tuple[Path | None, ...], one_word(files, "FILE,..."), default_is("those beside the results")
    ] = ()
    # of grounding: image files called as in the predictions, or prepared records
    images: Annotated[
        tuple[tuple[str, Path], ...],
        one_word(folders, "SET=FOLDER,..."),
        arg(help_behavior_hint=""),
    ] = ()
    # the method that others of the same file are compared with
    against: Annotated[OptionalText, arg(metavar="METHOD"), default_is(AGAINST)] = None
    seed: Annotated[int, one_word(integer, "N")] = 0  # of the resampling
    # plots and tables of classes of every method, not of the best, GRAIN's own and by name
    all_methods: bool = False
    # .html, .md or .csv
    output: Annotated[Path, one_word(user_path, "FILE"), OUT] = Path("report.html")
    overwrite: bool = False  # replace --output of an earlier report


def main(arguments: Sequence[str]) -> int:
    """The command, without the word `report`; returns its exit status."""
    escape_unprintable()
    messages, screen = Console(stderr=True), Console()
    try:
        options = parse(Options, arguments, command="evaluate report", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    try:
        text = _report(options)
        write_whole(options.output, text, errors="backslashreplace")
        screen.print(f"Written to {options.output}", markup=False, highlight=False, soft_wrap=True)
    except (ValueError, OSError, KeyboardInterrupt) as error:
        return say_end(error, messages)
    return ExitStatus.DONE


def _report(options: Options) -> str:
    check_place("output", options.output, overwrite=options.overwrite)
    check_output(options.output)
    predictions = _predictions(options)
    if options.output.suffix == ".csv":
        for name in ("predictions", "images", "against", "seed", "all_methods"):
            if getattr(options, name):
                raise ValueError(f"--{name} changes nothing of a .csv; leave it out.")
    elif not any(predictions):
        for name in ("images", "against", "seed"):
            if getattr(options, name):
                raise ValueError(
                    f"--{name} goes with predictions, and none are beside these results; give "
                    "--predictions too."
                )
    evaluations = read_evaluations(options.results, predictions)
    if options.output.suffix == ".csv":
        return csv_table(evaluations)
    _check_against(options, evaluations)
    sections = report_sections(
        evaluations,
        dict(options.images),
        against=options.against or AGAINST,
        seed=options.seed,
        all_methods=options.all_methods,
    )
    write = html_page if options.output.suffix == ".html" else markdown_page
    return write(page_title(evaluations), sections)


def _predictions(options: Options) -> tuple[Path | None, ...]:
    """The files of answers of the result files, None for one without."""
    if options.output.suffix == ".csv" or options.predictions == (NOT_KEPT,):
        return ()
    beside = map(kept_predictions.beside, options.results)
    return options.predictions or tuple(path if path.is_file() else None for path in beside)


def _check_against(options: Options, evaluations: Sequence[Evaluation]) -> None:
    methods = sorted({measure.method for one in evaluations for measure in one.answers})
    if options.against is not None and options.against not in methods:
        raise ValueError(
            f"No predictions are by the method {options.against!r} of --against; there are "
            f"{', '.join(methods)}."
        )
