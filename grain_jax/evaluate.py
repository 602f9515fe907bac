"""Zero-shot classification, retrieval and grounding of a checkpoint.

  python -m grain_jax.evaluate --checkpoint=RUN                 (what the run was measured by)
  python -m grain_jax.evaluate --checkpoint=RUN --data=IMAGES   (labels.csv, a folder a class,
                                                     tars, Parquet tables, or tfds:NAME)
  python -m grain_jax.evaluate --checkpoint=RUN --data=RECORDS  (written by grain_jax.prepare)
  python -m grain_jax.evaluate --checkpoint=RUN --suite=grain11 --suite_data=FOLDER
  python -m grain_jax.evaluate --checkpoint=A,B ...             (one table of several models)
  python -m grain_jax.evaluate --checkpoint=RUN --watch         (while it trains elsewhere)
  python -m grain_jax.evaluate compare A B                      (two files of --predictions)
  python -m grain_jax.evaluate report A.json B.json             (a page on files of results)
  python -m grain_jax.evaluate compositional ...                (SugarCrepe, Winoground, ARO)
  python -m grain_jax.evaluate grounding --checkpoint=RUN ...   (phrases, by published protocols)
  python -m grain_jax.evaluate leaks ...                        (training images in the test set)

On several machines: the same command on each, joined as `python -m grain_jax.train` joins them
(--distributed, or --coordinator, --num_processes and --process_id; Slurm and TPU pods on GKE join
without). Each scores its part of the images; the first one prints and writes.

RUN may also be an export, an official .pth, or a CLIP or SigLIP of Hugging Face or open_clip: a
folder, or a name on the Hugging Face hub.

What every figure means is said in `docs/evaluation.md`.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import jax
from rich.console import Console
from tyro.conf import arg

from grain_jax import (
    evaluate_compare,
    evaluate_compositional,
    evaluate_grounding,
    evaluate_leaks,
    evaluate_report,
    evaluate_support,
    runtime,
    slow_compile,
)
from grain_jax.command_line import (
    OUT,
    Best,
    ExitStatus,
    NotParsed,
    OptionalCount,
    OptionalText,
    RunPath,
    Step,
    default_is,
    end,
    fractions,
    one_of,
    one_word,
    parse,
    status_of,
)
from grain_jax.config import MeshConfig, TrainConfig
from grain_jax.config.schema import PromptEnsembling, RegionAggregation
from grain_jax.data.classification.class_names import BINDINGS, Binding
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.records import ZeroShotSet
from grain_jax.data.source import data_source
from grain_jax.evaluate_files import finish
from grain_jax.evaluate_notes import (
    named,
    note_choice,
    print_line,
    print_side_by_side,
    same_place,
    say_error,
    say_note,
)
from grain_jax.evaluate_records import chosen_tasks, evaluate_records
from grain_jax.evaluate_several import OF_ONE, one_a_checkpoint
from grain_jax.evaluate_support import SupportOptions
from grain_jax.evaluate_watch import IDLE_MINUTES, check_watch, watch
from grain_jax.evaluation import results_file
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.digests import sha256_of
from grain_jax.evaluation.predictions import PredictionsFile, check_suffix
from grain_jax.evaluation.report import hardware, versions
from grain_jax.evaluation.suite import (
    evaluate,
    named_folders,
    score_zero_shot,
)
from grain_jax.evaluation.suite_file import read_suite
from grain_jax.evaluation.suite_sets import OpenedSuite, evaluate_suite, open_suite
from grain_jax.evaluation.tables import print_results
from grain_jax.evaluation.unknown_words import unknown_words_note
from grain_jax.inference.cached_encoder import AUTO, NO_CACHE, NONE, CachedEncoder, open_cache
from grain_jax.inference.encoder import Encoder
from grain_jax.loading.load import read_model
from grain_jax.models.learned import what_lacks
from grain_jax.parallel import processes
from grain_jax.parallel.processes import ProcessOptions
from grain_jax.parallel.sharding import make_mesh
from grain_jax.paths import local_path
from grain_jax.results import Result
from grain_jax.terminal import escape_unprintable
from grain_jax.zero_shot.methods import DEFAULT_METHODS, METHODS, check_methods, lacking
from grain_jax.zero_shot.scorers import class_texts
from grain_jax.zero_shot.text_kinds import FROM_FILES

# Commands of their own behind a word: each takes the arguments that follow it.
WORDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "compare": evaluate_compare.main,
    "compositional": evaluate_compositional.main,
    "grounding": evaluate_grounding.main,
    "leaks": evaluate_leaks.main,
    "report": evaluate_report.main,
}
# Options that only one kind of figures looks at.
ZERO_SHOT = ("alphas", "region_aggregation", "prompt_ensembling")
OF_NAMES = ("keep_names", "classes_by", "allow_equal_names")
OF_STORED = ("image_column", "label_column")  # of images that are not files of a folder
OF_IMAGES = (
    *("classes", "templates", "descriptions", "description_template", "counts", "texts"),
    *OF_NAMES,
)
OF_ONE_STEP = ("step", "best", "output", "predictions")
MEASURED = ("data", "split", "tasks", "suite", "suite_data", "allow_missing", "methods")
OF_SUITE = ("suite_data", "allow_missing")
OF_RECORDS = ("tasks",)
OF_DESCRIPTIONS = ("description_template", "alphas", "region_aggregation")


_OptionalPath = Annotated[Path | None, one_word(local_path, "PATH")]
_OptionalFile = Annotated[_OptionalPath, arg(metavar="FILE", help_behavior_hint="")]
_own = default_is("the run's")


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(METHODS) if text == "all" else tuple(dict.fromkeys(text.split(",")))
    check_methods(names)
    return names


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
    # prompts with one "{}": .txt, .json or .md; file.json#key
    templates: Annotated[OptionalText, arg(metavar="FILE")] = None
    # .json {class: [description, ...]}
    descriptions: Annotated[OptionalText, arg(metavar="FILE")] = None
    # what the image is compared with, e.g. "a photo of a {name}, which has {}"
    description_template: Annotated[OptionalText, default_is('"{}"')] = None
    # training captions of each class: .json {class: number}, or published ones as cub:cc12m_text
    counts: Annotated[OptionalText, arg(metavar="FILE")] = None
    # texts that some methods take: KIND=.json {class: [text, ...]}, with commas between several
    texts: Annotated[dict[str, str] | None, one_word(_text_files, "KIND=FILE,...")] = None
    # of zero-shot classification: keys of docs/zero-shot.md with commas between them, or all
    methods: Annotated[
        tuple[str, ...] | None, one_word(_methods, "A,B,..."), default_is(",".join(DEFAULT_METHODS))
    ] = None
    # of images in tables or TFDS: which column holds them, and which their class
    image_column: Annotated[OptionalText, default_is("found")] = None
    label_column: Annotated[OptionalText, default_is("found")] = None
    given: Annotated[SupportOptions, arg(name="")] = field(default_factory=SupportOptions)
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
    batch_size: Annotated[OptionalCount, _own] = None  # images at once
    # file of the results, JSON
    output: Annotated[_OptionalFile, OUT, default_is("one in the run's folder")] = None
    predictions: _OptionalFile = None  # every single answer: .jsonl or .csv
    overwrite: bool = False  # replace files of an earlier evaluation
    # embeddings for the next evaluation: a folder, auto (in the user's cache) or none
    cache: Annotated[OptionalText, arg(metavar="DIR"), default_is("auto")] = None
    # the most that the folder may take; what was not used for longest goes
    cache_gib: Annotated[OptionalCount, default_is("8")] = None
    processes: Annotated[ProcessOptions, arg(name="")] = field(default_factory=ProcessOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in WORDS:
        return WORDS[arguments[0]](arguments[1:])
    escape_unprintable()
    try:
        every = [parse_options(words) for words in one_a_checkpoint(arguments)]
        processes.join_processes(every[0].processes)
        runtime.open_devices()
    except NotParsed as parsed:
        return parsed.status
    except ValueError as error:
        return processes.refused(error)
    messages, output = Console(stderr=True, quiet=not processes.speaks()), Console()
    note = functools.partial(say_note, messages)
    if not output.is_terminal:
        output.width = evaluate_compare.PIPE_WIDTH
    statuses, found = [int(ExitStatus.DONE)], list[list[Result]]()
    several = len(every) > 1

    def measure(options: Options) -> list[Result]:
        report, headline, unwritten, embedded = _evaluate(options, suite, messages)
        if processes.speaks():
            shown = functools.partial(print_results, report["results"], headline=headline)
            tables = None if several or suite is not None else shown
            statuses.append(finish(options, report, unwritten, tables, output, messages))
            print_line(output, embedded)
            if suite is not None and not several:
                print_side_by_side([options.checkpoint], [report["results"]], suite, output)
        found.append(report["results"])
        return report["results"]

    try:
        with processes.errors_in_all():
            suite = _check_all(every, note=note)
        if every[0].watch:
            _watch(every[0], suite, measure, note)
        else:
            for options in every:
                measure(options)
    except (ValueError, OSError) as error:
        say = functools.partial(say_error, Console(stderr=True))
        return processes.refused(error, status=status_of(error), say=say)
    except KeyboardInterrupt:
        written = f"the results of {len(found)} checkpoints were" if found else "nothing was"
        messages.print(f"Stopped; {written} written.")
        return processes.interrupted()
    except Exception as error:
        processes.leave_over(error)
        raise
    if processes.speaks() and several:
        print_side_by_side([options.checkpoint for options in every], found, suite, output)
    return max(statuses)


def _watch(
    options: Options,
    suite: OpenedSuite | None,
    measure: Callable[[Options], list[Result]],
    note: Callable[[str], None],
) -> None:
    """Measures the checkpoints of a run as they appear; embeddings of each are of use once."""
    names = (*MEASURED, *ZERO_SHOT, *OF_IMAGES, *OF_STORED)
    asked = {name: getattr(options, name) for name in names}
    watched = sha256_of([asked, None if suite is None else suite.suite.sha256])
    options = dataclasses.replace(options, cache=options.cache or NONE)
    watch(
        options.checkpoint,
        lambda step: measure(dataclasses.replace(options, step=step)),
        watched=watched,
        idle_minutes=options.idle_minutes,
        note=note,
    )


def parse_options(arguments: Sequence[str] | None) -> Options:
    """The options of the command line; NotParsed as `parse`."""
    return parse(Options, arguments, command="evaluate", description=__doc__)


def _check_all(every: Sequence[Options], *, note: Callable[[str], None]) -> OpenedSuite | None:
    """Refuses what does not apply, before anything is loaded; opens the suite, if one is given."""
    first = every[0]
    if len(every) > 1 and (given := [name for name in OF_ONE if getattr(first, name) is not None]):
        raise ValueError(
            f"--{given[0]} names one file, and {len(every)} checkpoints are given; leave it out, "
            "or run the command once for each."
        )
    for options in every:
        _check(options)
    if first.watch:
        given = [name for name in OF_ONE_STEP if getattr(first, name) not in (None, False)]
        check_watch(first.checkpoint, checkpoints=len(every), given=given)
    elif first.idle_minutes is not None:
        raise ValueError("--idle_minutes goes with --watch; leave it out.")
    if first.suite is None:
        _refuse(first, OF_SUITE, "--suite")
        return None
    suite = read_suite(first.suite)
    if not suite.images:
        _refuse(first, ZERO_SHOT, "labelled images, which this suite has not")
    return open_suite(
        suite, suite_data=first.suite_data, allow_missing=first.allow_missing, note=note
    )


def _check(options: Options) -> None:
    """Refuses what does not apply to one model."""
    kind = _kind(options)
    if kind == "suite" and options.data is not None:
        raise ValueError("--suite and --data both say what to measure; give one of them.")
    if kind != "records":
        _refuse(options, OF_RECORDS, "prepared records")
    if kind != "images":
        _refuse(options, (*OF_IMAGES, *OF_STORED), "labelled images")
    if kind in ("own", "suite"):
        _refuse(options, ("split",), "prepared records or labelled images")
    if kind == "records":
        _refuse(options, (*ZERO_SHOT, "methods"), "zero-shot classification")
    evaluate_support.check(
        options.given,
        data=options.data,
        is_labelled=kind == "images",
        methods=options.methods or DEFAULT_METHODS,
    )
    for name in ("output", "predictions"):
        if (path := getattr(options, name)) is not None:
            results_file.check_place(name, path, overwrite=options.overwrite)
    if options.predictions is not None:
        check_suffix(options.predictions)
    if kind == "records":
        chosen_tasks(options.tasks)
    if options.output is None:
        results_file.default_folder(options.checkpoint)
    elif options.predictions is not None and same_place(options.predictions, options.output):
        raise ValueError("--output and --predictions name one file; give each its own.")


def _kind(options: Options) -> str:
    """What is measured: the run's "own" sets, a "suite", or what --data names: "records" or
    "images".
    """
    if options.suite is not None:
        return "suite"
    if options.data is None:
        return "own"
    return "records" if (options.data / "dataset_info.json").exists() else "images"


def _refuse(options: Options, names: Sequence[str], needs: str) -> None:
    if given := [name for name in names if getattr(options, name) not in (None, False)]:
        raise ValueError(f"--{given[0]} goes with {needs}; leave it out or change --data.")


def _evaluate(
    options: Options, suite: OpenedSuite | None, messages: Console
) -> tuple[dict[str, Any], str, OSError | None, str]:
    """The report, its headline, why the predictions could not be written if they could not, and
    what of the embeddings was cached.
    """
    note = functools.partial(say_note, messages)
    with processes.errors_in_all():
        store = open_cache(options.cache or AUTO, max_gib=options.cache_gib)
    mesh = make_mesh(MeshConfig()) if jax.device_count() > 1 else None
    loaded = read_model(options.checkpoint, step=options.step, best=options.best, mesh=mesh)
    config = loaded.config
    settings = {
        name: getattr(options, name)
        for name in (*ZERO_SHOT, "batch_size")
        if getattr(options, name) is not None
    }
    of_suite = {} if suite is None or not suite.suite.alphas else {"alphas": suite.suite.alphas}
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, **(of_suite | settings))
    )
    kind, split = _kind(options), options.split
    labelled = named_folders(config, final=True)
    if kind == "own" and config.data.dataset == "tfds" and not labelled:
        if not config.data.data_dir:
            raise ValueError(
                f"{options.checkpoint} says nothing of data to evaluate it on; give some with "
                "--data."
            )
        _refuse(options, ZERO_SHOT, "zero-shot classification, which this run has no images for")
    if kind == "records":
        split = split or config.data.eval_split or "validation"
    is_clip = config.model.type == "clip"
    if {"alphas", "region_aggregation"} & set(settings) and (is_clip or not loaded.learned.regions):
        lacking = "a CLIP model has no" if is_clip else "this GRAIN model has no trained"
        note(f"{lacking} regions: --alphas and --region_aggregation change none of its figures.")
    if options.best:
        of_records = split if kind == "records" else None
        measured = [(options.data, of_records)] if suite is None else suite.places
        for data, part in measured:
            note_choice(loaded.config, data=data, split=part, labelled=labelled, note=note)
    encoder = Encoder.from_bundle(dataclasses.replace(loaded, config=config), mesh=mesh)
    if store is not None:
        encoder = CachedEncoder.of(encoder, store, note=note)
    if config.model.type == "grain" and (lacking := what_lacks(loaded.learned)):
        note(f"this GRAIN model has no {lacking}, so figures that need them are left out.")
    details = ResultDetails()
    with contextlib.ExitStack() as files:
        if options.predictions is not None and jax.process_index() == 0:
            details.predictions = files.enter_context(PredictionsFile(options.predictions))
        if kind == "own":
            results = evaluate(
                encoder, config, final=True, note=note, details=details, methods=options.methods
            )
            if not results:
                raise ValueError(
                    "This run has no evaluation split or images of its own; give --data."
                )
        elif suite is not None:
            results = evaluate_suite(
                encoder,
                suite,
                config,
                templates=loaded.templates,
                methods=options.methods,
                note=note,
                details=details,
            )
        elif kind == "records":
            assert options.data is not None
            assert split is not None
            tasks = chosen_tasks(options.tasks)
            results = evaluate_records(
                encoder, config, options.data, split, tasks=tasks, details=details
            )
        else:
            results = _images(options, encoder, config, loaded.templates, note, details)
    if encoder.truncated_texts:
        note(
            f"{encoder.truncated_texts} texts were longer than the {config.data.caption_length} "
            f"(captions) or {config.data.description_length} (descriptions) tokens of the run, "
            "and cut."
        )
    shown = {name: getattr(config.evaluation, name) for name in ZERO_SHOT}
    given = (*OF_NAMES, *OF_STORED, "methods")
    shown |= {name: getattr(options, name) for name in given if getattr(options, name)}
    shown |= {} if suite is None else {"suite": suite.described()}
    report: dict[str, Any] = {
        "checkpoint": named(options.checkpoint),
        "step": loaded.step,
        "data": named(options.data) if options.data else options.suite or "the run's own",
        "split": split,
        "settings": {"tasks": list(chosen_tasks(options.tasks))} if kind == "records" else shown,
        "zero_shot_sets": details.zero_shot_sets,
        "splits": details.splits,
        **details.given,
    }
    report |= {
        "inputs_sha256": results_file.inputs_sha256(report),
        "results": results,
        "preprocessing": encoder.preprocessing.spec(),
        "versions": versions(),
        "hardware": hardware(),
    }
    of_run = data_source(config.data, image_size=encoder.preprocessing.image_size)
    failure = details.predictions.failure if details.predictions else None
    embedded = encoder.summary() if isinstance(encoder, CachedEncoder) else NO_CACHE
    return report, of_run.headline(results), failure, embedded


def _images(
    options: Options,
    encoder: Encoder,
    config: TrainConfig,
    templates: Sequence[str],
    note: Callable[[str], None],
    details: ResultDetails,
) -> list[Result]:
    assert options.data is not None
    naming: dict[str, Any] = {
        "keep_names": options.keep_names,
        "classes_by": options.classes_by or BINDINGS[0],
        "allow_equal_names": options.allow_equal_names,
    }
    dataset = load_zero_shot(
        options.data,
        classes=options.classes or "",
        templates=options.templates or "",
        descriptions=options.descriptions or "",
        counts=options.counts or "",
        further=options.texts,
        description_template=options.description_template or "{}",
        default_templates=templates,
        **naming,
        split=options.split,
        image_column=options.image_column,
        label_column=options.label_column,
        note=note,
    )
    if not any(dataset.descriptions.values()):
        _refuse(options, OF_DESCRIPTIONS, "descriptions, which these images lack (--descriptions)")
    if unknown := unknown_words_note(encoder.tokenizer, dataset):
        note(unknown)
    has_regions = config.model.type == "grain" and encoder.learned.regions
    given = evaluate_support.read(
        options.given,
        dataset,
        config.data,
        image_size=encoder.preprocessing.image_size,
        classes=options.classes or "",
        naming=naming,
        note=note,
    )
    details.given |= given.described
    _note_left_out(options, dataset, note, has_regions=has_regions, given=given.fulfilled)
    return score_zero_shot(
        encoder,
        dataset,
        config,
        final=True,
        details=details,
        methods=options.methods or DEFAULT_METHODS,
        **given.encode(encoder),
    )


def _note_left_out(
    options: Options,
    dataset: ZeroShotSet,
    note: Callable[[str], None],
    *,
    has_regions: bool,
    given: Collection[str],
) -> None:
    """Says which of the methods that were asked for cannot be measured; ValueError for all."""
    texts, left_out = class_texts(dataset), {}
    for name in options.methods or ():
        needs = lacking(name, texts, has_regions=has_regions, given=given)
        if needs:
            left_out[name] = f"{name} is left out: it needs {' and '.join(needs)}."
    if options.methods and len(left_out) == len(options.methods):
        raise ValueError(f"No method can be measured: {' '.join(left_out.values())}")
    for text in left_out.values():
        note(text)


if __name__ == "__main__":
    runtime.restart_with_huge_pages()
    slow_compile.hide_alarm()
    end(main())
