"""What the commands of all stages have in common: options, progress, report, exit status."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from tyro.conf import arg

from grain_jax.annotation.run import (
    Annotator,
    Selection,
    StageReport,
    StageSpec,
    StageStopped,
    run_stage,
)
from grain_jax.annotation.shards import WHOLE, Shard, read_shard
from grain_jax.command_line import ExitStatus, RequiredPath, default_is, one_word, status_of
from grain_jax.disk import cannot_write


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The options that every stage has."""

    images: Annotated[RequiredPath, arg(metavar="DIR")]  # folder of images, with its subfolders
    # of n processes that share the images, this is the i-th: 0/n to n-1/n
    shard: Annotated[Shard, one_word(read_shard, "i/n"), default_is("all images")] = WHOLE
    # also images whose last row is an error
    retry_errors: bool = False
    # also images whose row was made by another model, with other prompts, queries or sampling
    redo_changed: bool = False
    # also images whose file was replaced since; reads every file first
    redo_replaced: bool = False

    def spec(self, output: Path) -> StageSpec:
        """What the stage is run on, with its folder of annotations."""
        return StageSpec(
            self.images,
            output,
            self.shard,
            self.retry_errors,
            self.redo_changed,
            self.redo_replaced,
        )


def run_and_report(
    open_annotator: Callable[[], Annotator],
    spec: StageSpec,
    *,
    print_more: Callable[[StageReport, Table], None] = lambda report, table: None,
) -> int:
    """Runs a stage with a progress bar and prints its report; returns the exit status.

    Args:
        open_annotator: makes the stage; what it raises is told as an error of the command.
        print_more: adds rows of its own to the table of the report.
    """
    console = Console(stderr=True)

    def say(text: str, style: str) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    try:
        report = _run(open_annotator(), spec, console, note=lambda text: say(text, "yellow"))
    except StageStopped as stopped:
        say(f"Stopped: {stopped}", "red")
        return ExitStatus.STOPPED
    except (ValueError, OSError, ImportError) as error:
        message = f"Error: {error}"
        if cannot_write(error, spec.output):
            message += " The same command continues once it can write; all finished rows are kept."
        say(message, "red")
        return status_of(error)
    except KeyboardInterrupt:
        console.print("Stopped. The same command continues; all finished rows are kept.")
        return ExitStatus.INTERRUPTED
    print_report(report, spec, Console(), print_more)
    nothing = report.rows and report.failed.total() == report.rows
    return ExitStatus.SKIPPED if nothing else ExitStatus.DONE


def _run(
    annotator: Annotator, spec: StageSpec, console: Console, note: Callable[[str], None]
) -> StageReport:
    with ProgressBar(
        TextColumn(annotator.stage),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
        console=console,
    ) as bar:
        task = bar.add_task("", total=None, rate="", state="looking for images")

        def show(report: StageReport) -> None:
            rate = f"{report.rows / report.seconds:.1f}/s" if report.seconds else ""
            state = f"{report.failed.total()} failed"
            if tokens := report.totals.total():
                state += f", {tokens:,} tokens"
            total = len(report.selection.images)
            bar.update(task, total=total, completed=report.rows, rate=rate, state=state)

        return run_stage(annotator, spec, progress=show, note=note)


def selection_rows(selection: Selection) -> list[tuple[str, int]]:
    """Lines of a table on the images that a stage finds."""
    return [
        ("images in the folder", selection.listed),
        ("done before", selection.done),
        *([("sent back by audit", selection.sent_back)] if selection.sent_back else []),
        *([("file was replaced", selection.replaced)] if selection.replaced else []),
        *((f"left out: {reason}", count) for reason, count in selection.skipped.most_common()),
    ]


def print_report(
    report: StageReport,
    spec: StageSpec,
    console: Console,
    print_more: Callable[[StageReport, Table], None],
) -> None:
    """Prints what a run did, and what the same or another command would do next."""
    table = Table(title=str(spec.output), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in selection_rows(report.selection):
        table.add_row(escape(name), f"{count:,}")
    table.add_row("done now", f"{report.rows - report.failed.total():,}")
    for reason, count in report.failed.most_common():
        table.add_row(escape(f"failed now: {reason}"), f"{count:,}")
    if report.rows and report.seconds:
        table.add_row("images a second", f"{report.rows / report.seconds:.1f}")
    print_more(report, table)
    console.print(table)
    lines = [f"  failed: {example}" for example in report.examples]
    if failed := report.failed.total() + report.selection.failed:
        lines.append(
            f"{failed:,} images have a row with an error; the same command with --retry_errors "
            "tries them again."
        )
    if report.selection.changed:
        lines.append(
            f"{report.selection.changed:,} rows were made by another model, or with other prompts, "
            "queries or sampling, and are kept; --redo_changed makes them anew."
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
