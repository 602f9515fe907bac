"""Whether one model, or one method, is better than another, on the same images.

  python -m grain_jax.evaluate compare A.json B.json
  python -m grain_jax.evaluate compare A.json --against=name

A and B are results of `evaluate`, with the answers that it keeps beside them, or files that
`--predictions=FILE` wrote. Several trainings of one model, which differ in their seed, are given
with commas: `compare A0.json,A1.json B0.json,B1.json`. The second form compares the other methods
of one file with one of them. See `docs/evaluation.md`.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from grain_jax.command_line import (
    OUT,
    ExitStatus,
    NotParsed,
    OptionalPath,
    OptionalText,
    integer,
    one_word,
    parse,
)
from grain_jax.disk import write_whole
from grain_jax.evaluate_notes import say_end
from grain_jax.evaluation.comparison import (
    TASKS,
    Comparison,
    compare_methods,
    compare_models,
    compare_with_method,
    left_out,
    metrics_of,
    read_predictions,
)
from grain_jax.evaluation.kept_predictions import answers_of
from grain_jax.evaluation.percentages import percent, signed_with_interval
from grain_jax.evaluation.results_file import check_place
from grain_jax.evaluation.tables import Table, print_table
from grain_jax.paths import user_path
from grain_jax.terminal import consoles, escape_unprintable

DRAWN = (
    " Of random texts and crops the mean over draws, with the standard deviation of B - A over "
    "them (sd) behind it; the interval and p are over images."
)


def files(text: str) -> tuple[Path, ...]:
    """Paths with commas between them; one whose name has a comma stands alone."""
    if user_path(text).exists():
        return (user_path(text),)
    return tuple(user_path(part.strip()) for part in text.split(","))


_Files = Annotated[tuple[Path, ...], one_word(files, "FILE,...")]


@dataclass(frozen=True)
class Options:
    """What `evaluate compare` takes."""

    # results of A, .json, or predictions, .jsonl or .csv; several: trainings that differ in seed
    first: Annotated[Positional[_Files], arg(metavar="A", help_behavior_hint="(required)")]
    # of B
    second: Annotated[Positional[_Files], arg(metavar="B", help_behavior_hint="")] = ()
    # compare with this method of A, as name or description/alpha1: all of B, or the others of A
    against: Annotated[OptionalText, arg(metavar="METHOD")] = None
    seed: Annotated[int, one_word(integer, "N")] = 0  # of the resampling
    output: Annotated[OptionalPath, OUT, arg(metavar="FILE")] = None  # the comparisons as JSON
    overwrite: bool = False  # replace --output of an earlier comparison


def main(arguments: Sequence[str]) -> int:
    """The command, without the word `compare`; returns its exit status."""
    escape_unprintable()
    messages, screen = consoles()
    try:
        options = parse(Options, arguments, command="evaluate compare", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    try:
        comparisons = _compare(options, messages)
        print_table(comparison_table(comparisons), screen)
        if options.output is not None:
            write_whole(options.output, json.dumps(_report(options, comparisons), indent=2) + "\n")
            screen.print(f"Written to {options.output}", markup=False, highlight=False)
    except (ValueError, OSError, KeyboardInterrupt) as error:
        return say_end(error, messages)
    return ExitStatus.DONE


def _compare(options: Options, messages: Console) -> list[Comparison]:
    if options.output is not None:
        check_place("output", options.output, overwrite=options.overwrite)
        if options.output.suffix != ".json":
            raise ValueError(f"--output={options.output} is written as JSON; end it in .json.")
    if not options.second and options.against is None:
        raise ValueError("Give B, a second file of predictions, or --against=METHOD.")
    given = [answers_of(path) for path in (*options.first, *options.second)]
    if len({path.resolve() for path in given}) < len(given):
        raise ValueError(
            "A file of predictions is given twice; it would be compared with itself. Give each its "
            "place once."
        )
    read = [read_predictions(path) for path in given]
    first, second = read[: len(options.first)], read[len(options.first) :]
    if options.against is None:
        compared = compare_models(first, second, seed=options.seed)
    elif options.second:
        compare = functools.partial(compare_with_method, against=options.against)
        compared = compare(first, second, seed=options.seed)
    else:
        compared = compare_methods(first, against=options.against, seed=options.seed)
    for sentence in () if options.second and options.against else left_out(first, second):
        messages.print(f"Note: {sentence}.", markup=False, highlight=False, soft_wrap=True)
    return compared


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Accuracies in percent, differences in percentage points."""
    rows = []
    by_method = any(one.first != one.second for one in comparisons)
    for one in comparisons:
        found = one.difference
        images = f"{one.images:,}"
        if one.answers > one.images:
            images = f"{one.answers:,} of {images}"
        rows.append(
            (
                *(f"{one.dataset}{TASKS[one.task].title}", one.second, images),
                *map(percent, (found.first, found.second)),
                signed_with_interval(found.value, found.low, found.high) + _spread(one),
                f"{one.adjusted_p_value:.2g}",
            )
        )
    count = f"{len(rows)} comparisons" if len(rows) > 1 else "1 comparison"
    metrics = metrics_of(one.task for one in comparisons)
    return Table(
        f"Each method (B) against {_baseline(comparisons)} (A): {metrics}, %"
        if by_method
        else f"B against A on the same images: {metrics}, %",
        ("set", "method", "images", "A", "B", "B - A", "p"),
        tuple(rows),
        "B - A in percentage points, in brackets its 95 % interval, and p corrected by Holm for "
        f"{count}: {_statistics(comparisons[0].seeds)} Captions and phrases of an image stay "
        "together." + (DRAWN if any(one.draws_sd is not None for one in comparisons) else ""),
    )


def _spread(one: Comparison) -> str:
    """The spread over draws of random texts, where there were several."""
    return "" if one.draws_sd is None else f" (sd {100 * one.draws_sd:.1f}, {max(one.draws)} draws)"


def _baseline(comparisons: Sequence[Comparison]) -> str:
    names = list(dict.fromkeys(one.first for one in comparisons))
    if len(names) == 1:
        return names[0]
    return f"{names[0].partition('/')[0]} at the same alpha"


def _statistics(seeds: tuple[int, int]) -> str:
    """Where intervals and p-values are from, for so many trainings of A and of B."""
    if seeds == (1, 1):
        return (
            "bootstrap and paired permutation test over images. A single training of each says "
            "nothing of other seeds."
        )
    counts = " and ".join(f"{count} of {side}" for count, side in zip(seeds, "AB", strict=True))
    single = " The one is taken to spread as the others." if 1 in seeds else ""
    return f"Student's t over trainings ({counts}) and images.{single}"


def _report(options: Options, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    return {
        "first": [str(path) for path in options.first],
        "second": [str(path) for path in options.second],
        "against": options.against,
        "seed": options.seed,
        "comparisons": [dataclasses.asdict(one) for one in comparisons],
    }
