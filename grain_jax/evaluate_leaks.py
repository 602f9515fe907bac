"""Which evaluation images are training images too: the same image, scaled, recompressed, cropped.

  python -m grain_jax.evaluate leaks --train=RECORDS --test=IMAGES
  python -m grain_jax.evaluate leaks --train=RECORDS --test=IMAGES --checkpoint=RUN   (other crops)
  python -m grain_jax.evaluate leaks --train=RECORDS --test=IMAGES --predictions=a.jsonl

Either is records written by grain_jax.prepare, a folder of images, or what `evaluate --data` takes.
See `docs/evaluation.md`.
"""

import csv
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

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
    OptionalPath,
    OptionalText,
    RunPath,
    Step,
    default_is,
    fraction,
    integer,
    one_word,
    parse,
    progress_bar,
)
from grain_jax.config import MeshConfig
from grain_jax.data.image_sets import open_images
from grain_jax.data.inspection.near_duplicates import MAX_DISTANCE
from grain_jax.data.records import Source
from grain_jax.disk import write_whole
from grain_jax.evaluate_notes import print_line, say_end, say_note
from grain_jax.evaluation.comparison import Predictions, read_predictions
from grain_jax.evaluation.kept_predictions import answers_of
from grain_jax.evaluation.leaks import (
    KEPT,
    Closest,
    Leak,
    WithoutLeaks,
    close_by_embedding,
    close_by_hash,
    hashes_of,
    leaked_names,
    leaks,
    without_leaks,
)
from grain_jax.evaluation.percentages import percent, with_interval
from grain_jax.evaluation.predictions import record_ids
from grain_jax.evaluation.results_file import check_place
from grain_jax.evaluation.tables import Table, print_table
from grain_jax.inference.encoder import Encoder, errors_about
from grain_jax.loading.load import read_model
from grain_jax.parallel.sharding import make_mesh
from grain_jax.paths import local_path
from grain_jax.terminal import consoles, escape_unprintable

SHOWN = 20  # pairs that are printed
COLUMNS = ("test", "train", "bits", "cosine")
_LocalPath = Annotated[Path, one_word(local_path, "PATH")]


@dataclass(frozen=True)
class Options:
    """What `evaluate leaks` takes."""

    train: _LocalPath  # training images: records, a folder, tars, tables or tfds:NAME
    test: _LocalPath  # evaluation images, likewise
    train_split: Annotated[OptionalText, default_is("train of records")] = None
    test_split: Annotated[OptionalText, default_is("validation of records")] = None
    # bits of 64 in which the hashes of two images may differ
    max_distance: Annotated[int, one_word(integer, "N")] = 4
    # a model whose embeddings find other crops too: a run folder, or another model
    checkpoint: Annotated[RunPath | None, arg(metavar="RUN", help_behavior_hint="")] = None
    step: Step = None  # checkpoint of this step
    best: Best = False  # the checkpoint that keep_best kept
    # cosine of two embeddings, with --checkpoint
    score_threshold: Annotated[float, one_word(fraction, "F")] = 0.95
    # results of `evaluate` on --test, or its --predictions: metrics without the images that leaked
    predictions: OptionalPath = None
    output: Annotated[OptionalPath, OUT, arg(metavar="FILE")] = None  # all pairs as .csv
    overwrite: bool = False  # replace --output of an earlier check
    embeddings: Annotated[CacheOptions, arg(name="")] = field(default_factory=CacheOptions)


def main(arguments: Sequence[str]) -> int:
    """The command, without the word `leaks`; returns its exit status."""
    escape_unprintable()
    messages, screen = consoles()
    try:
        options = parse(Options, arguments, command="evaluate leaks", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    try:
        _check(options, messages, screen)
    except (ValueError, OSError, KeyboardInterrupt) as error:
        return say_end(error, messages)
    return ExitStatus.DONE


def _check(options: Options, messages: Console, screen: Console) -> None:
    predictions = _checked(options)
    train = open_images(
        options.train, options.train_split, default_split="train", option="--train_split"
    )
    test = open_images(
        options.test, options.test_split, default_split="validation", option="--test_split"
    )
    by_hash = close_by_hash(
        _hashes(test, "Evaluation images", messages),
        _hashes(train, "Training images", messages),
        options.max_distance,
    )
    by_embedding, embedded = None, ""
    if options.checkpoint is not None:
        by_embedding, embedded = _by_embedding(options, test, train, messages)
    found = leaks(by_hash, by_embedding)
    names = record_ids(test)
    screen.print(_summary(options, test, train, by_hash, by_embedding), soft_wrap=True)
    if found:
        print_table(_pairs_table(found, names, train), screen)
    if predictions is not None:
        measured = without_leaks(predictions, leaked_names(found, names), known=names)
        print_table(_metrics_table(measured), screen)
    if options.output is not None:
        write_whole(options.output, _csv(found, names, train), errors="backslashreplace")
        print_line(screen, f"Written to {options.output}")
    if embedded:
        print_line(screen, embedded)


def _checked(options: Options) -> Predictions | None:
    """The predictions, if any. Raises ValueError for options that do not go together."""
    if options.output is not None:
        check_place("output", options.output, overwrite=options.overwrite)
        if options.output.suffix != ".csv":
            raise ValueError(f"--output={options.output} is written as CSV; end it in .csv.")
    if not 0 <= options.max_distance <= MAX_DISTANCE:
        raise ValueError(f"--max_distance={options.max_distance} is not from 0 to {MAX_DISTANCE}.")
    same = options.train.resolve() == options.test.resolve()
    if same and options.train_split == options.test_split:
        raise ValueError(
            "--train and --test are the same images, so every one would be found. Give other "
            "images, or other splits of these."
        )
    if options.checkpoint is None and (options.step is not None or options.best):
        raise ValueError("--step and --best go with --checkpoint; give a model, or leave them out.")
    kept = options.embeddings
    if options.checkpoint is None and (kept.cache is not None or kept.cache_gib is not None):
        raise ValueError("--cache keeps embeddings of --checkpoint; give both, or leave it out.")
    if options.predictions is None:
        return None
    return read_predictions(answers_of(options.predictions))


def _hashes(source: Source, title: str, messages: Console):
    with errors_about(title), progress_bar(messages, title, state="hashing") as advance:
        return hashes_of(
            source,
            num_workers=runtime.usable_cpus(),
            on_images=lambda done: advance(done, len(source), "hashing"),
        )


def _by_embedding(
    options: Options, test: Source, train: Source, messages: Console
) -> tuple[Closest, str]:
    """The pairs, and what of the embeddings was cached."""
    assert options.checkpoint is not None
    runtime.open_devices()
    store = open_store(options.embeddings)
    mesh = make_mesh(MeshConfig()) if jax.device_count() > 1 else None
    loaded = read_model(options.checkpoint, step=options.step, best=options.best, mesh=mesh)
    encoder = Encoder.from_bundle(loaded, mesh=mesh)
    encoder = over_store(encoder, store, note=functools.partial(say_note, messages))
    title = "Training images"
    with errors_about("Images"), progress_bar(messages, title, state="embedding") as advance:
        found = close_by_embedding(
            encoder,
            test,
            train,
            options.score_threshold,
            on_images=lambda done: advance(done, len(train), "embedding"),
        )
    return found, embeddings_line(encoder)


def _summary(
    options: Options, test: Source, train: Source, by_hash: Closest, by_embedding: Closest | None
) -> str:
    def sentence(closest: Closest, how: str) -> str:
        images, pairs = int((closest.counts > 0).sum()), int(closest.counts.sum())
        return (
            f"{images:,} of {len(test):,} evaluation images have a training image (of "
            f"{len(train):,}) {how}: {pairs:,} pairs."
        )

    lines = [sentence(by_hash, f"that differs in at most {options.max_distance} of 64 bits")]
    if by_embedding is not None:
        lines.append(
            sentence(by_embedding, f"with a cosine of at least {options.score_threshold:g}")
        )
    return "\n".join(lines)


def _pairs_table(found: Sequence[Leak], names: Sequence[str], train: Source) -> Table:
    return Table(
        f"Evaluation images and training images that look like them, {min(SHOWN, len(found))} of "
        f"{len(found):,}",
        COLUMNS,
        tuple(tuple(map(str, row)) for row in _rows(found[:SHOWN], names, train)),
        f"Of each evaluation image the {KEPT} closest by each search. Bits: in which the hashes "
        "differ, of 64. A blank image looks like every other blank one: look at the pairs.",
    )


def _rows(found: Sequence[Leak], names: Sequence[str], train: Source) -> list[tuple[object, ...]]:
    files = getattr(train, "files", None)
    trained = {leak.training for leak in found}
    known = {row: train[row].id if files is None else files[row] for row in trained}
    return [
        (
            names[leak.test],
            known[leak.training],
            "" if leak.bits is None else leak.bits,
            "" if leak.cosine is None else f"{leak.cosine:.4f}",
        )
        for leak in found
    ]


def _csv(found: Sequence[Leak], names: Sequence[str], train: Source) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(found, names, train))
    return text.getvalue()


def _metrics_table(measured: Sequence[WithoutLeaks]) -> Table:
    rows = tuple(
        (
            one.measure.dataset,
            one.measure.method,
            f"{one.leaked_images:,} of {one.images:,}",
            *map(percent, (one.value, one.leaked)),
            with_interval(one.rest, one.low, one.high),
        )
        for one in measured
    )
    return Table(
        "The metrics without the images that leaked, %",
        ("set", "method", "leaked", "all", "on leaked", "without"),
        rows,
        "In brackets Wilson's 95 % interval, counting images.",
    )
