"""Find the descriptions of each image in it: boxes by an open-vocabulary detector.

  python -m grain_jax.annotate ground --images=DIR --annotations=ANN \
      --detector=google/owlv2-base-patch16-ensemble

What is looked for are the descriptions that `describe` wrote into ANN; with --queries=phrases the
noun phrases of captions, which come from ANN or from --captions; with --class_descriptions those of
the class that the image's folder is named after; with --example_images what example images show.
Boxes are added to ANN. A run that ended in any way continues when the same command is given again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import arg

from grain_jax.annotate.stage import StageOptions, run_and_report, selection_rows
from grain_jax.annotation.backends.detector import Detector, ImageGuidedDetector
from grain_jax.annotation.backends.detectors import open_detector
from grain_jax.annotation.backends.torch_parts import DTYPES
from grain_jax.annotation.detection import SELECTIONS, Selection
from grain_jax.annotation.examples import ExampleQueries, read_examples
from grain_jax.annotation.ground import Ground, GroundSettings
from grain_jax.annotation.phrases import PHRASE_FINDERS
from grain_jax.annotation.queries import (
    CAPTION_FORMATS,
    CaptionPhraseQueries,
    ClassDescriptionQueries,
    DescriptionQueries,
    TextQueries,
    annotated_captions,
    imported_captions,
)
from grain_jax.annotation.run import StageReport, plan_stage
from grain_jax.command_line import (
    Count,
    ExitStatus,
    NotParsed,
    OptionalCount,
    OptionalPath,
    RequiredPath,
    default_is,
    fraction,
    one_of,
    one_word,
    parse,
    status_of,
)

Threshold = Annotated[float | None, one_word(fraction, "X"), default_is("the detector's own")]
MaxOverlap = Annotated[float | None, one_word(fraction, "IOU"), default_is("as --selection has it")]


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """What `annotate ground` takes."""

    # folder of annotations, read and added to
    annotations: Annotated[RequiredPath, arg(metavar="ANN", aliases=("--output",))]
    # OWLv2, OWL-ViT or Grounding DINO: a folder, or owner/name on the Hugging Face hub
    detector: Annotated[str, one_word(str, "NAME")]
    # what is looked for: descriptions in ANN, or noun phrases of captions
    queries: Literal["descriptions", "phrases"] = "descriptions"
    # JSON file {class: [description, ...]}; the class is the image's folder
    class_descriptions: OptionalPath = None
    # JSON file {folder: class name} for --class_descriptions, as `prepare --classes`
    classes: OptionalPath = None
    # captions for --queries=phrases, else those in ANN
    captions: OptionalPath = None
    # of --captions, as `prepare --from` has them
    captions_format: Annotated[str, one_of(CAPTION_FORMATS)] = "jsonl"
    # what finds noun phrases
    phrase_finder: Annotated[str, one_of(tuple(PHRASE_FINDERS))] = "rules"
    # folder with images of what is looked for in every image: NAME/*.jpg or NAME.jpg
    example_images: OptionalPath = None
    # which boxes are kept: the best of each text, all, or as GRAIN's annotation code does
    selection: Annotated[str, one_of(tuple(SELECTIONS))] = "best_per_text"
    # scores at or below it are dropped
    threshold: Threshold = None
    # a box that overlaps a better one of the same text by more is dropped; 1 drops none
    nms: MaxOverlap = None
    # --nms between boxes of different texts too
    class_agnostic_nms: bool = False
    max_boxes: OptionalCount = None  # of an image
    # count images and texts, and look for nothing
    dry_run: bool = False
    batch_size: Count = 8  # images at once
    # threads that read and resize images
    threads: Annotated[OptionalCount, default_is("a thread a core, up to 8")] = None
    # as torch names it: cpu, cuda, cuda:1
    device: Annotated[str, one_word(str, "NAME"), default_is("a GPU if there is one")] = "auto"
    # number format of the towers; heads and boxes of OWLv2 are float32 always
    dtype: Annotated[
        str, one_of(("auto", *DTYPES)), default_is("bfloat16 on a GPU, else float32")
    ] = "auto"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        options = parse(Options, arguments, command="annotate ground", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    if options.dry_run:
        return _dry_run(options)
    stages: list[Ground] = []

    def open_stage() -> Ground:
        stages.append(_open(options))
        return stages[0]

    def print_more(report: StageReport, table: Table) -> None:
        table.add_row("boxes", f"{report.regions:,}")
        _print_speed(stages[0], table)

    return run_and_report(open_stage, options.spec(options.annotations), print_more=print_more)


def _open(options: Options) -> Ground:
    _check(options)
    texts = None if options.example_images is not None else _text_queries(options)
    official = SELECTIONS[options.selection].official_texts
    detector = open_detector(
        options.detector, device=options.device, dtype=options.dtype, official_images=official
    )
    queries: TextQueries | ExampleQueries
    queries = _examples(options, detector) if texts is None else texts
    settings = GroundSettings(
        selection=_selection(options, detector),
        official_images=official,
        batch_size=options.batch_size,
        **({} if options.threads is None else {"threads": options.threads}),
    )
    return Ground(options.images, detector, queries, settings)


def _dry_run(options: Options) -> int:
    try:
        stage = _open(options)
        selection = plan_stage(stage, options.spec(options.annotations))
        texts = stage.count_texts(selection.images)
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        return status_of(error)
    table = Table(title="Dry run", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in selection_rows(selection):
        table.add_row(escape(name), f"{count:,}")
    table.add_row("images to ground", f"{len(selection.images):,}")
    table.add_row("texts to look for", f"{texts:,}")
    Console().print(table)
    return ExitStatus.DONE


def _check(options: Options) -> None:
    """Raises ValueError for options of which one would be ignored."""
    given = [
        name
        for name, value in (
            ("--class_descriptions", options.class_descriptions),
            ("--example_images", options.example_images),
            ("--queries=phrases", options.queries == "phrases" or None),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} both say what to look for; give one of them.")
    if options.classes is not None and options.class_descriptions is None:
        raise ValueError("--classes is for --class_descriptions; give both, or neither.")
    if options.captions is not None and options.queries != "phrases":
        raise ValueError("--captions is for --queries=phrases; give both, or neither.")
    if options.phrase_finder != "rules" and options.queries != "phrases":
        raise ValueError(
            f"--phrase_finder={options.phrase_finder} is for --queries=phrases; give both."
        )
    if options.captions_format != "jsonl" and options.captions is None:
        raise ValueError(f"--captions_format={options.captions_format} without --captions.")
    if options.class_agnostic_nms and _rule(options).nms_iou >= 1:
        raise ValueError("--class_agnostic_nms without NMS; give --nms, for example --nms=0.5.")
    one_box = _rule(options).boxes_per_text == 1
    if options.nms is not None and one_box and not options.class_agnostic_nms:
        raise ValueError(
            f"--nms={options.nms:g} drops nothing where each text has one box; give "
            "--selection=all, or --class_agnostic_nms for NMS between boxes of different texts."
        )
    if options.selection == "official" and options.example_images is not None:
        raise ValueError("--selection=official is for texts; leave it or --example_images out.")


def _text_queries(options: Options) -> TextQueries:
    if options.class_descriptions is not None:
        console = Console(stderr=True)

        def note(text: str) -> None:
            console.print(f"Note: {text}", style="yellow", markup=False, soft_wrap=True)

        return ClassDescriptionQueries(
            options.class_descriptions, options.images, note, classes=options.classes
        )
    if options.queries == "descriptions":
        return DescriptionQueries(options.annotations)
    finder = PHRASE_FINDERS[options.phrase_finder]()
    if options.captions is None:
        return CaptionPhraseQueries(annotated_captions(options.annotations), finder)
    captions = imported_captions(options.captions_format, options.captions)
    return CaptionPhraseQueries(captions, finder, keep_captions=True)


def _examples(options: Options, detector: Detector) -> ExampleQueries:
    assert options.example_images is not None
    if not isinstance(detector, ImageGuidedDetector):
        raise ValueError(
            f"--detector={options.detector} finds texts only; --example_images needs an OWLv2 or "
            "OWL-ViT."
        )
    return read_examples(options.example_images, detector)


def _rule(options: Options) -> Selection:
    return SELECTIONS[options.selection].replace(nms_iou=options.nms)


def _selection(options: Options, detector: Detector) -> Selection:
    threshold = options.threshold
    if threshold is None and options.example_images is not None:
        assert isinstance(detector, ImageGuidedDetector)
        threshold = detector.default_example_threshold
    elif threshold is None and options.selection != "official":
        threshold = detector.default_threshold
    return _rule(options).replace(
        threshold=threshold,
        nms_across_texts=options.class_agnostic_nms or None,
        max_boxes=options.max_boxes,
    )


def _print_speed(stage: Ground, table: Table) -> None:
    if stage.shortened_texts:
        table.add_row("texts longer than the detector reads", f"{stage.shortened_texts:,}")
    time = stage.time
    if time.images and time.seconds and time.wall_seconds:
        table.add_row("images a second, detector alone", f"{time.images / time.seconds:.1f}")
        busy = time.seconds / time.wall_seconds
        table.add_row("time in which the detector worked", f"{busy:.0%}")
