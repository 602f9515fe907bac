"""Look at annotations in a browser, accept or reject them, and apply what was decided.

  python -m grain_jax.annotate review --annotations=ANN --images=DIR --output=page.html
  python -m grain_jax.annotate review --annotations=ANN --apply=decisions.json

The page is one file that works without a network; keys j and k move, a accepts, r rejects, 1 to 9
keep or reject a box. It downloads decisions.json, which --apply writes into ANN as rows of their
own; `prepare --from=annotations` leaves out what was rejected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from grain_jax.annotation.review.apply import apply_decisions
from grain_jax.annotation.review.images import embedded, linked, reviewed, sampled
from grain_jax.annotation.review.page import review_page
from grain_jax.command_line import (
    ExitStatus,
    NotParsed,
    OptionalCount,
    OptionalPath,
    RequiredPath,
    default_is,
    parse,
    status_of,
)
from grain_jax.data.annotation_files import read_annotations
from grain_jax.disk import whole_file

MAX_IMAGES = 20_000  # of a page; browsers were tried with 10,000


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `annotate review` takes."""

    annotations: Annotated[RequiredPath, arg(metavar="ANN")]  # folder of annotations
    # folder of the images, which the page links to by their path from its own
    images: Annotated[OptionalPath, arg(metavar="DIR")] = None
    output: Annotated[OptionalPath, arg(metavar="FILE")] = None  # the page, .html
    apply: Annotated[OptionalPath, arg(metavar="FILE")] = None  # decisions that a page downloaded
    sample: Annotated[OptionalCount, default_is("all images")] = None  # images on the page
    # pixels of the longer side of JPEGs inside the page, which then stands alone
    embed: Annotated[OptionalCount, default_is("links to the files")] = None
    overwrite: bool = False  # replace a page


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        options = parse(Options, arguments, command="annotate review", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    try:
        _check(options)
        if options.apply is None:
            _write_page(options)
        else:
            _apply(options)
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(
            f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        return status_of(error)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    return ExitStatus.DONE


def _check(options: Options) -> None:
    """Raises ValueError for options that miss each other, or of which one would be ignored."""
    of_page = ("images", "output", "sample", "embed", "overwrite")
    if options.apply is not None:
        for name in of_page:
            if getattr(options, name):
                raise ValueError(f"--{name} is for a page, and --apply makes none; give one.")
        return
    if options.output is None or options.images is None:
        raise ValueError("Give --images=DIR and --output=page.html, or --apply=decisions.json.")
    if not options.images.is_dir():
        raise ValueError(f"--images={options.images} is not a folder.")
    if options.output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output={options.output} should end in .html.")
    if options.output.exists() and not options.overwrite:
        raise ValueError(f"{options.output} exists; give another name, or --overwrite.")


def _write_page(options: Options) -> None:
    assert options.images is not None
    assert options.output is not None
    annotations = read_annotations(options.annotations)
    places = list(sampled(annotations.images, options.sample))
    if len(places) > MAX_IMAGES:
        raise ValueError(
            f"{options.annotations} has {len(places):,} images, and a page holds {MAX_IMAGES:,}; "
            f"give --sample={MAX_IMAGES // 2}, for example."
        )
    images = [each for index in places if (each := reviewed(annotations, index)) is not None]
    if options.embed is None:
        source = linked(options.images, options.output)
    else:
        source = embedded(options.images, options.embed)
    text = review_page(options.annotations.resolve().name, images, source)
    with whole_file(options.output) as partial:
        partial.write_text(text, encoding="utf-8")
    left_out = len(places) - len(images)
    rows = [
        ("images on the page", len(images)),
        ("boxes", sum(len(each.annotation.regions) for each in images)),
        ("decided before", sum(bool(each.verdict) for each in images)),
        *([("left out: not described, or dropped by audit", left_out)] if left_out else []),
    ]
    _print(str(options.output), rows)
    Console().print(
        "Open it in a browser; what it downloads is for `annotate review --apply=decisions.json`.",
        soft_wrap=True,
    )


def _apply(options: Options) -> None:
    assert options.apply is not None
    console = Console(stderr=True)

    def note(text: str) -> None:
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    report = apply_decisions(options.annotations, options.apply, note=note)
    rows = [
        ("images accepted", report.accepted),
        ("images rejected", report.rejected),
        ("boxes rejected", report.regions),
        ("images whose decisions changed", report.written),
        *([("made anew since the page, not applied", report.outdated)] if report.outdated else []),
    ]
    _print(str(options.annotations), rows)


def _print(title: str, rows: Sequence[tuple[str, int]]) -> None:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in rows:
        table.add_row(name, f"{count:,}")
    Console().print(table)
