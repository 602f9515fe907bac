"""Phrase grounding of a checkpoint by published protocols: which box does a text choose?

  python -m grain_jax.evaluate grounding --checkpoint=RUN --format=flickr30k_entities --data=DIR
  python -m grain_jax.evaluate grounding --checkpoint=RUN --format=refcoco --data=DIR --split=val
      --boxes=given --feature=region,crop

Formats: flickr30k_entities, refcoco (and + and g, in JSON), coco (boxes by class name), fg_ovd,
jsonl. The protocol is printed with the figures and kept with the results. See `docs/evaluation.md`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import jax
from rich.console import Console
from tyro.conf import arg

from grain_jax import runtime
from grain_jax.cache_options import CacheOptions, embeddings_line, open_store, over_store
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
    one_of,
    one_word,
    parse,
    progress_bar,
    status_of,
)
from grain_jax.config import MeshConfig
from grain_jax.data.grounding.formats import FORMATS, load_grounding
from grain_jax.data.grounding.queries import GroundingSet
from grain_jax.data.placeholder import check_placeholder
from grain_jax.evaluate_files import answers_of_results, check_places, finish
from grain_jax.evaluate_notes import named, print_line, say_error, say_note
from grain_jax.evaluation import results_file
from grain_jax.evaluation.content_digests import model_sha256
from grain_jax.evaluation.grounding_benchmark import (
    Measured,
    describe_grounding,
    measure_grounding,
)
from grain_jax.evaluation.grounding_protocol import BoxesOf, Feature, Truth
from grain_jax.evaluation.grounding_tables import grounding_tables, left_out_notes
from grain_jax.evaluation.kept_predictions import Answers
from grain_jax.evaluation.report import hardware, versions
from grain_jax.evaluation.tables import print_table
from grain_jax.evaluation.unknown_words import unknown_words_in
from grain_jax.inference.encoder import Encoder
from grain_jax.loading.load import read_model
from grain_jax.parallel import processes
from grain_jax.parallel.processes import ProcessOptions
from grain_jax.parallel.sharding import make_mesh
from grain_jax.paths import local_path
from grain_jax.terminal import consoles, escape_unprintable

COMMAND = "evaluate grounding"


def features(text: str) -> tuple[str, ...]:
    """Features with commas between them, each once."""
    given = tuple(text.split(","))
    if unknown := [name for name in given if name not in get_args(Feature)]:
        raise ValueError(f"{unknown[0]!r} should be region, crop, or both with a comma")
    if len(set(given)) < len(given):
        raise ValueError(f"{text!r} names one twice")
    return given


_Path = Annotated[Path, one_word(local_path, "PATH")]
_OptionalPath = Annotated[Path | None, one_word(local_path, "PATH")]
_OptionalFile = Annotated[_OptionalPath, arg(metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True)
class Options:
    """What `evaluate grounding` takes."""

    checkpoint: Annotated[RunPath, arg(metavar="RUN")]  # run folder, or another model
    data: Annotated[_Path, arg(help_behavior_hint="(required)")]  # file or folder of annotations
    format: Annotated[str, one_of(tuple(FORMATS)), arg(help_behavior_hint="(required)")]  # of it
    # folder of the images
    images: Annotated[_OptionalPath, default_is("where the format has them")] = None
    split: OptionalText = None  # part of the data, such as test or testA
    split_file: _OptionalFile = None  # list of image ids of Flickr30k Entities
    # what a text chooses from: the model's boxes, or annotated ones
    boxes: Annotated[BoxesOf, one_of(get_args(BoxesOf))] = "predicted"
    # right: any of the text's boxes, or the rectangle around them all
    protocol: Annotated[Truth, one_of(get_args(Truth))] = "any"
    # of a box: region embedding, or the crop encoded as an image; both: region,crop
    feature: Annotated[
        tuple[Feature, ...], one_word(features, "FEATURE,..."), default_is("region")
    ] = ("region",)
    prompt: Annotated[str, one_word(str, "TEXT")] = "{}"  # what a text is put into
    # wrong captions of an object of fg_ovd
    negatives: Annotated[OptionalCount, default_is("all that it has")] = None
    step: Step = None  # checkpoint of this step
    best: Best = False  # the checkpoint that keep_best kept
    batch_size: Annotated[OptionalCount, default_is("the run's")] = None  # images at once
    # file of the results, JSON
    output: Annotated[_OptionalFile, OUT, default_is("one in the run's folder")] = None
    # every single answer: .jsonl or .csv, also .gz; none: not kept
    predictions: Annotated[_OptionalFile, default_is("beside the results")] = None
    overwrite: bool = False  # replace files of an earlier evaluation
    embeddings: Annotated[CacheOptions, arg(name="")] = field(default_factory=CacheOptions)
    processes: Annotated[ProcessOptions, arg(name="")] = field(default_factory=ProcessOptions)


def main(arguments: Sequence[str]) -> int:
    """The command, without the word `grounding`; returns its exit status."""
    escape_unprintable()
    try:
        options = parse(Options, arguments, command=COMMAND, description=__doc__)
        processes.join_processes(options.processes)
        runtime.open_devices()
    except NotParsed as parsed:
        return parsed.status
    except ValueError as error:
        return processes.refused(error)
    messages, output = consoles(quiet=not processes.speaks())
    try:
        with processes.errors_in_all():
            check(options)
            data = load(options)
        with answers_of_results(options) as answers:
            return _measure(options, data, answers, messages, output)
    except (ValueError, OSError) as error:
        say = functools.partial(say_error, Console(stderr=True))
        return processes.refused(error, status=status_of(error), say=say)
    except KeyboardInterrupt:
        messages.print("Stopped; nothing was written.")
        return processes.interrupted()
    except Exception as error:
        processes.leave_over(error)
        raise


def _measure(
    options: Options,
    data: GroundingSet,
    answers: Answers,
    messages: Console,
    output: Console,
) -> int:
    """Measures, prints and writes; returns the exit status."""
    report, measured, embedded = evaluate(options, data, answers, messages)
    if not processes.speaks():
        return ExitStatus.DONE

    def tables(output: Console) -> None:
        for table in grounding_tables(measured):
            print_table(table, output)

    what = "_".join(("grounding", options.boxes, options.protocol, *options.feature))
    status = finish(
        options,
        report,
        answers,
        tables,
        output,
        messages,
        data=options.data,
        tasks=what,
    )
    print_line(output, embedded)
    return status


def check(options: Options) -> None:
    """Refuses what cannot work, before anything is loaded. Raises ValueError."""
    check_placeholder(options.prompt, f"--prompt={options.prompt!r}", takes="the text")
    check_places(options)


def load(options: Options) -> GroundingSet:
    """The queries that the options name. Raises ValueError."""
    return load_grounding(
        options.format,
        options.data,
        images=options.images,
        split=options.split,
        split_file=options.split_file,
        negatives=options.negatives,
    )


def evaluate(
    options: Options,
    data: GroundingSet,
    answers: Answers,
    messages: Console,
) -> tuple[dict[str, Any], Measured, str]:
    """The report, the figures, and what of the embeddings was cached."""
    note, store = functools.partial(say_note, messages), open_store(options.embeddings)
    for sentence in left_out_notes(data.left_out):
        note(sentence)
    mesh = make_mesh(MeshConfig()) if jax.device_count() > 1 else None
    loaded = read_model(options.checkpoint, step=options.step, best=options.best, mesh=mesh)
    encoder = Encoder.from_bundle(loaded, batch_size=options.batch_size, mesh=mesh)
    encoder = over_store(encoder, store, note=note)
    if unknown := unknown_words_in(encoder.tokenizer, (query.text for query in data.queries)):
        note(unknown)
    with contextlib.ExitStack() as stack:
        predictions = stack.enter_context(answers.lines())
        show: dict[str, Callable[[int, int], None]] = {}
        if "crop" in options.feature:
            advance = stack.enter_context(progress_bar(messages, "Crops", state="images first"))
            show["on_crops"] = functools.partial(advance, state="")
        measured = measure_grounding(
            encoder,
            data,
            boxes=options.boxes,
            truth=options.protocol,
            features=options.feature,
            prompt=options.prompt,
            predictions=predictions,
            **show,
        )
    if encoder.truncated_texts:
        note(
            f"{encoder.truncated_texts} texts were longer than the "
            f"{encoder.lengths['description']} tokens of a description of the run, and cut."
        )
    return (
        make_report(options, data, measured, step=loaded.step, model=model_sha256(encoder)),
        measured,
        embeddings_line(encoder),
    )


def make_report(
    options: Options, data: GroundingSet, measured: Measured, *, step: int | None, model: str
) -> dict[str, Any]:
    """What the result file has: figures with the protocol and the data they are of; `model` is the
    SHA-256 of the model.
    """
    protocols = {name: dataclasses.asdict(one) for name, one in measured.protocols.items()}
    report = {
        "checkpoint": named(options.checkpoint),
        "step": step,
        "model_sha256": model,
        "data": named(options.data),
        "split": options.split,
        "settings": {"format": options.format, "protocols": protocols},
        "zero_shot_sets": {},
        "splits": {data.name: describe_grounding(data)},
    }
    usage = {name: one.counts.tolist() for name, one in measured.usage.items()}
    return report | {
        "inputs_sha256": results_file.inputs_sha256(report),
        "query_usage": usage,
        "results": measured.results,
        "versions": versions(),
        "hardware": hardware(),
    }
