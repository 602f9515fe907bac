"""What a prepared data set holds, what is odd about it, and which settings suit it.

  python -m grain_jax.prepare inspect DATA --output=DIR

Counts, lengths of texts and what they cost, boxes an image and the number of queries, sizes,
repeated texts, images that look alike (needs the extra "inspect"), and records to look at. With
--output it writes report.md, plots and sheets of images with their boxes; see
`docs/data-format.md`.
"""

import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table as ScreenTable
from tyro.conf import Positional, arg

from grain_jax.command_line import (
    Count,
    ExitStatus,
    NotParsed,
    OptionalCount,
    OptionalPath,
    OptionalText,
    RequiredPath,
    default_is,
    integer,
    one_word,
    parse,
    status_of,
)
from grain_jax.data.inspection.inspect_split import Inspection, InspectionSpec, inspect_split
from grain_jax.data.inspection.near_duplicates import MAX_DISTANCE
from grain_jax.data.inspection.sections import Section, Table, inspection_sections
from grain_jax.data.tfds_records import stored_splits
from grain_jax.terminal import escape_unprintable


def bits(text: str) -> int:
    """A number of bits that hashes of images that look alike may differ in."""
    value = integer(text)
    if not 0 <= value <= MAX_DISTANCE:
        raise ValueError(f"{text!r} should be a whole number from 0 to {MAX_DISTANCE}")
    return value


@dataclass(frozen=True)
class Options:
    """What `prepare inspect` takes."""

    # folder that `prepare` wrote
    data: Annotated[Positional[RequiredPath], arg(metavar="DATA", help_behavior_hint="(required)")]
    # one split, or a part or a sum of some, as in train[:1%] or train+validation
    split: Annotated[OptionalText, arg(metavar="NAME"), default_is("each of the data set")] = None
    # folder for report.md and its images; of several splits, each has a folder in it
    output: Annotated[OptionalPath, arg(metavar="DIR")] = None
    # "clip", or a name or folder for transformers
    tokenizer: Annotated[str, arg(metavar="NAME")] = "clip"
    # read as many, evenly spaced
    max_images: Annotated[OptionalCount, default_is("all")] = None
    # bits, of 64, that hashes of images that look alike may differ in
    near_distance: Annotated[int, one_word(bits, "N")] = 3
    workers: Annotated[Count, default_is("all cores")] = os.cpu_count() or 1  # processes


def main(arguments: Sequence[str]) -> int:
    """The command, without the word `inspect`; returns its exit status."""
    escape_unprintable()
    try:
        options = parse(Options, arguments, command="prepare inspect", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    console = Console(stderr=True)
    try:
        splits = [options.split] if options.split else sorted(stored_splits(options.data))
        for split in splits or ["train"]:  # without any, the error names what is missing
            folder = options.output
            if folder is not None and len(splits) > 1:
                folder = folder / split
            _inspect(options, split, folder, console)
    except (ValueError, OSError) as error:
        message = f"Error: {error}"
        console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
        return status_of(error)
    except BrokenProcessPool:
        console.print(
            "Error: a worker process died, perhaps for want of memory; try fewer --workers.",
            style="red",
        )
        return ExitStatus.STOPPED
    except KeyboardInterrupt:
        console.print("Stopped.")
        return ExitStatus.INTERRUPTED
    return ExitStatus.DONE


def _inspect(options: Options, split: str, folder: Path | None, console: Console) -> None:
    """Inspects one split, prints what was found, and writes it to `folder`."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)  # an error now rather than after hours
    spec = InspectionSpec(
        options.data, split, options.tokenizer, options.max_images, options.near_distance
    )
    inspection = _measure(spec, options.workers, console)
    sections = inspection_sections(inspection)
    print_sections(f"Split {split!r} of {options.data}", sections, Console())
    if folder is not None:
        from grain_jax.inspection_report import write_report

        for path in write_report(inspection, sections, folder):
            console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _measure(spec: InspectionSpec, workers: int, console: Console) -> Inspection:
    with ProgressBar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task(spec.split, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return inspect_split(spec, workers=workers, progress=show)


def print_sections(title: str, sections: Sequence[Section], console: Console) -> None:
    """Prints the report."""
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    for section in sections:
        console.print(f"\n{section.title}", style="bold", markup=False, highlight=False)
        for table in section.tables:
            console.print(_screen_table(table))
        for note in section.notes:
            console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)


def _screen_table(table: Table) -> ScreenTable:
    shown = ScreenTable(show_header=bool(table.header))
    columns = len(table.rows[0]) if table.rows else len(table.header)
    for number in range(columns):
        name = table.header[number] if table.header else ""
        right = table.numeric and number > 0
        shown.add_column(escape(name), justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown
