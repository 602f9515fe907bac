"""Whether a model tells captions apart that differ in a word, or in its place; long captions.

  python -m grain_jax.evaluate compositional --checkpoint=RUN --format=sugarcrepe \\
    --data=JSON_FOLDER --images=val2017
  python -m grain_jax.evaluate compositional --checkpoint=RUN --format=winoground \\
    --data=examples.jsonl --images=images
  python -m grain_jax.evaluate compositional --checkpoint=RUN --format=aro \\
    --data=visual_genome_relation.json --images=images
  python -m grain_jax.evaluate compositional --checkpoint=RUN --format=retrieval \\
    --data=docci.jsonl --images=images            (lines of {image, text})

RUN is what `python -m grain_jax.evaluate` takes. What is scored is the cosine of the whole image
and the caption. See `docs/evaluation.md`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
from rich.console import Console
from tyro.conf import arg

from grain_jax import runtime
from grain_jax.cache_options import CacheOptions, embeddings_line, open_store, over_store
from grain_jax.command_line import (
    OUT,
    Best,
    NotParsed,
    OptionalCount,
    OptionalPath,
    RunPath,
    Step,
    default_is,
    one_of,
    one_word,
    parse,
)
from grain_jax.config import MeshConfig
from grain_jax.data.compositional.readers import READERS
from grain_jax.data.entities_folder import refuse_entities
from grain_jax.evaluate_files import answers_of_results, check_places, finish
from grain_jax.evaluate_notes import named, print_line, say_end, say_note
from grain_jax.evaluation import results_file
from grain_jax.evaluation.compositional_suite import compositional_table
from grain_jax.evaluation.content_digests import model_sha256
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.kept_predictions import Answers
from grain_jax.evaluation.report import hardware, versions
from grain_jax.evaluation.suite_tests import measure_compositional_test
from grain_jax.evaluation.tables import print_results, print_table
from grain_jax.inference.encoder import Encoder
from grain_jax.loading.load import read_model
from grain_jax.parallel.sharding import make_mesh
from grain_jax.paths import absolute, local_path
from grain_jax.results import Result
from grain_jax.terminal import consoles, escape_unprintable

_LocalPath = Annotated[Path, one_word(local_path, "PATH")]
_OptionalFile = Annotated[
    Path | None, one_word(local_path, "PATH"), arg(metavar="FILE", help_behavior_hint="")
]


@dataclass(frozen=True)
class Options:
    """What `evaluate compositional` takes."""

    checkpoint: Annotated[RunPath, arg(metavar="RUN")]  # run folder, or another model
    format: Annotated[str, one_of(tuple(READERS))]  # of the questions
    data: _LocalPath  # file of the questions, or the folder of such files
    images: _LocalPath  # folder of the images
    step: Step = None  # checkpoint of this step
    best: Best = False  # the checkpoint that keep_best kept
    batch_size: Annotated[OptionalCount, default_is("the run's")] = None  # images at once
    # file of the results, JSON
    output: Annotated[
        OptionalPath, OUT, arg(metavar="FILE"), default_is("one in the run's folder")
    ] = None
    # every single answer: .jsonl or .csv, also .gz; none: not kept
    predictions: Annotated[_OptionalFile, default_is("beside the results")] = None
    overwrite: bool = False  # replace files of an earlier evaluation
    embeddings: Annotated[CacheOptions, arg(name="")] = field(default_factory=CacheOptions)


def main(arguments: Sequence[str]) -> int:
    """The command, without the word `compositional`; returns its exit status."""
    escape_unprintable()
    messages, screen = consoles()
    try:
        options = parse(Options, arguments, command="evaluate compositional", description=__doc__)
        runtime.open_devices()
    except NotParsed as parsed:
        return parsed.status
    try:
        check_places(options)
        with answers_of_results(options) as answers:
            report, embedded = _evaluate(options, answers, messages)

            def tables(screen: Console) -> None:
                if options.format == "retrieval":
                    print_results(report["results"], screen)
                else:
                    print_table(compositional_table(report["results"]), screen)

            status = finish(
                options,
                report,
                answers,
                tables,
                screen,
                messages,
                data=options.data,
                tasks=options.format,
            )
    except (ValueError, OSError, KeyboardInterrupt) as error:
        return say_end(error, messages)
    print_line(screen, embedded)
    return status


def _evaluate(options: Options, answers: Answers, messages: Console) -> tuple[dict[str, Any], str]:
    """The report, and what of the embeddings was cached."""
    if not options.data.exists():
        raise ValueError(f"There is no file {str(options.data)!r} for --data.")
    refuse_entities(options.data)
    tests = READERS[options.format](options.data, options.images)
    note, store = functools.partial(say_note, messages), open_store(options.embeddings)
    mesh = make_mesh(MeshConfig()) if jax.device_count() > 1 else None
    loaded = read_model(options.checkpoint, step=options.step, best=options.best, mesh=mesh)
    encoder = Encoder.from_bundle(loaded, batch_size=options.batch_size, mesh=mesh)
    encoder = over_store(encoder, store, note=note)
    results, details = list[Result](), ResultDetails()
    with answers.lines() as details.predictions:
        for test in tests:
            results += measure_compositional_test(encoder, test, note=note, details=details)
    if encoder.truncated_texts:
        length = loaded.config.data.caption_length
        note(
            f"{encoder.truncated_texts} texts were longer than the {length} tokens of the "
            "run, and cut; what tells captions apart may lie behind the cut."
        )
    report: dict[str, Any] = {
        "checkpoint": named(options.checkpoint),
        "step": loaded.step,
        "model_sha256": model_sha256(encoder),
        "data": str(absolute(options.data)),
        "split": None,
        "settings": {"format": options.format, "images_folder": str(absolute(options.images))},
        "zero_shot_sets": {},
        "splits": details.splits,
    }
    report |= {
        "inputs_sha256": results_file.inputs_sha256(report),
        "truncated_texts": encoder.truncated_texts,
        "results": results,
        "versions": versions(),
        "hardware": hardware(),
    }
    return report, embeddings_line(encoder)
