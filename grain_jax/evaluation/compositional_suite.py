"""Tests of composition of a model: from questions and images to results and a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from grain_jax.data.compositional.questions import (
    CaptionChoices,
    CaptionedImages,
    CroppedImages,
    Pairings,
)
from grain_jax.evaluation.compositional import caption_choices, group_mean, pairing_scores
from grain_jax.evaluation.digests import sha256_of
from grain_jax.evaluation.percentages import MISSING, percent, result_text
from grain_jax.evaluation.predictions import PredictionsFile
from grain_jax.evaluation.ranking import wilson_interval
from grain_jax.evaluation.retrieval import retrieval, unique_texts
from grain_jax.evaluation.tables import Table
from grain_jax.inference.encoder import Encoder
from grain_jax.results import Result

MODEL, RANDOM = "model", "random"
ACCURACY, MEAN = "accuracy", "mean_over_groups"
MAX_GROUPS_SHOWN = 12
TITLES = {ACCURACY: "all questions", MEAN: "mean over groups"}
PAIRING_RANDOM = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}


def score_test(
    encoder: Encoder,
    test: CaptionChoices | Pairings | CaptionedImages,
    *,
    predictions: PredictionsFile | None = None,
) -> list[Result]:
    """The results of a test, from cosines of whole images and captions; each answer goes to
    `predictions`, if given.

    Of captions to choose from: the accuracy of each group and of all questions (Wilson, counting
    images), and its mean over groups (bootstrap of images). Of pairs: Winoground's three scores
    (Wilson). Of captioned images: recalls, as `retrieval`. Raises ValueError for an image that
    cannot be decoded, and embeddings that are not finite.
    """
    image = encoder.whole_images(test.images)
    if isinstance(test, CaptionChoices):
        return _caption_choices(encoder, test, image, predictions)
    if isinstance(test, Pairings):
        return _pairings(encoder, test, image, predictions)
    texts, text_rows, image_rows = unique_texts(test.captions)
    embed = encoder.texts(texts, kind="caption")
    pairs = {"text_rows": text_rows, "image_rows": image_rows}
    if predictions is not None:
        files = list(test.images.files)
        predictions.retrieval(test.name, image, embed, ids=files, texts=texts, **pairs)
    return retrieval(image, embed, **pairs, dataset=test.name, intervals=True)


def describe_test(test: CaptionChoices | Pairings | CaptionedImages) -> dict[str, Any]:
    """What was asked: how many images and questions, and the SHA-256 of both."""
    asked: Sequence[Any] = test.captions if isinstance(test, CaptionedImages) else test.questions
    count = sum(map(len, asked)) if isinstance(test, CaptionedImages) else len(asked)
    questions = [repr(question) for question in asked]
    return {
        "images": len(test.images),
        "questions": count,
        "sha256": sha256_of([questions, list(test.images.files), list(test.images.boxes)]),
    }


def _caption_choices(
    encoder: Encoder,
    test: CaptionChoices,
    image: Float[np.ndarray, "N E"],
    predictions: PredictionsFile | None,
) -> list[Result]:
    asked = test.questions
    rows = np.array([question.image for question in asked], int)
    right, wrong = (
        (image[rows] * encoder.texts(texts, kind="caption")).sum(axis=1)
        for texts in ([q.caption for q in asked], [q.wrong for q in asked])
    )
    values = caption_choices(right, wrong)
    if predictions is not None:
        for number, (one, value) in enumerate(zip(asked, values.tolist(), strict=True)):
            predictions.question(
                test.name,
                MODEL,
                number,
                image=test.images.files[one.image],
                text=one.caption,
                predicted=one.wrong if value == 0 else one.caption,
                score=float(right[number]),
                correct=value,
            )
    names, groups = np.unique([question.group for question in asked], return_inverse=True)
    files = _file_numbers(test.images)[rows]
    sizes = np.bincount(groups)
    counted = [
        group
        for group, name in enumerate(names.tolist())
        if name not in test.left_out and sizes[group] >= test.min_questions
    ]
    results = []
    if len(names) > 1:
        for group, name in enumerate(names.tolist()):
            own = groups == group
            results.append(_accuracy(f"{test.name}/{name}", ACCURACY, values[own], files[own]))
    results.append(_accuracy(test.name, ACCURACY, values, files))
    if counted:
        mean = group_mean(values, groups, files, counted=counted)
        number = int(np.isin(groups, counted).sum())
        results.append(
            Result(test.name, MODEL, None, MEAN, mean.value, mean.low, mean.high, number)
        )
        results.append(Result(test.name, "dataset", None, "groups", float(mean.groups)))
    return [*results, Result(test.name, RANDOM, None, ACCURACY, 0.5)]


def _pairings(
    encoder: Encoder,
    test: Pairings,
    image: Float[np.ndarray, "N E"],
    predictions: PredictionsFile | None,
) -> list[Result]:
    captions = [text for question in test.questions for text in question.captions]
    texts = encoder.texts(captions, kind="caption").reshape(len(test.questions), 2, -1)
    images = image[np.array([question.images for question in test.questions])]  # [N, 2, E]
    scores = pairing_scores(np.einsum("nie,nte->nit", images, texts))
    if predictions is not None:
        for metric in PAIRING_RANDOM:
            for number, value in enumerate(getattr(scores, metric).tolist()):
                one = test.questions[number]
                predictions.question(
                    test.name,
                    MODEL,
                    number,
                    image=test.images.files[one.images[0]],
                    text=one.captions[0],
                    score=float(images[number, 0] @ texts[number, 0]),
                    correct=value,
                    metric=metric,
                )
    files = _file_numbers(test.images)[[question.images[0] for question in test.questions]]
    results = [
        _accuracy(test.name, metric, getattr(scores, metric), files) for metric in PAIRING_RANDOM
    ]
    baseline = PAIRING_RANDOM.items()
    return [*results, *(Result(test.name, RANDOM, None, *metric) for metric in baseline)]


def _accuracy(
    dataset: str, metric: str, values: Float[np.ndarray, "n"], files: np.ndarray
) -> Result:
    """A mean with Wilson's interval, which counts images: questions of one are not independent."""
    rate = float(values.mean())
    interval = wilson_interval(rate, len(np.unique(files)))
    return Result(dataset, MODEL, None, metric, rate, *interval, n=len(values))


def _file_numbers(images: CroppedImages) -> np.ndarray:
    """The number of each image's file: crops of one file are one image to the intervals."""
    return np.unique(images.files, return_inverse=True)[1]


def compositional_table(results: Sequence[Result]) -> Table:
    """Accuracies and scores in percent; a test with many groups is shown without them."""
    found = {result.identity: result for result in results}
    shown = [r for r in results if r.method == MODEL and r.metric != "images"]
    of_test: dict[str, int] = {}
    for result in shown:
        test, _, group = result.dataset.partition("/")
        of_test[test] = of_test.get(test, 0) + bool(group)
    rows = []
    for result in shown:
        test, _, group = result.dataset.partition("/")
        if group and of_test[test] > MAX_GROUPS_SHOWN:
            continue
        metric = ACCURACY if result.metric == MEAN else result.metric
        baseline = found.get((test, RANDOM, None, metric))
        rows.append(
            (
                test,
                group or TITLES.get(result.metric, result.metric),
                MISSING if result.n is None else f"{result.n:,}",
                result_text(result),
                percent(None if baseline is None else baseline.value),
            )
        )
    return Table(
        "Captions that differ in a word or its place, %",
        ("test", "score", "questions", "value", "random"),
        tuple(rows),
        "In brackets the 95 % interval: Wilson's, which counts images, of a mean over groups the "
        "bootstrap of images. An exact tie counts as its expectation. Groups of a test with "
        f"more than {MAX_GROUPS_SHOWN} are in the file only.",
    )
