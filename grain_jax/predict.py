"""Classify images and find phrases in them with a trained model.

  python -m grain_jax.predict bird.jpg --checkpoint=RUN --labels="cardinal,blue jay"
  python -m grain_jax.predict IMAGES --checkpoint=RUN --descriptions=birds.json --csv=FILE
  python -m grain_jax.predict a.jpg --checkpoint=RUN --phrases="a crest;a beak" --output=DIR
  python -m grain_jax.predict a.jpg --checkpoint=RUN --labels="robin,wren" --examples=LABELLED

IMAGES is any number of files, folders (with their subfolders) and quoted globs.
What is scored how, and the exit status: `docs/use.md`.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import Positional, arg

from grain_jax import runtime
from grain_jax.answers.examples import read_examples
from grain_jax.answers.files import Target, check_outputs, find_images
from grain_jax.answers.outputs import Answer, Outcome, draw_answer, write_csv, write_json
from grain_jax.answers.screen import print_answers
from grain_jax.command_line import (
    OUT,
    Best,
    Count,
    ExitStatus,
    NotParsed,
    OptionalPath,
    OptionalText,
    Step,
    default_is,
    end,
    fraction,
    one_of,
    one_word,
    parse,
    status_of,
)
from grain_jax.data.classification.class_texts import bind_descriptions
from grain_jax.data.classification.templates import read_templates
from grain_jax.data.text_files import SUFFIXES, entries_hint, read_texts, split_entry
from grain_jax.inference.examples import EmbeddedExamples
from grain_jax.inference.inputs import ImageInput, check_known
from grain_jax.inference.predictor import BATCH_SIZE, DESCRIPTION_METHODS, Model
from grain_jax.inference.results import Classification, Grounding, ImageEmbeddings
from grain_jax.loading.calibration import AUTO
from grain_jax.loading.predictor import load
from grain_jax.terminal import consoles, escape_unprintable
from grain_jax.zero_shot.calibration import Calibration, to_json
from grain_jax.zero_shot.examples import EXAMPLE_WEIGHT

LISTS = (".csv", ".tsv", ".jsonl", ".yaml", ".yml")  # files that one may expect to be read


@dataclass(frozen=True)
class Options:
    """What `predict` takes."""

    # files, folders, quoted globs
    images: Annotated[
        Positional[tuple[str, ...]], arg(metavar="IMAGE ...", help_behavior_hint="(required)")
    ]
    checkpoint: Annotated[str, arg(metavar="RUN")]  # run folder, or another model
    step: Step = None  # checkpoint of this step
    best: Best = False  # the checkpoint that keep_best kept
    labels: OptionalText = None  # "a,b,c", or a file: .txt (one a line), .json, .md; file.json#key
    # .json {label: [description, ...]}; alone, its keys are the labels
    descriptions: Annotated[OptionalText, arg(metavar="FILE")] = None
    # labelled images, in a layout of evaluate --data: examples of labels; alone, its classes are
    # the labels
    examples: Annotated[OptionalPath, arg(metavar="FOLDER")] = None
    # weight of examples against texts, 0 to 1, in labels that have both
    example_weight: Annotated[
        float | None, one_word(fraction, "W"), default_is(str(EXAMPLE_WEIGHT))
    ] = None
    # labels whose texts are not used: "a,b", or a file as for --labels
    examples_only: OptionalText = None
    phrases: OptionalText = None  # what to find: "a;b", or a file as for --labels
    # prompts with one "{}" for the label: .txt or .json
    templates: Annotated[OptionalText, arg(metavar="FILE")] = None
    # what the whole image is compared with
    method: Annotated[str, one_of(DESCRIPTION_METHODS)] = DESCRIPTION_METHODS[0]
    # weight of the whole image, 0 to 1
    alpha: Annotated[float | None, one_word(fraction, "A"), default_is("0.5 with regions")] = None
    # what probabilities mean: a file of calibrate, or "none"
    calibration: Annotated[
        OptionalText, arg(metavar="FILE|none"), default_is("calibration.json beside the checkpoint")
    ] = None
    # least cosine of a text and a region to give its box
    score_threshold: Annotated[float, default_is("any")] = -1.0
    top_k: Count = 5  # labels per image
    # folder for a visualization of each image with its boxes
    output: Annotated[OptionalPath, OUT, arg(metavar="DIR")] = None
    csv: Annotated[OptionalPath, arg(metavar="FILE")] = None  # a line for every answer
    json: Annotated[OptionalPath, arg(metavar="FILE")] = None  # all answers with all boxes
    overwrite: bool = False  # replace what --output, --csv and --json wrote before
    batch_size: Count = BATCH_SIZE  # images at once


@dataclass(frozen=True)
class Question:
    """What every image is classified by and searched for."""

    labels: tuple[str, ...]
    descriptions: dict[str, tuple[str, ...]] | None
    templates: tuple[str, ...] | None
    phrases: tuple[str, ...]
    examples: dict[str, list[ImageInput]] | None = None
    example_weight: float | None = None
    examples_only: tuple[str, ...] = ()

    def embedded_by(self, model: Model) -> EmbeddedExamples | None:
        """The examples as `Model.classify` takes them."""
        return None if self.examples is None else model.embed_examples(self.examples)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    escape_unprintable()
    try:
        options = parse(Options, arguments, command="predict", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    messages, output = consoles()

    def say(text: str, style: str | None = None) -> None:
        messages.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    noted: set[str] = set()

    def note(text: str) -> None:
        if text not in noted:  # the reader of the descriptions and the model may say the same
            noted.add(text)
            say(f"Note: {text}")

    try:
        runtime.open_devices()
    except ValueError as error:
        say(f"Error: {error}", style="red")
        return ExitStatus.MISTAKE
    outcome = Outcome()
    try:
        if not options.images:
            raise ValueError("There is nothing to look at: give images, folders or quoted globs.")
        question = _question(options, note)
        targets, outcome.skipped = find_images(options.images, options.output)
        check_outputs(
            targets,
            out=options.output,
            csv=options.csv,
            json=options.json,
            overwrite=options.overwrite,
        )
        for given, reason in outcome.skipped:
            say(f"Skipped {given}: {reason}", style="yellow")
        if targets:
            model = load(
                options.checkpoint,
                step=options.step,
                best=options.best,
                batch_size=options.batch_size,
                note=note,
                calibration=AUTO if options.calibration is None else options.calibration,
            )
            if len(question.labels) == 1:
                note(
                    f"{question.labels[0]!r} is the only label, so its probability is 100 % "
                    "for any image."
                )
            try:
                _look(model, targets, question, options, outcome, messages)
            finally:  # what was done is not lost where, say, the disk is full of visualizations
                _write(options, model, question, outcome)
    except (ValueError, OSError) as error:
        say(f"Error: {error}", style="red")
        return status_of(error)
    except KeyboardInterrupt:
        say("Stopped; nothing was written.")
        return ExitStatus.INTERRUPTED
    print_answers(outcome.answers, output, score_threshold=options.score_threshold)
    return _conclude(options, outcome, say)


def _question(options: Options, note: Callable[[str], None]) -> Question:
    labels = texts_of_option(options.labels, ",", "--labels")
    phrases = texts_of_option(options.phrases, ";", "--phrases")
    for option, texts, separator, other in (
        ("--labels", labels, ",", ";"),
        ("--phrases", phrases, ";", ","),
    ):
        if len(texts) == 1 and other in texts[0]:
            several = f"separate several by {separator!r}"
            note(f"{option} is taken for one text, {texts[0]!r}; {several}.")
    described = None
    if options.descriptions is not None:
        given = read_texts(options.descriptions)
        if not labels and isinstance(given, dict):
            labels = tuple(given)
        names = {label: label for label in labels}
        described = bind_descriptions(given, names, options.descriptions, "labels", note)
    examples = None
    if options.examples is not None:
        examples = read_examples(options.examples, labels, note=note)
        labels = labels or tuple(examples)
    elif options.example_weight is not None or options.examples_only is not None:
        name = "example_weight" if options.example_weight is not None else "examples_only"
        raise ValueError(f"--{name} goes with --examples; give them or leave it out.")
    if not labels and not phrases:
        raise ValueError(
            "There is nothing to look for: give --labels, --descriptions, --examples or --phrases."
        )
    if options.alpha is not None and described is None:
        raise ValueError(
            "--alpha weighs the whole image against regions, which are compared with "
            "--descriptions; give them, or leave --alpha out."
        )
    if options.method != DESCRIPTION_METHODS[0] and described is None:
        raise ValueError(
            f"--method={options.method} goes with --descriptions; give them or leave it out."
        )
    if options.templates is not None and not labels:
        raise ValueError("--templates goes with --labels; give them or leave it out.")
    templates = None
    if options.templates is not None:
        templates = read_templates(options.templates)
    examples_only = texts_of_option(options.examples_only, ",", "--examples_only")
    check_known(examples_only, labels, "--examples_only")
    weight = options.example_weight
    return Question(labels, described, templates, phrases, examples, weight, examples_only)


def texts_of_option(given: str | None, separator: str, option: str) -> tuple[str, ...]:
    """The texts of an option: in it, or in the file it names; () where it was not given.

    Raises ValueError for a file that cannot be read, and for no text or the same one twice.
    """
    if given is None:
        return ()
    name = split_entry(given)[0]
    if (
        os.path.isfile(name)
        or Path(name).suffix.lower() in SUFFIXES
        or _names_file(given, separator)
    ):
        content = read_texts(given, "classes" if option == "--labels" else "")
        if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
            hint = entries_hint(content)
            raise ValueError(f"{option}: {given!r} must hold a list of texts{hint}.")
    else:
        content = given.split(separator)
        if Path(name).suffix.lower() in LISTS:
            raise ValueError(f"{option}: {given!r} is not a .txt or .json file; give one.")
    texts = tuple(text.strip() for text in content if text.strip())
    if not texts:
        raise ValueError(f"{option} holds no text; give at least one.")
    if repeated := [text for i, text in enumerate(texts) if text in texts[:i]]:
        raise ValueError(f"{option} holds {repeated[0]!r} more than once.")
    return texts


def _names_file(given: str, separator: str) -> bool:
    """Whether it can only be meant as a file's path, though there is no such file: "a.txt",
    "a.json#key", and "lists/a" where there is a folder "lists".
    """
    stem = given.rpartition("#")[0]
    if any(Path(name).suffix.lower() in SUFFIXES for name in (given, stem)):
        return True
    folder = os.path.dirname(given)
    return bool(folder) and separator not in given and os.path.isdir(folder)


def _look(
    model: Model,
    targets: Sequence[Target],
    question: Question,
    options: Options,
    outcome: Outcome,
    messages: Console,
) -> None:
    """Fills `outcome`, one batch of images after the other; draws the visualizations."""
    examples = question.embedded_by(model)
    columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    quiet = not messages.is_terminal
    with Progress(*columns, console=messages, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=len(targets))
        try:
            for start in range(0, len(targets), model.batch_size):
                batch = targets[start : start + model.batch_size]
                embedded = model.embed_images([target.file for target in batch], on_error="skip")
                for one in embedded.skipped:
                    outcome.skipped.append((one.name, one.reason))
                    text = f"Skipped {one.name}: {one.reason}"
                    messages.print(
                        text, style="yellow", markup=False, highlight=False, soft_wrap=True
                    )
                    progress.advance(task)
                left_out = {one.position for one in embedded.skipped}
                kept = [target for i, target in enumerate(batch) if i not in left_out]
                for answer in _answers(model, embedded, kept, question, examples, options):
                    if options.output is not None:
                        draw_answer(answer, options.output, score_threshold=options.score_threshold)
                    outcome.answers.append(answer)
                    progress.advance(task)
        except KeyboardInterrupt:
            outcome.interrupted = True


def _answers(
    model: Model,
    embedded: ImageEmbeddings,
    targets: Sequence[Target],
    question: Question,
    examples: EmbeddedExamples | None,
    options: Options,
) -> Iterator[Answer]:
    classified: Sequence[Classification | None] = [None] * len(targets)
    grounded: Sequence[Grounding | None] = [None] * len(targets)
    if not targets:
        return
    if question.labels:
        classified = model.classify(
            embedded,
            question.labels,
            question.descriptions,
            examples=examples,
            example_weight=question.example_weight,
            examples_only=question.examples_only,
            alpha=options.alpha,
            top_k=options.top_k,
            method=options.method,
            templates=question.templates,
        )
    if question.phrases:
        grounded = model.ground(embedded, question.phrases)
    for n, target in enumerate(targets):
        boxes = None if embedded.boxes_xyxy is None else embedded.boxes_xyxy[n]
        yield Answer(target, classified[n], grounded[n], boxes, embedded.crop_xyxy[n])


def _write(options: Options, model: Model, question: Question, outcome: Outcome) -> None:
    """The files of --csv and --json, also of what was done before an interruption."""
    if not outcome.answers:
        return
    visualizations, score_threshold = options.output is not None, options.score_threshold
    if options.csv is not None:
        write_csv(
            options.csv,
            outcome.answers,
            score_threshold=score_threshold,
            visualizations=visualizations,
        )
    if options.json is not None:
        request: dict[str, Any] = dataclasses.asdict(question) | _examples_entry(question)
        request |= {
            name: getattr(options, name) for name in ("alpha", "method", "top_k", "score_threshold")
        }
        named = question.descriptions is None or options.method == "name_and_regions"
        if question.labels and named and question.templates is None:
            request["templates"] = model.loaded.templates
        if question.descriptions is not None and options.alpha is None:
            request["alpha"] = model.default_alpha
        given = {"checkpoint": str(options.checkpoint), "request": request}
        if model.calibration is not None:
            given["calibration"] = _calibration_entry(model.calibration)
        write_json(
            options.json,
            outcome,
            request=given,
            score_threshold=score_threshold,
            visualizations=visualizations,
        )


def _examples_entry(question: Question) -> dict[str, Any]:
    """Number of examples of each class, and the weight that they had."""
    if question.examples is None:
        return {"examples": None}
    weight = EXAMPLE_WEIGHT if question.example_weight is None else question.example_weight
    counts = {label: len(images) for label, images in question.examples.items()}
    return {"examples": counts, "example_weight": weight}


def _calibration_entry(calibration: Calibration) -> dict[str, Any]:
    """What was fitted, and for which method and texts; without its classes, which may be many."""
    entry = to_json(calibration, {})
    del entry["report"], entry["class_shift"], entry["fitted_for"]["classes"]
    return entry


def _conclude(options: Options, outcome: Outcome, say: Callable[..., None]) -> int:
    """Says what was done and where it is; the exit status."""
    done, skipped = len(outcome.answers), len(outcome.skipped)
    if not done:
        say("Stopped." if outcome.interrupted else "Error: no image could be read.", style="red")
        return ExitStatus.INTERRUPTED if outcome.interrupted else ExitStatus.MISTAKE
    places = [str(path) for path in (options.output, options.csv, options.json) if path is not None]
    where = f"; written: {', '.join(places)}" if places else ""
    left_out = f", {skipped} skipped" if skipped else ""
    stopped = "Stopped after " if outcome.interrupted else ""
    say(f"{stopped}{done} image{'s' * (done != 1)}{left_out}{where}.")
    if outcome.interrupted:
        return ExitStatus.INTERRUPTED
    return ExitStatus.SKIPPED if skipped else ExitStatus.DONE


if __name__ == "__main__":
    runtime.restart_with_huge_pages()
    runtime.cache_compilations("auto")
    end(main())
