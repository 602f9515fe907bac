"""Zero-shot classification, retrieval and grounding of a checkpoint.

  python -m grain_jax.evaluate --checkpoint=RUN                 (what the run was measured by)
  python -m grain_jax.evaluate --checkpoint=RUN --data=IMAGES   (labels.csv, a folder a class,
                                                     tars, Parquet tables, or tfds:NAME)
  python -m grain_jax.evaluate --checkpoint=RUN --data=RECORDS  (written by grain_jax.prepare)
  python -m grain_jax.evaluate --checkpoint=RUN --suite=grain11 --suite_data=FOLDER
  python -m grain_jax.evaluate --checkpoint=A,B ...             (one table of several models)
  python -m grain_jax.evaluate --checkpoint=RUN --watch         (while it trains elsewhere)
  python -m grain_jax.evaluate compare A.json B.json            (two files of results)
  python -m grain_jax.evaluate report A.json B.json             (a page on them)
  python -m grain_jax.evaluate compositional ...                (SugarCrepe, Winoground, ARO)
  python -m grain_jax.evaluate grounding --checkpoint=RUN ...   (phrases, by published protocols)
  python -m grain_jax.evaluate leaks ...                        (training images in the test set)
  python -m grain_jax.evaluate clip_benchmark --checkpoint=RUN -- ...   (by another harness)
  python -m grain_jax.evaluate vocabulary_free ...              (answers without a list of classes)

On several machines: the same command on each, joined as `python -m grain_jax.train` joins them
(--distributed, or --coordinator, --num_processes and --process_id; Slurm and TPU pods on GKE join
without). Each scores its part of the images; the first one prints and writes.

RUN may also be an export, an official .pth, or a CLIP or SigLIP of Hugging Face or open_clip: a
folder, or a name on the Hugging Face hub.

What every figure means is said in `docs/evaluation.md`.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from grain_jax import (
    evaluate_clip_benchmark,
    evaluate_compare,
    evaluate_compositional,
    evaluate_grounding,
    evaluate_leaks,
    evaluate_published,
    evaluate_report,
    evaluate_vocabulary_free,
    runtime,
    slow_compile,
)
from grain_jax.cache_options import embeddings_line, open_store, over_store
from grain_jax.command_line import (
    ExitStatus,
    NotParsed,
    end,
    parse,
    status_of,
)
from grain_jax.config import MeshConfig
from grain_jax.data.image_variants import with_crops
from grain_jax.data.source import data_source
from grain_jax.evaluate_files import answers_of_results, finish
from grain_jax.evaluate_images import evaluate_images
from grain_jax.evaluate_notes import (
    named,
    note_choice,
    print_line,
    print_protocols,
    print_side_by_side,
    say_error,
    say_note,
)
from grain_jax.evaluate_options import (
    MEASURED,
    OF_IMAGES,
    OF_NAMES,
    OF_STORED,
    ZERO_SHOT,
    Options,
    check_all,
    kind_of,
    refuse,
)
from grain_jax.evaluate_records import chosen_tasks, evaluate_records
from grain_jax.evaluate_several import folders, one_a_checkpoint
from grain_jax.evaluate_watch import watch
from grain_jax.evaluation import results_file
from grain_jax.evaluation.content_digests import model_sha256
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.digests import sha256_of
from grain_jax.evaluation.kept_predictions import Answers
from grain_jax.evaluation.left_out import (
    check_any_left,
    left_out_sentences,
)
from grain_jax.evaluation.one_line import one_line
from grain_jax.evaluation.report import hardware, versions
from grain_jax.evaluation.suite import (
    evaluate,
    named_folders,
)
from grain_jax.evaluation.suite_results import evaluate_suite
from grain_jax.evaluation.suite_sets import OpenedSuite
from grain_jax.evaluation.tables import print_results
from grain_jax.inference.cached_encoder import NO_CACHE, NONE
from grain_jax.inference.encoder import Encoder
from grain_jax.loading.load import read_model
from grain_jax.models.learned import what_lacks
from grain_jax.parallel import processes
from grain_jax.parallel.sharding import make_mesh
from grain_jax.results import Result
from grain_jax.terminal import consoles, escape_unprintable

# Commands of their own behind a word: each takes the arguments that follow it.
WORDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "clip_benchmark": evaluate_clip_benchmark.main,
    "compare": evaluate_compare.main,
    "compositional": evaluate_compositional.main,
    "grounding": evaluate_grounding.main,
    "leaks": evaluate_leaks.main,
    "report": evaluate_report.main,
    "vocabulary_free": evaluate_vocabulary_free.main,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in WORDS:
        return WORDS[arguments[0]](arguments[1:])
    escape_unprintable()
    try:
        every = [parse_options(words) for words in one_a_checkpoint(arguments)]
        given = folders(arguments)
        processes.join_processes(every[0].processes)
        runtime.open_devices()
    except NotParsed as parsed:
        return parsed.status
    except ValueError as error:
        return processes.refused(error)
    messages, output = consoles(quiet=not processes.speaks())
    note = functools.partial(say_note, messages)
    statuses, found = [int(ExitStatus.DONE)], list[list[Result]]()
    splits: list[dict[str, Any]] = []
    several, said = len(every) > 1, set[str]()  # sentences below tables
    left_out: dict[tuple[str, ...], list[str]] = {}  # sentences -> models

    def measure(options: Options) -> list[Result]:
        if "predictions" in given and processes.speaks():
            results_file.make_folder(given["predictions"])
        with answers_of_results(options) as answers:
            report, headline, embedded = _evaluate(options, suite, answers, messages)
            if processes.speaks():
                if "output" in given:
                    results_file.make_folder(given["output"])
                shown = functools.partial(
                    print_results, report["results"], headline=headline, said=said
                )
                in_a_line = options.watch and not options.tables
                tables = None if several or suite is not None or in_a_line else shown
                line = f"Step {options.step}: {one_line(report['results'])}" if in_a_line else ""
                measured = options.data
                if options.suite is not None:
                    measured = Path(options.suite).with_suffix("")
                ended = finish(
                    options,
                    report,
                    answers,
                    tables,
                    output,
                    messages,
                    data=measured,
                    tasks=options.tasks or "",
                    line=line,
                )
                statuses.append(ended)
                missing = tuple(left_out_sentences(report.get("left_out", {})))
                left_out.setdefault(missing, []).append(options.checkpoint.name)
                if suite is not None and not several and not in_a_line:
                    print_side_by_side([options.checkpoint], [report["results"]], suite, output)
                    print_protocols([report["splits"]], output)
                shown_beside = functools.partial(evaluate_published.show, options.beside)
                statuses.append(shown_beside(report["results"], output, messages, note))
                if not in_a_line or embedded != NO_CACHE:
                    print_line(output, embedded)
        found.append(report["results"])
        splits.append(report["splits"])
        return report["results"]

    try:
        with processes.errors_in_all():
            suite = check_all(every, note=note, folders=given)
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
        print_protocols(splits, output)
    for sentences, models in left_out.items():
        of = "" if len(left_out) == 1 else f"{', '.join(dict.fromkeys(models))}: "
        for sentence in sentences:
            note(of + sentence)
    return max(statuses)


def _watch(
    options: Options,
    suite: OpenedSuite | None,
    measure: Callable[[Options], list[Result]],
    note: Callable[[str], None],
) -> None:
    """Measures the checkpoints of a run as they appear; embeddings of each are of use once."""
    names = (*MEASURED, *ZERO_SHOT, *OF_IMAGES, *OF_STORED)
    asked = {name: getattr(options, name) for name in names} | options.of_crops.given
    watched = sha256_of([asked, None if suite is None else suite.suite.sha256])
    kept = dataclasses.replace(options.embeddings, cache=options.embeddings.cache or NONE)
    options = dataclasses.replace(options, embeddings=kept)
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


def _evaluate(
    options: Options,
    suite: OpenedSuite | None,
    answers: Answers,
    messages: Console,
) -> tuple[dict[str, Any], str, str]:
    """The report, its headline, and what of the embeddings was cached."""
    note = functools.partial(say_note, messages)
    store = open_store(options.embeddings)
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
    kind, split = kind_of(options), options.split
    labelled = named_folders(config, final=True)
    if kind == "own" and config.data.dataset == "tfds" and not labelled:
        if not config.data.data_dir:
            raise ValueError(
                f"{options.checkpoint} says nothing of data to evaluate it on; give some with "
                "--data."
            )
        refuse(options, ZERO_SHOT, "zero-shot classification, which this run has no images for")
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
    encoder = over_store(encoder, store, note=note)
    if config.model.type == "grain" and (lacking := what_lacks(loaded.learned)):
        note(f"this GRAIN model has no {lacking}, so figures that need them are left out.")
    details = ResultDetails()
    with answers.lines() as details.predictions:
        if kind == "own":
            results = evaluate(
                encoder,
                config,
                final=True,
                note=note,
                details=details,
                methods=options.methods,
                kinds=with_crops(options.of_crops.numbers),
            )
            if not results:
                raise ValueError(
                    "This run has no evaluation split or images of its own; give --data."
                )
            check_any_left(options.methods or (), details.left_out)
        elif suite is not None:
            results = evaluate_suite(
                encoder,
                suite,
                config,
                templates=loaded.templates,
                methods=options.methods,
                alphas=options.alphas,
                crops=options.of_crops.numbers,
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
            results = evaluate_images(options, encoder, config, loaded.templates, note, details)
    if encoder.truncated_texts:
        note(
            f"{encoder.truncated_texts} texts were longer than the {config.data.caption_length} "
            f"(captions) or {config.data.description_length} (descriptions) tokens of the run, "
            "and cut."
        )
    shown = {name: getattr(config.evaluation, name) for name in ZERO_SHOT}
    if shown["text_draws"] == 1:  # as it was before there were several
        del shown["text_draws"]
    given = (*OF_NAMES, *OF_STORED, "methods")
    shown |= {name: getattr(options, name) for name in given if getattr(options, name)}
    shown |= options.of_crops.given
    shown |= {} if suite is None else {"suite": suite.described()}
    report: dict[str, Any] = {
        "checkpoint": named(options.checkpoint),
        "step": loaded.step,
        "model_sha256": model_sha256(encoder),
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
        **({"query_usage": details.query_usage} if details.query_usage else {}),
        **({"costs": details.costs} if details.costs else {}),
        "preprocessing": encoder.preprocessing.spec(),
        "versions": versions(),
        "hardware": hardware(),
    }
    if left_out := {name: missing for name, missing in details.left_out.items() if missing}:
        report["left_out"] = left_out
    of_run = data_source(config.data, image_size=encoder.preprocessing.image_size)
    return report, of_run.headline(results), embeddings_line(encoder)


if __name__ == "__main__":
    runtime.restart_with_huge_pages()
    slow_compile.hide_alarm()
    end(main())
