"""Classification without a list of classes: free answers out of the captions of other images.

  python -m grain_jax.evaluate vocabulary_free --checkpoint=RUN --data=IMAGES --bank=RECORDS

RUN and IMAGES (labelled images) are what `python -m grain_jax.evaluate` takes, RECORDS what
`python -m grain_jax.prepare` wrote. The method is CaSED; see `docs/zero-shot.md`.
"""

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
    OptionalText,
    RunPath,
    Step,
    default_is,
    fraction,
    one_of,
    one_word,
    parse,
)
from grain_jax.config import MeshConfig
from grain_jax.data.classification.class_names import BINDINGS, Binding
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.placeholder import check_placeholder
from grain_jax.evaluate_files import answers_of_results, check_places, finish
from grain_jax.evaluate_notes import named, print_line, say_end, say_note
from grain_jax.evaluation import results_file
from grain_jax.evaluation.caption_bank import encode_bank, load_bank
from grain_jax.evaluation.caption_candidates import CANDIDATES, FALLBACK, Candidates
from grain_jax.evaluation.content_digests import model_sha256
from grain_jax.evaluation.details import describe_set
from grain_jax.evaluation.given_images import BANK_SIZE, BANK_SPLIT
from grain_jax.evaluation.kept_predictions import Answers
from grain_jax.evaluation.predictions import PredictionsFile, record_ids
from grain_jax.evaluation.report import hardware, versions
from grain_jax.evaluation.shared_images import refuse_shared
from grain_jax.evaluation.tables import Table, print_table
from grain_jax.evaluation.unknown_words import unknown_words_in
from grain_jax.evaluation.vocabulary_free import (
    TASK,
    Searched,
    answer_images,
    example_table,
    free_table,
    score_answers,
    word_iou,
)
from grain_jax.evaluation.zero_shot import label_indices
from grain_jax.inference.encoder import Encoder, errors_about
from grain_jax.loading.load import read_model
from grain_jax.parallel.sharding import make_mesh
from grain_jax.paths import local_path
from grain_jax.terminal import consoles, escape_unprintable
from grain_jax.zero_shot.by_captions import CASED_CAPTION_WEIGHT, CASED_CAPTIONS

_Folder = Annotated[Path, one_word(local_path, "PATH")]
_OptionalFile = Annotated[
    Path | None, one_word(local_path, "PATH"), arg(metavar="FILE", help_behavior_hint="")
]


def read_prompt(text: str) -> str:
    """A text with one "{}"."""
    check_placeholder(text, repr(text), takes="the answer")
    return text


@dataclass(frozen=True)
class Options:
    """What `evaluate vocabulary_free` takes."""

    checkpoint: Annotated[RunPath, arg(metavar="RUN")]  # run folder, or another model
    data: _Folder  # labelled images; the labels are only compared with the answers
    bank: _Folder  # prepared records, whose captions are searched for answers
    bank_split: Annotated[str, arg(metavar="NAME")] = BANK_SPLIT  # of --bank
    # of --bank, most images
    bank_size: Annotated[OptionalCount, default_is(str(BANK_SIZE))] = None
    # of each image, captions whose words may be the answer
    num_captions: Annotated[OptionalCount, default_is(str(CASED_CAPTIONS))] = None
    # single words, as published, or whole noun phrases
    candidates: Annotated[Candidates, one_of(CANDIDATES)] = "words"
    # 0 to 1: of the captions against the image
    caption_weight: Annotated[float, one_word(fraction, "W")] = CASED_CAPTION_WEIGHT
    prompt: Annotated[str, one_word(read_prompt, "TEXT")] = "{}"  # what a candidate is put into
    # names: .json {label: name}, or a list in .json, .txt, .md#heading
    classes: Annotated[OptionalText, arg(metavar="FILE")] = None
    keep_names: bool = False  # leave underscores in names
    # how a list of names is bound to labels
    classes_by: Annotated[Binding | None, one_of(BINDINGS), default_is(BINDINGS[0])] = None
    # of images in tars, tables or TFDS
    split: Annotated[OptionalText, default_is("test, or the only one")] = None
    image_column: Annotated[OptionalText, default_is("found")] = None
    label_column: Annotated[OptionalText, default_is("found")] = None
    step: Step = None  # checkpoint of this step
    best: Best = False  # the checkpoint that keep_best kept
    batch_size: Annotated[OptionalCount, default_is("the run's")] = None  # images at once
    # file of the results, JSON
    output: Annotated[_OptionalFile, OUT, default_is("one in the run's folder")] = None
    # every single answer: .jsonl or .csv, also .gz; none: not kept
    predictions: Annotated[_OptionalFile, default_is("beside the results")] = None
    overwrite: bool = False  # replace files of an earlier evaluation
    embeddings: Annotated[CacheOptions, arg(name="")] = field(default_factory=CacheOptions)


def main(arguments: Sequence[str]) -> int:
    """The command, without the word `vocabulary_free`; returns its exit status."""
    escape_unprintable()
    messages, screen = consoles()
    try:
        options = parse(Options, arguments, command="evaluate vocabulary_free", description=__doc__)
        runtime.open_devices()
    except NotParsed as parsed:
        return parsed.status
    try:
        check_places(options)
        with answers_of_results(options) as answers:
            report, examples, embedded = _evaluate(options, answers, messages)

            def tables(screen: Console) -> None:
                print_table(examples, screen)
                print_table(free_table(report["results"]), screen)

            status = finish(
                options,
                report,
                answers,
                tables,
                screen,
                messages,
                data=options.data,
                tasks=TASK,
            )
    except (ValueError, OSError, KeyboardInterrupt) as error:
        return say_end(error, messages)
    print_line(screen, embedded)
    return status


def _evaluate(
    options: Options, answers: Answers, messages: Console
) -> tuple[dict[str, Any], Table, str]:
    """The report, examples, and what of the embeddings was cached."""

    def note(text: str) -> None:
        say_note(messages, text)

    store = open_store(options.embeddings)
    dataset = load_zero_shot(
        options.data,
        classes=options.classes or "",
        keep_names=options.keep_names,
        classes_by=options.classes_by or BINDINGS[0],
        allow_equal_names=True,
        split=options.split,
        image_column=options.image_column,
        label_column=options.label_column,
        note=note,
    )
    mesh = make_mesh(MeshConfig()) if jax.device_count() > 1 else None
    loaded = read_model(options.checkpoint, step=options.step, best=options.best, mesh=mesh)
    encoder = Encoder.from_bundle(loaded, batch_size=options.batch_size, mesh=mesh)
    encoder = over_store(encoder, store, note=note)
    images = load_bank(
        options.bank,
        loaded.config.data,
        split=options.bank_split,
        size=options.bank_size or BANK_SIZE,
        image_size=encoder.preprocessing.image_size,
        note=note,
    )
    refuse_shared(images.hashed, dataset, where="captioned images of --bank")
    if unknown := unknown_words_in(encoder.tokenizer, dataset.class_names):
        note(unknown)
    bank = encode_bank(encoder, images)
    with errors_about(f"Zero-shot set {dataset.name!r}"):
        image = encoder.whole_images(dataset.source)
    searched = answer_images(
        encoder,
        image,
        bank,
        num_captions=options.num_captions or CASED_CAPTIONS,
        caption_weight=options.caption_weight,
        candidates=options.candidates,
        prompt=options.prompt,
    )
    names = [dataset.name_texts.get(name, name) for name in dataset.class_names]
    # Classes of one name are one class to free text.
    position = {
        name: names.index(text) for name, text in zip(dataset.class_names, names, strict=True)
    }
    labels = label_indices(dataset, position)
    results = score_answers(encoder, dataset.name, searched, labels, names)
    best = searched.by_method["cased"].best
    if without := sum([text for text, _ in answers] == [FALLBACK] for answers in best):
        note(f"{without} images have captions without any candidate, and the answer {FALLBACK!r}.")
    ids = record_ids(dataset.source)
    with answers.lines() as file:
        if file is not None:
            _write_answers(file, dataset.name, searched, [names[label] for label in labels], ids)
    report: dict[str, Any] = {
        "checkpoint": named(options.checkpoint),
        "step": loaded.step,
        "model_sha256": model_sha256(encoder),
        "data": named(options.data),
        "split": options.split,
        "settings": {
            "num_captions": options.num_captions or CASED_CAPTIONS,
            "caption_weight": options.caption_weight,
            "candidates": options.candidates,
            "prompt": options.prompt,
        },
        "zero_shot_sets": {dataset.name: describe_set(dataset)},
        "splits": {},
        "bank": dict(images.described),
    }
    report |= {
        "inputs_sha256": results_file.inputs_sha256(report),
        "results": results,
        "preprocessing": encoder.preprocessing.spec(),
        "versions": versions(),
        "hardware": hardware(),
    }
    examples = example_table(searched, labels, names, ids)
    return report, examples, embeddings_line(encoder)


def _write_answers(
    file: PredictionsFile,
    dataset: str,
    searched: Searched,
    truth: Sequence[str],
    ids: Sequence[str],
) -> None:
    """A line for every image and method."""
    for method, found in searched.by_method.items():
        for image, name, best in zip(ids, truth, found.best, strict=True):
            answer, probability = best[0]
            file.write(
                task=TASK,
                set=dataset,
                method=method,
                image=image,
                label=name,
                predicted=answer,
                score=probability,
                correct=word_iou(answer, name),
                top5=[list(one) for one in best],
            )
