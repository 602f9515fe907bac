"""Fit what the scores of a model mean: probabilities, "none of these", sets of labels.

  python -m grain_jax.calibrate --checkpoint=RUN --data=IMAGES     (labelled, as for evaluate)
  python -m grain_jax.calibrate --checkpoint=RUN --data=IMAGES --unlabelled --labels="cat,dog"

Writes calibration.json beside the checkpoint, which `python -m grain_jax.predict` and
`grain_jax.load` then use. It is fitted to a part of the images and measured on the rest. What holds
for which classes: `docs/evaluation.md`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from grain_jax import runtime, slow_compile
from grain_jax.buckets import in_bucket
from grain_jax.cache_options import CacheOptions, embeddings_line, open_store, over_store
from grain_jax.command_line import (
    OUT,
    Best,
    ExitStatus,
    NotParsed,
    OptionalCount,
    OptionalPath,
    OptionalText,
    RequiredPath,
    RunPath,
    Step,
    default_is,
    end,
    fraction,
    inner_fraction,
    one_of,
    one_word,
    parse,
    positive,
    progress_bar,
    status_of,
    weight,
)
from grain_jax.data.classification.class_names import BINDINGS, Binding
from grain_jax.data.classification.class_texts import bind_descriptions
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.classification.set_names import folder_name
from grain_jax.data.classification.stored_classes import DEFAULT_SPLIT
from grain_jax.data.classification.templates import read_templates
from grain_jax.data.image_sets import open_images
from grain_jax.data.records import Source, ZeroShotSet
from grain_jax.data.text_files import read_texts
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.disk import whole_file, write_whole
from grain_jax.evaluate_notes import named
from grain_jax.evaluation.calibration_fit import (
    FitSettings,
    Fitted,
    check_counts,
    encode_classes,
    fit,
)
from grain_jax.evaluation.details import describe_set
from grain_jax.evaluation.predictions import record_ids
from grain_jax.evaluation.report import versions
from grain_jax.evaluation.results_file import check_place
from grain_jax.formats.huggingface import METADATA as EXPORT
from grain_jax.formats.huggingface import PIPELINE_METHODS
from grain_jax.inference.encoder import Encoder, ImageFeatures, errors_about
from grain_jax.inference.predictor import ALPHA, DESCRIPTION_METHODS
from grain_jax.loading.calibration import calibration_place
from grain_jax.loading.load import read_model
from grain_jax.models.bundle import ModelBundle
from grain_jax.predict import texts_of_option
from grain_jax.terminal import escape_unprintable
from grain_jax.visualize.reliability import Diagram, draw_reliability
from grain_jax.zero_shot.calibration import FILE as CALIBRATION
from grain_jax.zero_shot.calibration import SetRule, to_json

METHODS = (*DESCRIPTION_METHODS, "name")
OF_STORED = ("image_column", "label_column")  # of tables and TFDS
OF_LABELLED = ("classes", "keep_names", "classes_by", "allow_equal_names", *OF_STORED)
TRANSFER = (
    "The temperature often holds for other classes and images and is not certain to; the "
    "threshold, the sets, class_shift and seen_cosine hold for these classes by these texts, and "
    "for images like these."
)
SHOWN = {  # metric -> its name on the screen, and whether it is a percentage
    "accuracy": ("accuracy", True),
    "mean_confidence": ("mean confidence", True),
    "ece": ("calibration error (ECE)", True),
    "adaptive_ece": ("adaptive ECE", True),
    "nll": ("negative log-likelihood", False),
    "coverage": ("sets that hold the label", True),
    "set_size": ("labels in a set", False),
}


@dataclass(frozen=True)
class Options:
    """What `calibrate` takes."""

    checkpoint: Annotated[RunPath, arg(metavar="RUN")]  # run folder, or another model
    data: Annotated[RequiredPath, arg(metavar="IMAGES")]  # labelled images, or see --unlabelled
    step: Step = None  # checkpoint of this step
    best: Best = False  # the checkpoint that keep_best kept
    unlabelled: bool = False  # --data is any images: match the classes' frequencies
    # with --unlabelled: "a,b,c", or a file as of predict; without, the keys of --descriptions
    labels: OptionalText = None
    # names: .json {label: name}, or a list in .json, .txt, .md#heading
    classes: Annotated[OptionalText, arg(metavar="FILE")] = None
    # prompts with one "{}": .txt, .json or .md; file.json#key; or single, imagenet, official
    templates: Annotated[OptionalText, arg(metavar="FILE")] = None
    # .json {class: [description, ...]}
    descriptions: Annotated[OptionalText, arg(metavar="FILE")] = None
    keep_names: bool = False  # leave underscores in names
    # how a list of names is bound to labels
    classes_by: Annotated[Binding | None, one_of(BINDINGS), default_is(BINDINGS[0])] = None
    split: Annotated[OptionalText, default_is("test, or the only one")] = None  # not of a folder
    image_column: OptionalText = None  # of tables and TFDS, where several hold images
    label_column: OptionalText = None  # likewise of classes
    allow_equal_names: bool = False  # classes may have the same name; their scores by name tie
    # the method to calibrate: as it is used later
    method: Annotated[
        str | None, one_of(METHODS), default_is("description where there are any, else name")
    ] = None
    # weight of the whole image, 0 to 1
    alpha: Annotated[float | None, one_word(fraction, "A"), default_is("0.5 with regions")] = None
    # images of the classes that "none of these" may be said of
    false_reject: Annotated[float, one_word(inner_fraction, "R")] = 0.05
    # images of none of the classes, for the false-accept rate: what --data takes, without labels
    outliers: Annotated[OptionalPath, arg(metavar="IMAGES")] = None
    # of --outliers in tars, tables, TFDS or records
    outliers_split: Annotated[OptionalText, default_is("test, or the only one")] = None
    # of --outliers those that may be accepted; chooses the threshold in place of --false_reject
    false_accept: Annotated[
        float | None, one_word(inner_fraction, "R"), arg(help_behavior_hint="")
    ] = None
    region_weight: Annotated[float, one_word(weight, "W")] = 1.0  # of the best region in it
    # of the softmax over cosines in it
    none_temperature: Annotated[float, one_word(positive, "T")] = 1.0
    coverage: Annotated[float, one_word(inner_fraction, "C")] = 0.9  # sets that hold the true label
    # which labels a set takes: lac gives the smallest sets, aps larger ones of unsure images
    sets: Annotated[SetRule, one_of(get_args(SetRule))] = "lac"
    fit_fraction: Annotated[float, one_word(inner_fraction, "F")] = 0.5  # of the images, to fit to
    batch_size: Annotated[OptionalCount, default_is("the run's")] = None  # images at once
    # file to write
    output: Annotated[
        OptionalPath, OUT, arg(metavar="FILE"), default_is("calibration.json beside the checkpoint")
    ] = None
    overwrite: bool = False  # replace an earlier one
    embeddings: Annotated[CacheOptions, arg(name="")] = field(default_factory=CacheOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    escape_unprintable()
    try:
        options = parse(Options, arguments, command="calibrate", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    messages = Console(stderr=True)

    def say(text: str, style: str | None = None) -> None:
        messages.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    noted: set[str] = set()

    def note(text: str) -> None:
        if text not in noted:
            noted.add(text)
            say(f"Note: {text}")

    try:
        runtime.open_devices()
        _check(options)
        path = _place(options)
        fitted, content, embedded = _calibrate(options, messages, note)
        plot = _write(path, fitted, content)
    except (ValueError, OSError) as error:
        say(f"Error: {error}", style="red")
        return status_of(error)
    except KeyboardInterrupt:
        say("Stopped; nothing was written.")
        return ExitStatus.INTERRUPTED
    _print(content, Console())
    print(f"Written to {path}{f'; reliability: {plot}' if plot else ''}")
    print(embedded)
    of_export = path.name == CALIBRATION and (path.parent / EXPORT).is_file()
    if of_export and fitted.calibration.method in PIPELINE_METHODS:
        note(
            "the pipeline of this export answers as it did when it was exported; export it again "
            f"(python -m grain_jax.export --checkpoint={options.checkpoint} --to=huggingface "
            "--output=FOLDER) for one with this calibration. grain_jax.load and predict use it as "
            "it is."
        )
    return ExitStatus.DONE


def _check(options: Options) -> None:
    """Refuses what does not go together, before anything is loaded."""
    if options.unlabelled:
        given = [name for name in OF_LABELLED if getattr(options, name) not in (None, False)]
        if given:
            raise ValueError(f"--{given[0]} goes with labelled images; leave out --unlabelled.")
        if options.labels is None and options.descriptions is None:
            raise ValueError("--unlabelled takes the classes: give --labels or --descriptions.")
    elif options.labels is not None:
        raise ValueError("--labels goes with --unlabelled; labelled images have their own.")
    if options.false_accept is not None and options.outliers is None:
        raise ValueError(
            "--false_accept is of images of none of the classes; give some with --outliers."
        )
    if options.outliers_split is not None and options.outliers is None:
        raise ValueError("--outliers_split goes with --outliers; give both, or leave it out.")
    if options.method == "name" and options.alpha is not None:
        raise ValueError("--alpha weighs descriptions; leave it out with --method=name.")


def _place(options: Options) -> Path:
    """The file to write, and that it can be, with the plot beside it."""
    place = options.output or calibration_place(options.checkpoint)
    if place is None or in_bucket(place):
        raise ValueError(
            f"{options.checkpoint} is no folder or file of this machine to write a calibration "
            "beside; give --output, and that file to predict with --calibration."
        )
    if place.suffix != ".json":
        raise ValueError(f"--output={place} should end in .json.")
    check_place("output", place, overwrite=options.overwrite)
    check_place("output", _plot(place), overwrite=options.overwrite)
    return place


def _plot(path: Path) -> Path:
    return path.with_suffix(".png")


def _calibrate(
    options: Options, messages: Console, note: Callable[[str], None]
) -> tuple[Fitted, dict[str, Any], str]:
    """What was fitted, the content of the file, and what of the embeddings was cached."""
    store = open_store(options.embeddings)
    loaded = read_model(options.checkpoint, step=options.step, best=options.best)
    encoder = Encoder.from_bundle(loaded, batch_size=options.batch_size)
    encoder = over_store(encoder, store, note=note)
    dataset = (
        _unlabelled(options, loaded, note) if options.unlabelled else _set(options, loaded, note)
    )
    described = any(dataset.descriptions.values())
    method = options.method or (DESCRIPTION_METHODS[0] if described else "name")
    if options.alpha is not None and (method == "name" or not loaded.has_regions):
        raise ValueError(
            "--alpha weighs the whole image against regions, and here there are no "
            f"{'regions' if method != 'name' else 'descriptions'}; leave it out."
        )
    alpha = ALPHA if loaded.has_regions else 1.0
    settings = FitSettings(
        method=method,
        alpha=alpha if options.alpha is None else options.alpha,
        fit_fraction=options.fit_fraction,
        coverage=options.coverage,
        set_rule=options.sets,
        false_reject=options.false_reject,
        false_accept=options.false_accept,
        region_weight=options.region_weight,
        none_temperature=options.none_temperature,
    )
    if isinstance(encoder.tokenizer, WordTokenizer):
        texts = [*dataset.class_names, *(t for d in dataset.descriptions.values() for t in d)]
        words = dict.fromkeys(w for text in texts for w in encoder.tokenizer.unknown_words(text))
        if words:
            note(encoder.tokenizer.unknown_words_note(list(words)))
    others = None if options.outliers is None else _outliers(options)
    names = record_ids(dataset.source)
    outlier_names = None if others is None else record_ids(others)
    check_counts(settings, names, outlier_names)
    classes = encode_classes(loaded, dataset, settings, encoder.texts)
    fitted = fit(
        loaded,
        classes,
        _features(encoder, dataset.source, messages, str(options.data)),
        settings,
        names=names,
        labelled=not options.unlabelled,
        outliers=None
        if others is None
        else _features(encoder, others, messages, str(options.outliers)),
        outlier_names=outlier_names or (),
        note=note,
    )
    report = {
        "checkpoint": str(options.checkpoint),
        "data": named(options.data),
        "split": options.split,
        "set": describe_set(dataset),
        "outliers": options.outliers and named(options.outliers),
        "outliers_split": options.outliers_split,
        **fitted.report,
        "transfer": TRANSFER,
        "versions": versions(),
    }
    return fitted, to_json(fitted.calibration, report), embeddings_line(encoder)


def _set(options: Options, loaded: ModelBundle, note: Callable[[str], None]) -> ZeroShotSet:
    return load_zero_shot(
        options.data,
        classes=options.classes or "",
        templates=options.templates or "",
        descriptions=options.descriptions or "",
        default_templates=loaded.templates,
        keep_names=options.keep_names,
        classes_by=options.classes_by or BINDINGS[0],
        allow_equal_names=options.allow_equal_names,
        split=options.split,
        image_column=options.image_column,
        label_column=options.label_column,
        note=note,
    )


def _unlabelled(options: Options, loaded: ModelBundle, note: Callable[[str], None]) -> ZeroShotSet:
    """The images, with class texts as `predict` reads them."""
    labels = texts_of_option(options.labels, ",", "--labels")
    described: dict[str, tuple[str, ...]] = {}
    if options.descriptions is not None:
        given = read_texts(options.descriptions)
        if not labels and isinstance(given, dict):
            labels = tuple(given)
        names = {label: label for label in labels}
        described = bind_descriptions(given, names, options.descriptions, "labels", note)
    if len(labels) < 2:
        raise ValueError(
            f"There is {len(labels)} class, whose probability is always 1; give two or more with "
            "--labels or --descriptions."
        )
    templates = tuple(loaded.templates)
    if options.templates is not None:
        templates = read_templates(options.templates)
    return ZeroShotSet(
        name=folder_name(options.data),
        source=open_images(options.data, options.split, default_split=DEFAULT_SPLIT),
        class_names=labels,
        templates=templates,
        descriptions=described,
    )


def _outliers(options: Options) -> Source:
    """The images of none of the classes, any labels unread."""
    assert options.outliers is not None
    with errors_about("--outliers"):
        return open_images(
            options.outliers,
            options.outliers_split,
            default_split=DEFAULT_SPLIT,
            option="--outliers_split",
        )


def _features(encoder: Encoder, source: Source, messages: Console, name: str) -> ImageFeatures:
    with (
        progress_bar(messages, "images", state="compiling") as advance,
        errors_about(repr(name)),
    ):
        return encoder.images(source, on_batch=lambda done: advance(done, len(source), ""))


def _write(path: Path, fitted: Fitted, content: dict[str, Any]) -> Path | None:
    """Writes the file, and the plot where there is one; returns the plot."""
    plot = None
    if fitted.reliability:
        plot = _plot(path)
        diagrams = [
            Diagram(f"{when}: ECE {content['report'][when]['ece']['value']:.1%}", bins)
            for when, bins in fitted.reliability
        ]
        with whole_file(plot) as partial:
            draw_reliability(diagrams, partial)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n", errors="backslashreplace")
    return plot


def _print(content: dict[str, Any], output: Console) -> None:
    report = content["report"]
    fitted = content["fitted_for"]
    alpha = "" if fitted["alpha"] is None else f" at alpha {fitted['alpha']:g}"
    title = f"{fitted['method']}{alpha}, {report['images']['held_out']:,} held-out images"
    table = Table("metric", title=title, title_justify="left")
    for column in ("before", "after", "95 %, after"):
        table.add_column(column, justify="right")
    if report["labelled"]:
        for name, (shown, percent) in SHOWN.items():
            style = "{:.1%}" if percent else "{:.3f}"
            before, after = report["before"][name], report["after"][name]
            interval = "-".join(style.format(after[end]) for end in ("low", "high"))
            if name == "coverage":
                shown += f" (asked for: {content['label_sets']['coverage']:.4g})"
            table.add_row(
                shown, style.format(before["value"]), style.format(after["value"]), interval
            )
    else:
        before, after = (report[when]["prior_departure"] for when in ("before", "after"))
        table.add_row("largest departure of a class", f"{before:.1%}", f"{after:.1%}", "")
    none = report["none_of_these"]
    for name, shown in (
        ("false_reject", 'false "none of these"'),
        ("false_accept", "outliers accepted"),
    ):
        if name in none:
            settings = report["settings"]
            asked = "false_reject" if settings["false_accept"] is None else "false_accept"
            if name == asked:
                shown += f" (asked for: {settings[name]:.1%})"
            low, high = (f"{none[name][end]:.1%}" for end in ("low", "high"))
            table.add_row(shown, "", f"{none[name]['value']:.1%}", f"{low}-{high}")
    if "auroc" in none:
        alone, joined = f"{none['auroc_image_alone']:.3f}", f"{none['auroc']:.3f}"
        table.add_row("AUROC, the image alone and with regions", alone, joined, "")
        alone, joined = f"{none['fpr95_image_alone']:.1%}", f"{none['fpr95']:.1%}"
        table.add_row("outliers accepted with 95 % of images (FPR95), likewise", alone, joined, "")
    if "seen" in report:
        for name, shown in (
            ("of_the_class", "descriptions of the class that are seen"),
            ("of_other_classes", "descriptions of other classes that are"),
        ):
            table.add_row(shown, "", f"{report['seen'][name]:.1%}", "")
    output.print(table)
    output.print(f"temperature {content['temperature']:.4g}", highlight=False)


if __name__ == "__main__":
    runtime.restart_with_huge_pages()
    slow_compile.hide_alarm()
    end(main())
