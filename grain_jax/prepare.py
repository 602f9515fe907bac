"""Your files to a data set this project trains on.

  python -m grain_jax.prepare --from=jsonl --input=FILE --images=DIR --output=DIR --split=train

The formats with their commands, what is checked, and what is dropped are described in
`docs/data-format.md`. A killed run continues when the same command is given again; further splits
go into the same --output. `python -m grain_jax.prepare inspect DATA` says what a data set holds.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import arg

from grain_jax import prepare_inspect
from grain_jax.cluster import ClusterFailed, check_address, cluster_address
from grain_jax.command_line import (
    OUT,
    ExitStatus,
    NotParsed,
    OptionalCount,
    OptionalPath,
    OptionalText,
    RequiredPath,
    default_is,
    end,
    fraction,
    integer,
    one_of,
    one_word,
    parse,
    print_error,
    progress_bar,
)
from grain_jax.data.build_dataset import (
    Progress,
    build_split,
    is_built,
)
from grain_jax.data.build_on_cluster import build_on_cluster
from grain_jax.data.build_spec import DatasetBuildSpec, OnError
from grain_jax.data.checks import DatasetStatistics
from grain_jax.data.decoded_cache import DecodedCache
from grain_jax.data.importers import IMPORTERS
from grain_jax.data.merging import MergeBy
from grain_jax.terminal import escape_unprintable

INSPECT = "inspect"  # the first word of the other command
HELD_OUT_SPLIT = "validation"  # the split that --holdout makes


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise ValueError(f"{text!r} should be names with commas between them, as in a,b")
    return found


def holdout_fraction(text: str) -> float:
    """A number between 0 and 1, neither of them."""
    value = fraction(text)
    if value in (0, 1):
        raise ValueError(f"{text!r} should be a number between 0 and 1, and neither of them")
    return value


@dataclass(frozen=True)
class ImporterOptions:
    """Options of some formats, named in brackets; the others refuse them."""

    # part of the collection to read (coco, refcoco, parquet, tfds, webdataset)
    subset: Annotated[OptionalText, arg(metavar="NAME"), default_is("the one named as --split")] = (
        None
    )

    # column of images or their paths (csv, parquet, tfds)
    image_column: Annotated[OptionalText, arg(metavar="NAME"), default_is("found by name")] = None
    # columns of captions (csv, parquet, tfds); fields of the JSON files (webdataset)
    caption_columns: Annotated[
        tuple[str, ...] | None, one_word(names, "NAME[,NAME]"), default_is("found by name")
    ] = None
    # column of the class name (csv, parquet, tfds)
    label_column: Annotated[OptionalText, arg(metavar="NAME"), default_is("found by name")] = None
    # character between columns, or "tab" (csv)
    separator: Annotated[OptionalText, default_is("found in the first line")] = None

    # caption of an image that has only a class name, with "{}" for the name (annotations,
    # imagefolder, parquet, tfds)
    template: Annotated[OptionalText, default_is("a photo of a {}.")] = None
    # names of classes: JSON {folder: name}, or a list in .json, .txt or .md (imagefolder)
    classes: Annotated[OptionalPath, arg(metavar="FILE"), default_is("names of the folders")] = None
    # JSON {class: [description, ...]}, kept beside the records (imagefolder)
    descriptions: Annotated[OptionalPath, arg(metavar="FILE")] = None
    # fraction of the images, by hash of their paths, that makes a second split called "validation"
    # (annotations, imagefolder)
    holdout: Annotated[float | None, one_word(holdout_fraction, "FRACTION"), default_is("none")] = (
        None
    )

    def given(self) -> dict[str, Any]:
        """The options on the command line."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Options:
    """What `prepare` takes."""

    # what the input is
    format: Annotated[str, arg(name="from"), one_of(tuple(sorted(IMPORTERS)))]
    input: RequiredPath  # file or folder of the format
    output: Annotated[RequiredPath, OUT, arg(metavar="DIR")]  # folder of the data set
    # folder that paths of images start from; not where --input has the images
    images: Annotated[OptionalPath, arg(metavar="DIR")] = None
    split: Annotated[str, arg(metavar="NAME")] = "train"  # name of this part
    # processes; with --ray, shards that are built at once
    workers: Annotated[OptionalCount, default_is("all cores")] = None
    # build on a Ray cluster: "auto" for the one of this machine, or its address
    ray: Annotated[
        str | None, one_word(cluster_address, "auto|HOST:PORT"), default_is("this machine alone")
    ] = None
    # shrink larger images to N pixels and JPEG
    max_image_side: Annotated[
        int, one_word(integer, "N"), default_is("0: keep the files' bytes")
    ] = 0
    # store pixels, which training need not decode: N for images of that short side, NxN for squares
    decoded_cache: Annotated[
        DecodedCache | None,
        one_word(DecodedCache.parse, "N|NxN"),
        default_is("none: keep the files' bytes"),
    ] = None
    # at an invalid record: stop with its place, or skip and count it
    on_error: OnError = "raise"
    # give images without a caption one of what their regions show, rather than drop them
    captions_from_regions: bool = False
    # captions and boxes to add to the images: JSON lines, or a folder of `annotate`
    merge_annotations: Annotated[OptionalPath, arg(metavar="PATH")] = None
    # what joins them to the images: id, path, or SHA-256 of the file
    merge_by: Annotated[
        MergeBy | None, one_of(get_args(MergeBy)), default_is("id, with --merge_annotations")
    ] = None
    importer: Annotated[ImporterOptions, arg(name="")] = ImporterOptions()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == INSPECT:
        return prepare_inspect.main(arguments[1:])
    escape_unprintable()
    try:
        options = parse(Options, arguments, command="prepare", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    plan = DatasetBuildSpec(
        format=options.format,
        input=options.input,
        images=options.images,
        out=options.output,
        split=options.split,
        max_image_side=options.max_image_side,
        decoded_cache=options.decoded_cache,
        on_error=options.on_error,
        captions_from_regions=options.captions_from_regions,
        options=options.importer.given(),
        merge_annotations=options.merge_annotations,
        merge_by=options.merge_by,
    )
    if options.importer.holdout is None:
        return _prepare(plan, options)
    if plan.split == HELD_OUT_SPLIT:
        print(
            f"Error: --holdout makes a second split {HELD_OUT_SPLIT!r}; choose another --split.",
            file=sys.stderr,
        )
        return ExitStatus.MISTAKE
    held_out = dataclasses.replace(plan, split=HELD_OUT_SPLIT, held_out=True)
    return _prepare(plan, options, held_out) or _prepare(held_out, options)


def _prepare(plan: DatasetBuildSpec, options: Options, then: DatasetBuildSpec | None = None) -> int:
    """Builds one split and prints its report; returns the exit status.

    The split that is built `then` is checked before.
    """
    console = Console(stderr=True)
    try:
        plan.validate()
        if then is not None:
            then.validate()
            then.importer()  # which raises where no image is set aside
        if options.ray is not None:
            check_address(options.ray)
        built_before = is_built(plan)
        figures = _build(plan, options, console)
    except (ValueError, OSError, ImportError) as error:
        return print_error(error, console, folder=plan.out, kept="finished shards are kept")
    except ClusterFailed as failed:
        console.print(f"Stopped: {failed}", style="red", markup=False, soft_wrap=True)
        return ExitStatus.STOPPED
    except BrokenProcessPool:
        console.print(
            "Error: a worker process died, perhaps for want of memory. The same command continues; "
            "try fewer --workers.",
            style="red",
        )
        return ExitStatus.STOPPED
    except KeyboardInterrupt:
        console.print("Stopped. The same command continues; finished shards are kept.")
        return ExitStatus.INTERRUPTED
    print_report(plan, figures, Console())
    if built_before:
        console.print(
            f"Split {plan.split!r} was in {plan.out} already; nothing was built anew.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return ExitStatus.DONE


def _build(plan: DatasetBuildSpec, options: Options, console: Console) -> DatasetStatistics:
    runner = None
    if options.ray is not None:
        runner = functools.partial(build_on_cluster, options.ray, options.workers)
    with progress_bar(console, plan.split, state="reading the input") as advance:

        def show(progress: Progress) -> None:
            dropped = progress.statistics.dropped_images.total()
            state = f"{progress.statistics.images} images, {dropped} dropped"
            advance(progress.entries, progress.total, state)

        def say(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        workers = options.workers or os.cpu_count() or 1
        return build_split(plan, workers=workers, runner=runner, progress=show, note=say)


def print_report(plan: DatasetBuildSpec, figures: DatasetStatistics, console: Console) -> None:
    """Prints what was built, and what was not, of a split."""
    table = Table(title=f"Split {plan.split!r}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    images = figures.images
    table.add_row("records read", f"{images + figures.dropped_images.total():,}")
    table.add_row("images kept", f"{images:,}")
    if plan.decoded_cache is not None:
        table.add_row("images stored decoded", plan.decoded_cache.sentence)
    table.add_row("captions", f"{figures.captions:,} ({figures.captions / images:.2f} an image)")
    table.add_row("regions", f"{figures.regions:,} ({figures.regions / images:.2f} an image)")
    if figures.images_with_regions or not figures.regions:  # else of an older version's report
        share = figures.images_with_regions / images
        table.add_row("images with regions", f"{figures.images_with_regions:,} ({share:.1%})")
    table.add_row("boxes clipped to the image", f"{figures.clipped_boxes:,}")
    if figures.annotations:
        share = figures.merged_images / images
        table.add_row("images with a merged annotation", f"{figures.merged_images:,} ({share:.1%})")
        without = figures.annotations - figures.merged_annotations
        share = without / figures.annotations
        table.add_row("annotations to merge", f"{figures.annotations:,}")
        table.add_row("annotations without an image", f"{without:,} ({share:.1%})")
    for row, count in (
        ("captions made of regions", figures.captions_from_regions),
        ("images of several frames, first kept", figures.several_frames),
        ("images under an id that another has", figures.repeated_ids),
        ("images with the bytes of another", figures.repeated_images),
    ):
        if count:
            table.add_row(row, f"{count:,}")
    for title, counts in (
        ("images dropped", figures.dropped_images),
        ("regions dropped", figures.dropped_regions),
        ("fields ignored", figures.ignored_fields),
    ):
        for reason, count in counts.most_common():
            table.add_row(escape(f"{title}: {reason}"), f"{count:,}")
    console.print(table)
    for message in figures.examples:
        console.print(f"  dropped: {message}", markup=False, highlight=False, soft_wrap=True)
    for warning in (*figures.notes, *_warnings(plan, figures)):
        console.print(f"Note: {warning}", style="yellow", markup=False, soft_wrap=True)
    console.print(
        f"To use it: --data.dataset=tfds --data.data_dir={plan.out}; "
        "data.train_split and data.eval_split name the splits.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _warnings(plan: DatasetBuildSpec, figures: DatasetStatistics) -> Iterator[str]:
    """What the counts say about mistakes in the input."""
    dropped = figures.dropped_regions
    odd = sum(dropped[kind] for kind in ("empty box", "box out of range", "box within one pixel"))
    for kind, count in figures.misread_boxes.most_common(1):
        # Of boxes by width and height many pass for corners; of those in other units next to none.
        whole = odd if kind == "x, y, width, height" else figures.regions + odd
        if count >= whole / 2:
            yield (
                f"{count:,} of {odd:,} boxes that were dropped would fit as {kind}. Expected "
                f"{_expected_boxes(plan)}. If so, the boxes that were kept are wrong too."
            )
    if figures.annotations and not figures.merged_images:
        by = plan.merge_by or "id"
        yield (
            f"no image has an annotation of {plan.merge_annotations}; compare the {by} in both, or "
            "choose another --merge_by."
        )
    if figures.repeated_ids:
        yield (
            f"{figures.repeated_ids:,} images have an id that an earlier one has. Put all captions "
            f"and regions of an image into one {'line' if plan.format == 'jsonl' else 'record'}: "
            "as several images they are negatives of each other, in training and in retrieval."
        )
    if not figures.regions:
        yield "no region was kept: GRAIN learns nothing about boxes from this split."


def _expected_boxes(plan: DatasetBuildSpec) -> str:
    if plan.format == "jsonl":
        return 'x0, y0, x1, y1: fractions from 0 to 1, or pixels with "bbox_unit": "pixel"'
    return f"those of {plan.format} (docs/data-format.md)"


if __name__ == "__main__":
    end(main())
