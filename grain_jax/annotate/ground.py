"""Find the descriptions of each image in it: boxes by an open-vocabulary detector.

  python -m grain_jax.annotate ground --images=DIR --annotations=ANN \
      --detector=google/owlv2-base-patch16-ensemble

What is looked for are the descriptions that `describe` wrote into ANN; with --queries=phrases the
noun phrases of captions, which come from ANN or from --captions; with --class_descriptions those of
the class that the image's folder is named after; with --example_images what example images show.
Boxes are added to ANN. A run that ended in any way continues when the same command is given again.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from grain_jax.annotate.stage import Note, StageCommand, StageOptions, WorkerStage, run_command
from grain_jax.annotation.backends.detector import Detector, ImageGuidedDetector
from grain_jax.annotation.backends.detectors import open_detector
from grain_jax.annotation.backends.torch_parts import DTYPES
from grain_jax.annotation.detection import SELECTIONS, Selection
from grain_jax.annotation.examples import ExampleQueries, read_examples
from grain_jax.annotation.ground import Ground, GroundSettings, text_hash
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
from grain_jax.annotation.run import Annotator, StageReport
from grain_jax.annotation.run import Selection as ImageSelection
from grain_jax.command_line import (
    Count,
    OptionalCount,
    OptionalPath,
    RequiredPath,
    default_is,
    fraction,
    one_of,
    one_word,
)
from grain_jax.data.annotation_layout import MARKER

DESCRIPTION = __doc__
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
    batch_size: Count = 8  # images at once
    # threads that read and resize images
    threads: Annotated[OptionalCount, default_is("a thread a core, up to 8")] = None
    # as torch names it: cpu, cuda, cuda:1
    device: Annotated[str, one_word(str, "NAME"), default_is("a GPU if there is one")] = "auto"
    # number format of the towers; heads and boxes of OWLv2 are float32 always
    dtype: Annotated[
        str, one_of(("auto", *DTYPES)), default_is("bfloat16 on a GPU, else float32")
    ] = "auto"


class GroundCommand(StageCommand[Options]):
    """`annotate ground`."""

    stage, options, description = "ground", Options, DESCRIPTION

    def output(self, options: Options) -> Path:
        return options.annotations

    def check(self, options: Options, note: Note) -> None:
        _check(options)

    def open_stage(self, options: Options, note: Note) -> Ground:
        return _open(options, None, note)

    def open_to_plan(self, options: Options, note: Note) -> Ground:
        return self.open_stage(options, note)

    def for_workers(self, options: Options, note: Note) -> WorkerStage:
        if options.example_images is not None:
            return WorkerStage(lambda image: None, functools.partial(self.open_stage, options))
        queries = _text_queries(options, note)
        # For those of classes the folder of images was listed; others are read by each worker.
        sent = queries if isinstance(queries, ClassDescriptionQueries) else None
        return WorkerStage(
            lambda image: text_hash(queries, image), functools.partial(_open, options, sent)
        )

    def uses_gpu(self, options: Options) -> bool:
        return options.device != "cpu"

    def planned(
        self, options: Options, stage: Annotator, selection: ImageSelection
    ) -> Iterator[tuple[str, str]]:
        assert isinstance(stage, Ground)
        yield "images to ground", f"{len(selection.images):,}"
        yield "texts to look for", f"{stage.count_texts(selection.images):,}"

    def done(
        self, options: Options, report: StageReport, measured: Mapping[str, float]
    ) -> Iterator[tuple[str, str]]:
        yield "boxes", f"{report.regions:,}"
        if shortened := measured.get("shortened texts"):
            yield "texts longer than the detector reads", f"{shortened:,.0f}"
        images, seconds = measured.get("detector images"), measured.get("detector seconds")
        if images and seconds and (wall := measured.get("detector wall seconds")):
            several = measured["detectors"] > 1
            of_each = "images a second of each worker" if several else "images a second"
            yield f"{of_each}, detector alone", f"{images / seconds:.1f}"
            yield "time in which the detector worked", f"{seconds / wall:.0%}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(GroundCommand(), arguments)


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
    if options.captions is None and options.class_descriptions is None:
        _require_described(options)
    if options.ray is not None and ":" in options.device:
        raise ValueError(
            f"--device={options.device} is a GPU of one machine, and with --ray each worker has "
            "its own; leave it out, or give cuda."
        )


def _require_described(options: Options) -> None:
    """Raises ValueError where `describe` has not written what is read of it."""
    if options.example_images is None and not (options.annotations / MARKER).exists():
        raise ValueError(
            f"--annotations={options.annotations} has no {MARKER}. Without --class_descriptions, "
            "--captions or --example_images, the texts are those that `annotate describe` wrote "
            "there: give its folder, or --class_descriptions=FILE for images in class folders."
        )


def _open(options: Options, texts: TextQueries | None, note: Note) -> Ground:
    """The stage with its detector; `texts`: None for those of the options."""
    if texts is None and options.example_images is None:
        texts = _text_queries(options, note)
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


def _text_queries(options: Options, note: Note) -> TextQueries:
    if options.class_descriptions is not None:
        return ClassDescriptionQueries(
            options.class_descriptions,
            options.images,
            lambda text: note(f"Note: {text}"),
            classes=options.classes,
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
