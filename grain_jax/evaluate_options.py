"""What `python -m grain_jax.evaluate` takes, and what of it goes together."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args

from tyro.conf import arg

from grain_jax import evaluate_crops, evaluate_published, evaluate_support
from grain_jax.cache_options import CacheOptions
from grain_jax.command_line import (
    OUT,
    Best,
    OptionalCount,
    OptionalText,
    RunPath,
    Step,
    default_is,
    fractions,
    one_of,
    one_word,
)
from grain_jax.config.schema import PromptEnsembling, RegionAggregation
from grain_jax.data.classification.class_counts import published_kinds
from grain_jax.data.classification.class_names import BINDINGS, Binding
from grain_jax.data.classification.set_names import folder_name
from grain_jax.data.records import ZeroShotSet
from grain_jax.evaluate_crops import CropOptions
from grain_jax.evaluate_files import check_places
from grain_jax.evaluate_published import PublishedOptions
from grain_jax.evaluate_records import chosen_tasks
from grain_jax.evaluate_several import PLACES
from grain_jax.evaluate_support import SupportOptions
from grain_jax.evaluate_watch import IDLE_MINUTES, check_watch
from grain_jax.evaluation.kept_predictions import NOT_KEPT
from grain_jax.evaluation.suite_file import Suite, read_suite
from grain_jax.evaluation.suite_sets import OpenedSuite, open_suite
from grain_jax.parallel.processes import ProcessOptions
from grain_jax.paths import local_path
from grain_jax.zero_shot.methods import (
    DEFAULT_METHODS,
    METHODS,
    READ_BY,
    drawn_methods,
    kinds_of,
    named_methods,
    readers,
)
from grain_jax.zero_shot.scorers import class_texts
from grain_jax.zero_shot.text_kinds import FROM_FILES, texts_differ

# Options that only one kind of figures looks at.
ZERO_SHOT = ("alphas", "region_aggregation", "prompt_ensembling", "text_draws")
OF_NAMES = ("keep_names", "classes_by", "allow_equal_names")
OF_STORED = ("image_column", "label_column")  # of images that are not files of a folder
OF_IMAGES = (
    *("classes", "templates", "descriptions", "description_template", "counts", "texts"),
    *OF_NAMES,
)
OF_EVERY_SET = ("templates", "counts")  # of labelled images, and of all sets of a suite
OF_ONE_STEP = ("step", "best", "output", "predictions")
MEASURED = ("data", "split", "tasks", "suite", "suite_data", "allow_missing", "methods")
OF_SUITE = ("suite_data", "allow_missing")
OF_RECORDS = ("tasks",)
OF_DESCRIPTIONS = ("description_template", "alphas", "region_aggregation")


_OptionalPath = Annotated[Path | None, one_word(local_path, "PATH")]
_OptionalFile = Annotated[_OptionalPath, arg(metavar="FILE", help_behavior_hint="")]
_own = default_is("the run's")


def _methods(text: str) -> tuple[str, ...]:
    return named_methods(text.split(","))


def _text_files(text: str) -> dict[str, str]:
    files = {}
    for part in text.split(","):
        kind, _, file = part.partition("=")
        if kind not in FROM_FILES or not file or kind in files:
            raise ValueError(f"{part!r} should be KIND=FILE, a kind once: {', '.join(FROM_FILES)}")
        files[kind] = file
    return files


@dataclass(frozen=True)
class Options:
    """What `evaluate` takes."""

    checkpoint: Annotated[RunPath, arg(metavar="RUN")]  # run folder, or another model (above)
    step: Step = None  # checkpoint of this step
    best: Best = False  # the checkpoint that keep_best kept
    watch: bool = False  # every checkpoint, as the run writes it; ends with the run
    tables: bool = False  # of --watch: the full tables of each checkpoint, not a line
    # after which a run that writes nothing has stopped
    idle_minutes: Annotated[OptionalCount, default_is(f"{IDLE_MINUTES}")] = None
    # labelled images, or prepared records
    data: Annotated[_OptionalPath, default_is("the run's own")] = None
    # sets that are measured together: a name, or a .toml or .json file (docs/evaluation.md)
    suite: Annotated[OptionalText, arg(metavar="NAME")] = None
    # one folder a set of the suite
    suite_data: Annotated[_OptionalPath, default_is("beside the suite's file")] = None
    allow_missing: bool = False  # leave out sets of the suite that are not there
    # of prepared records, and of images in tars, tables or TFDS
    split: Annotated[OptionalText, default_is("the run's evaluation split, or test")] = None
    # of prepared records: retrieval,grounding
    tasks: Annotated[OptionalText, default_is("both")] = None
    # names: .json {label: name}, or a list in .json, .txt, .md#heading
    classes: Annotated[OptionalText, arg(metavar="FILE")] = None
    # prompts with one "{}": .txt, .json or .md; file.json#key; or single, imagenet, official
    templates: Annotated[OptionalText, arg(metavar="FILE")] = None
    # .json {class: [description, ...]}
    descriptions: Annotated[OptionalText, arg(metavar="FILE")] = None
    # what the image is compared with, e.g. "a photo of a {name}, which has {}"
    description_template: Annotated[OptionalText, default_is('"{}"')] = None
    # training captions of each class: .json {class: number}, or published ones as cub:cc12m_text,
    # of a suite's sets as cc12m_text
    counts: Annotated[OptionalText, arg(metavar="FILE")] = None
    # texts that some methods take: KIND=.json {class: [text, ...]}, with commas between several
    texts: Annotated[dict[str, str] | None, one_word(_text_files, "KIND=FILE,...")] = None
    # of zero-shot classification: keys of docs/zero-shot.md with commas between them; all: those
    # that encode an image once
    methods: Annotated[
        tuple[str, ...] | None, one_word(_methods, "A,B,..."), default_is(",".join(DEFAULT_METHODS))
    ] = None
    # of images in tables or TFDS: which column holds them, and which their class
    image_column: Annotated[OptionalText, default_is("found")] = None
    label_column: Annotated[OptionalText, default_is("found")] = None
    given: Annotated[SupportOptions, arg(name="")] = field(default_factory=SupportOptions)
    beside: Annotated[PublishedOptions, arg(name="")] = field(default_factory=PublishedOptions)
    keep_names: bool = False  # leave underscores in names
    # how a list of names is bound to labels
    classes_by: Annotated[Binding | None, one_of(BINDINGS), default_is(BINDINGS[0])] = None
    allow_equal_names: bool = False  # classes may have the same name; their scores by name tie
    # weights of the whole image, e.g. 1,0.5,0
    alphas: Annotated[tuple[float, ...] | None, one_word(fractions, "A,B,..."), _own] = None
    # score of a class by its descriptions, see `docs/evaluation.md`
    region_aggregation: Annotated[
        RegionAggregation | None, one_of(get_args(RegionAggregation)), _own
    ] = None
    # what is averaged over templates: embeddings, or scores; docs/zero-shot.md lists the methods
    prompt_ensembling: Annotated[
        PromptEnsembling | None, one_of(get_args(PromptEnsembling)), _own
    ] = None
    # how often what is random is drawn: texts (WaffleCLIP: 7 in its paper), crops (WCA: 20)
    text_draws: Annotated[OptionalCount, _own] = None
    of_crops: Annotated[CropOptions, arg(name="")] = field(default_factory=CropOptions)
    batch_size: Annotated[OptionalCount, _own] = None  # images at once
    # file of the results, JSON; a folder, as FOLDER/: one in it for each checkpoint
    output: Annotated[_OptionalFile, OUT, default_is("one in the run's folder")] = None
    # every single answer, .jsonl or .csv, also .gz; a folder, as FOLDER/: a .jsonl in it for each
    # checkpoint; none: not kept
    predictions: Annotated[_OptionalFile, default_is("beside the results")] = None
    overwrite: bool = False  # replace files of an earlier evaluation
    embeddings: Annotated[CacheOptions, arg(name="")] = field(default_factory=CacheOptions)
    processes: Annotated[ProcessOptions, arg(name="")] = field(default_factory=ProcessOptions)


def check_all(
    every: Sequence[Options], *, note: Callable[[str], None], folders: Mapping[str, Path]
) -> OpenedSuite | None:
    """Refuses what does not apply, before anything is loaded; opens the suite, if one is given.

    `folders`: what options name, where it is a folder, which may not be there yet.
    """
    first = every[0]
    for name in PLACES if len(every) > 1 else ():
        if getattr(first, name) not in (None, NOT_KEPT) and name not in folders:
            raise ValueError(
                f"--{name} names one file, and {len(every)} checkpoints are given; give a folder, "
                f"as in --{name}=results/, leave it out, or run the command once for each."
            )
    for options in every:
        check(options, folders=folders)
    if first.watch:
        unset = (None, False, NOT_KEPT)
        given = [name for name in OF_ONE_STEP if getattr(first, name) not in unset]
        check_watch(first.checkpoint, checkpoints=len(every), given=given)
    elif first.idle_minutes is not None or first.tables:
        name = "tables" if first.tables else "idle_minutes"
        raise ValueError(f"--{name} goes with --watch; leave it out.")
    suite = None if first.suite is None else read_suite(first.suite)
    evaluate_published.check(
        first.beside,
        sets=_names_of_sets(first, suite),
        methods=first.methods or DEFAULT_METHODS,
        one_model=len(every) == 1 and not first.watch,
        templates=first.templates,
    )
    if suite is None:
        refuse(first, OF_SUITE, "--suite")
        _check_read(first, first.methods or DEFAULT_METHODS)
        return None
    labelled = [(part, one) for part in suite.every for one in part.images]
    of_sets = [one.methods or part.methods or DEFAULT_METHODS for part, one in labelled]
    if not labelled:
        not_read = (*ZERO_SHOT, *OF_EVERY_SET, "methods")
        refuse(first, not_read, "labelled images, which this suite has not")
    _check_read(first, first.methods or tuple(dict.fromkeys(itertools.chain(*of_sets))))
    return open_suite(
        suite,
        suite_data=first.suite_data,
        allow_missing=first.allow_missing,
        templates=first.templates or "",
        counts=first.counts or "",
        note=note,
    )


def _names_of_sets(options: Options, suite: Suite | None) -> list[str] | None:
    """What the results will be called; None for those that the run itself names."""
    if suite is not None:
        return [one.name for part in suite.every for one in part.sets]
    return None if options.data is None else [folder_name(options.data)]


def check(options: Options, *, folders: Mapping[str, Path]) -> None:
    """Refuses what does not apply to one model; `folders` as in `check_all`."""
    kind = kind_of(options)
    if kind == "suite" and options.data is not None:
        raise ValueError("--suite and --data both say what to measure; give one of them.")
    if kind != "records":
        refuse(options, OF_RECORDS, "prepared records")
    of_images = (*OF_IMAGES, *OF_STORED)
    if kind == "suite" and (
        given := [
            *(name for name in of_images if name not in OF_EVERY_SET and getattr(options, name)),
            *options.given.given,
        ]
    ):
        raise ValueError(
            f"--{given[0]} is of one set; write it under the set in the suite's file, as "
            f'{given[0]} = "...".'
        )
    if kind == "suite" and options.counts and options.counts not in published_kinds():
        raise ValueError(
            f"--counts={options.counts} is of one set; write it under the set in the suite's file, "
            f"or give counts of several sets: {', '.join(published_kinds())}."
        )
    if kind not in ("images", "suite"):
        refuse(options, of_images, "labelled images")
    if kind in ("own", "suite"):
        refuse(options, ("split",), "prepared records or labelled images")
    if kind == "records":
        refuse(options, (*ZERO_SHOT, "methods"), "zero-shot classification")
        refuse(options.of_crops, tuple(options.of_crops.given), "zero-shot classification")
    evaluate_support.check(
        options.given,
        data=options.data,
        is_labelled=kind == "images",
        methods=options.methods or DEFAULT_METHODS,
    )
    if kind == "records":
        chosen_tasks(options.tasks)
    check_places(options, folders=folders)


def _check_read(options: Options, methods: Collection[str]) -> None:
    """Refuses what none of the methods reads, as it would change no figure of theirs."""
    for name in READ_BY:
        if (given := getattr(options, name)) is not None and not readers(name, methods):
            said = given if isinstance(given, str) else ",".join(f"{one:g}" for one in given)
            raise ValueError(
                f"--{name}={said} is read by none of the methods {', '.join(methods)}; name some "
                f"of {', '.join(readers(name, METHODS))} with --methods, or leave it out."
            )
    for kind in options.texts or {}:
        if kind not in kinds_of(methods):
            takers = [name for name in METHODS if kind in kinds_of([name])]
            raise ValueError(
                f"--texts={kind}=... is read by none of the methods {', '.join(methods)}; name "
                f"some of {', '.join(takers)} with --methods, or leave it out."
            )
    check_draws(options, methods)
    evaluate_crops.check(options.of_crops, methods)


def check_templates(options: Options, dataset: ZeroShotSet, *, has_regions: bool) -> None:
    """Refuses templates that none of the methods reads: some do for classes without other texts."""
    if options.templates is None:
        return
    others = dataclasses.replace(dataset, templates=tuple(f"{one}." for one in dataset.templates))
    methods = options.methods or DEFAULT_METHODS
    given, changed = class_texts(dataset), class_texts(others)
    if not texts_differ(given, changed, kinds_of(methods), has_regions=has_regions):
        raise ValueError(
            f"--templates={options.templates} is read by none of the methods {', '.join(methods)} "
            "on this set, whose classes all have texts of their own; name another method with "
            "--methods, or leave it out."
        )


def check_draws(options: Options, methods: Collection[str]) -> None:
    """Refuses several draws where none of the methods has random texts or crops."""
    if options.text_draws is not None and not drawn_methods(methods):
        raise ValueError(
            f"--text_draws={options.text_draws} is of methods with random texts or crops, and none "
            f"of those that are measured has any; name some of "
            f"{', '.join(drawn_methods(METHODS))} with --methods, or leave it out."
        )


def kind_of(options: Options) -> str:
    """What is measured: the run's "own" sets, a "suite", or what --data names: "records" or
    "images".
    """
    if options.suite is not None:
        return "suite"
    if options.data is None:
        return "own"
    return "records" if (options.data / "dataset_info.json").exists() else "images"


def refuse(options: Options | CropOptions, names: Sequence[str], needs: str) -> None:
    """Raises ValueError where one of the options is given, which goes with what it `needs`."""
    if given := [name for name in names if getattr(options, name) not in (None, False)]:
        raise ValueError(f"--{given[0]} goes with {needs}; leave it out or change --data.")
