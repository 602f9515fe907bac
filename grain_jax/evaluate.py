"""Zero-shot classification, retrieval and grounding of a checkpoint.

  python -m grain_jax.evaluate --checkpoint=RUN                 (what the run was measured by)
  python -m grain_jax.evaluate --checkpoint=RUN --data=IMAGES   (labels.csv, or a folder a class)
  python -m grain_jax.evaluate --checkpoint=RUN --data=RECORDS  (written by grain_jax.prepare)
  python -m grain_jax.evaluate compare A B                      (two files of --predictions)

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
import itertools
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import jax
from rich.console import Console
from tyro.conf import arg

from grain_jax import evaluate_compare, evaluate_support, runtime, slow_compile
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
from grain_jax.data.records import EvaluationSet, ZeroShotSet
from grain_jax.data.source import data_source, open_source
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.evaluate_support import SupportOptions
from grain_jax.evaluation import results_file
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.predictions import PredictionsFile, check_suffix
from grain_jax.evaluation.report import hardware, versions
from grain_jax.evaluation.suite import (
    TASKS,
    TrainingBoxes,
    best_metric_name,
    evaluate,
    evaluate_set,
    named_folders,
    score_zero_shot,
)
from grain_jax.evaluation.tables import print_results
from grain_jax.inference.encoder import Encoder
from grain_jax.loading.load import read_model
from grain_jax.models.learned import what_lacks
from grain_jax.parallel import processes
from grain_jax.parallel.processes import ProcessOptions
from grain_jax.parallel.sharding import make_mesh
from grain_jax.paths import absolute, local_path, user_path
from grain_jax.results import Result
from grain_jax.terminal import escape_unprintable
from grain_jax.zero_shot.methods import DEFAULT_METHODS, METHODS, check_methods, lacking
from grain_jax.zero_shot.scorers import class_texts
from grain_jax.zero_shot.text_kinds import FROM_FILES

COMPARE = "compare"  # the word that compares two evaluations
# Options that only one kind of figures looks at.
ZERO_SHOT = ("alphas", "region_aggregation", "prompt_ensembling")
OF_NAMES = ("keep_names", "classes_by", "allow_equal_names")
OF_IMAGES = (
    *("classes", "templates", "descriptions", "description_template", "counts", "texts"),
    *("methods", *OF_NAMES),
)
OF_RECORDS = ("split", "tasks")
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
    # labelled images, or prepared records
    data: Annotated[_OptionalPath, default_is("the run's own")] = None
    # of prepared records
    split: Annotated[OptionalText, default_is("the run's evaluation split")] = None
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
    # what is averaged over templates: embeddings, or scores
    prompt_ensembling: Annotated[
        PromptEnsembling | None, one_of(get_args(PromptEnsembling)), _own
    ] = None
    batch_size: Annotated[OptionalCount, _own] = None  # images at once
    # file of the results, JSON
    output: Annotated[_OptionalFile, OUT, default_is("one in the run's folder")] = None
    predictions: _OptionalFile = None  # every single answer: .jsonl or .csv
    overwrite: bool = False  # replace files of an earlier evaluation
    processes: Annotated[ProcessOptions, arg(name="")] = field(default_factory=ProcessOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == COMPARE:
        return evaluate_compare.main(arguments[1:])
    escape_unprintable()
    try:
        options = parse_options(arguments)
        processes.join_processes(options.processes)
        runtime.open_devices()
    except NotParsed as parsed:
        return parsed.status
    except ValueError as error:
        return processes.refused(error)
    messages, output = Console(stderr=True, quiet=not processes.speaks()), Console()
    if not output.is_terminal:
        output.width = evaluate_compare.PIPE_WIDTH
    try:
        with processes.errors_in_all():
            _check(options)
        report, headline, unwritten = _evaluate(options, messages)
    except (ValueError, OSError) as error:
        say = functools.partial(_say_error, Console(stderr=True))
        return processes.refused(error, status=status_of(error), say=say)
    except KeyboardInterrupt:
        messages.print("Stopped; nothing was written.")
        return processes.interrupted()
    except Exception as error:
        processes.leave_over(error)
        raise
    if not processes.speaks():
        return ExitStatus.DONE
    try:
        print_results(report["results"], output, headline=headline)
    finally:  # also where the reader of a pipe has gone
        said = write_results(options, report, messages)
        if unwritten is not None:
            _say_error(
                messages,
                f"the predictions could not be written: {unwritten}. Give another --predictions.",
            )
        elif said and options.predictions:
            said.append(f"Predictions: {options.predictions}")
    for line in said:
        output.print(line, markup=False, highlight=False, soft_wrap=True)
    return ExitStatus.DONE if said and unwritten is None else ExitStatus.STOPPED


def parse_options(arguments: Sequence[str] | None) -> Options:
    """The options of the command line; NotParsed as `parse`."""
    return parse(Options, arguments, command="evaluate", description=__doc__)


def _check(options: Options) -> None:
    """Refuses what does not apply, before anything is loaded."""
    kind = _kind(options.data)
    if kind != "records":
        _refuse(options, OF_RECORDS, "prepared records")
    if kind != "images":
        _refuse(options, OF_IMAGES, "labelled images")
    if kind == "records":
        _refuse(options, ZERO_SHOT, "zero-shot classification")
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
        _tasks(options)
    if options.output is None:
        results_file.default_folder(options.checkpoint)
    elif options.predictions is not None and _same(options.predictions, options.output):
        raise ValueError("--output and --predictions name one file; give each its own.")


def _kind(data: Path | None) -> str:
    """What --data names: nothing, so the run's "own" suite; "records" or "images"."""
    if data is None:
        return "own"
    return "records" if (data / "dataset_info.json").exists() else "images"


def _refuse(options: Options, names: Sequence[str], needs: str) -> None:
    if given := [name for name in names if getattr(options, name) not in (None, False)]:
        raise ValueError(f"--{given[0]} goes with {needs}; leave it out or change --data.")


def _evaluate(options: Options, messages: Console) -> tuple[dict[str, Any], str, OSError | None]:
    """The report, its headline, and why the predictions could not be written if they could not."""

    def note(text: str) -> None:
        messages.print(f"Note: {text}", markup=False, highlight=False, soft_wrap=True)

    mesh = make_mesh(MeshConfig()) if jax.device_count() > 1 else None
    loaded = read_model(options.checkpoint, step=options.step, best=options.best, mesh=mesh)
    config = loaded.config
    settings = {
        name: getattr(options, name)
        for name in (*ZERO_SHOT, "batch_size")
        if getattr(options, name) is not None
    }
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, **settings)
    )
    kind, split = _kind(options.data), None
    labelled = named_folders(config, final=True)
    if kind == "own" and config.data.dataset == "tfds" and not labelled:
        if not config.data.data_dir:
            raise ValueError(
                f"{options.checkpoint} says nothing of data to evaluate it on; give some with "
                "--data."
            )
        _refuse(options, ZERO_SHOT, "zero-shot classification, which this run has no images for")
    if kind == "records":
        split = options.split or config.data.eval_split or "validation"
    is_clip = config.model.type == "clip"
    if {"alphas", "region_aggregation"} & set(settings) and (is_clip or not loaded.learned.regions):
        lacking = "a CLIP model has no" if is_clip else "this GRAIN model has no trained"
        note(f"{lacking} regions: --alphas and --region_aggregation change none of its figures.")
    if options.best:
        _note_choice(options, loaded.config, split, labelled, note)
    encoder = Encoder.from_bundle(dataclasses.replace(loaded, config=config), mesh=mesh)
    if config.model.type == "grain" and (lacking := what_lacks(loaded.learned)):
        note(f"this GRAIN model has no {lacking}, so figures that need them are left out.")
    details = ResultDetails()
    with contextlib.ExitStack() as files:
        if options.predictions is not None and jax.process_index() == 0:
            details.predictions = files.enter_context(PredictionsFile(options.predictions))
        if kind == "own":
            results = evaluate(encoder, config, final=True, note=note, details=details)
            if not results:
                raise ValueError(
                    "This run has no evaluation split or images of its own; give --data."
                )
        elif split is not None:
            results = _records(encoder, config, options, split, details)
        else:
            results = _images(options, encoder, config, loaded.templates, note, details)
    if encoder.truncated_texts:
        note(
            f"{encoder.truncated_texts} texts were longer than the {config.data.caption_length} "
            f"(captions) or {config.data.description_length} (descriptions) tokens of the run, "
            "and cut."
        )
    shown = {name: getattr(config.evaluation, name) for name in ZERO_SHOT}
    given = (*OF_NAMES, "methods")
    shown |= {name: getattr(options, name) for name in given if getattr(options, name)}
    report: dict[str, Any] = {
        "checkpoint": _named(options.checkpoint),
        "step": loaded.step,
        "data": _named(options.data) if options.data else "the run's own",
        "split": split,
        "settings": shown if split is None else {"tasks": list(_tasks(options))},
        "zero_shot_sets": details.zero_shot_sets,
        "splits": details.splits,
        **details.given,
    }
    report |= {
        "inputs_sha256": results_file.inputs_sha256(report),
        "results": results,
        "versions": versions(),
        "hardware": hardware(),
    }
    data = data_source(config.data, image_size=encoder.preprocessing.image_size)
    failure = details.predictions.failure if details.predictions else None
    return report, data.headline(results), failure


def _note_choice(
    options: Options,
    config: TrainConfig,
    split: str | None,
    labelled: Mapping[str, str],
    note: Callable[[str], None],
) -> None:
    """Says so where the figures are of the very data that the best checkpoint was chosen on."""
    metric = best_metric_name(config)
    chosen_on = next(
        (name for name in labelled if metric.startswith(f"{name}/")), metric.partition("/")[0]
    )
    same = options.data is None
    if options.data is None:
        pass
    elif chosen_on in labelled:
        same = _same(options.data, user_path(labelled[chosen_on]))
    elif split is not None and config.data.dataset == "tfds":
        folder = user_path(config.data.data_dir).resolve()
        same = (
            options.data.resolve() == folder
            and split.partition("[")[0] == chosen_on.partition("[")[0]
        )
    if metric and same:
        note(
            f"--best is the checkpoint with the highest {metric}, so figures of {chosen_on!r} "
            "flatter it; compare models on data that chose none of them."
        )


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
        note=note,
    )
    if not any(dataset.descriptions.values()):
        _refuse(options, OF_DESCRIPTIONS, "descriptions, which these images lack (--descriptions)")
    if isinstance(encoder.tokenizer, WordTokenizer):
        texts = [*dataset.class_names, *itertools.chain(*dataset.descriptions.values())]
        unknown = encoder.tokenizer.unknown_words
        if words := list(dict.fromkeys(word for text in texts for word in unknown(text))):
            note(encoder.tokenizer.unknown_words_note(words))
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


def _tasks(options: Options) -> tuple[str, ...]:
    """Raises ValueError for an unknown one."""
    tasks = tuple(options.tasks.split(",")) if options.tasks else TASKS
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(
            f"Prepared records can be asked for {' and '.join(TASKS)}, not {unknown[0]!r}; "
            "zero-shot classification takes labelled images."
        )
    return tasks


def _records(
    encoder: Encoder,
    config: TrainConfig,
    options: Options,
    split: str,
    details: ResultDetails,
) -> list[Result]:
    folder, tasks = options.data, _tasks(options)
    data = dataclasses.replace(config.data, dataset="tfds", data_dir=str(folder))
    size = encoder.preprocessing.image_size
    held_out = EvaluationSet(split, f"Split {split!r}", open_source(data, split, image_size=size))
    try:
        training = open_source(data, data.train_split, image_size=size)
        boxes = TrainingBoxes(lambda: training, encoder)
    except ValueError:  # a folder of test data only: no boxes to fit the baseline to
        boxes = None
    results = evaluate_set(
        encoder, held_out, config, final=True, tasks=tasks, training=boxes, details=details
    )
    if not results:
        raise ValueError(
            f"Split {split!r} of {str(folder)!r} and this model have nothing to compare for "
            f"{' and '.join(tasks)}: retrieval needs captions, grounding boxes and a GRAIN model "
            "whose boxes were trained."
        )
    return results


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _named(path: Path) -> str:
    """In full, so that it can be found from elsewhere; a name on the hub as it is."""
    return str(absolute(path)) if path.exists() else str(path)


def write_results(options: Options, report: dict[str, Any], messages: Console) -> list[str]:
    """What was written, as lines to print; [] and a message where it could not be."""
    try:
        path = options.output
        if path is None:
            folder = results_file.default_folder(options.checkpoint)
            path = folder / results_file.default_name(
                options.checkpoint, report, data=options.data, tasks=options.tasks or ""
            )
        path, new = results_file.write_results(report, path, overwrite=options.overwrite)
    except (OSError, ValueError) as error:
        _say_error(messages, f"the results could not be written: {error}. Give another --output.")
        return []
    return [f"Written to {path}" if new else f"{path} holds these results already."]


def _say_error(messages: Console, text: str) -> None:
    messages.print(f"Error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    runtime.restart_with_huge_pages()
    slow_compile.hide_alarm()
    end(main())
