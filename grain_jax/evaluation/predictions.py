"""The single answers behind the metrics: one line an image, query or phrase, as JSON or CSV."""

import contextlib
import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TextIO

import numpy as np
from jaxtyping import Float, Int

from grain_jax.boxes import pairwise_iou
from grain_jax.data.records import Source, ZeroShotSet
from grain_jax.disk import whole_file
from grain_jax.evaluation.box_features import BoxAnswers
from grain_jax.evaluation.deciding_texts import DecidingTexts
from grain_jax.evaluation.digests import sha256_of
from grain_jax.evaluation.grounding import Phrase, phrase_hits
from grain_jax.evaluation.grounding_protocol import Protocol
from grain_jax.evaluation.ranking import expected_recall_of_labels
from grain_jax.evaluation.retrieval import ranked
from grain_jax.evaluation.zero_shot import OnDraws, OnScores
from grain_jax.zero_shot.methods import METHODS

SUFFIXES = (".jsonl", ".csv", ".jsonl.gz", ".csv.gz")
PACKED = ".gz"
LEVEL = 6  # of gzip
_as_json = json.JSONEncoder(ensure_ascii=False).encode  # made once
TOP = 5  # best classes that a line of zero-shot classification lists
COLUMNS = (  # of .csv; the keys of .jsonl are the same, those that a task does not have left out
    *("task", "set", "method", "alpha", "image", "text", "label", "predicted", "score", "correct"),
    *("rank", "iou", "query", "box_xyxy", "true_xyxy", "top5", "choices"),
    *("probability", "protocol", "correct_by_draw", "label_text", "predicted_text"),
    "metric",
)
JSON_CELLS = (  # of .csv
    *("top5", "box_xyxy", "true_xyxy", "correct_by_draw", "label_text", "predicted_text"),
)
# Method and alpha -> of each draw and image, the probability that the answer is right.
DrawnAnswers = dict[tuple[str, float | None], Float[np.ndarray, "D N"]]
SHORT = 8  # digits of "choices", the SHA-256 of the class names, texts or images to choose from


def check_suffix(path: Path) -> None:
    """Raises ValueError for another suffix than .jsonl or .csv, with or without .gz."""
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{str(path)!r} should end in {' or '.join(SUFFIXES)}.")


def is_table(path: Path) -> bool:
    """Whether a file of predictions is .csv, compressed or not."""
    return path.name.endswith((".csv", ".csv.gz"))


class PredictionsFile:
    """Writes lines beside `path`, which gets them at the end of a block: all of them, or none.

    A `path` in .gz is compressed; an open file gets what a .jsonl.gz has, and stays open. The mean
    of "correct" over the lines of one task, set, method and alpha, and "metric" where lines have
    one, is the metric of the task: exact ties count as expected. Raises ValueError for another
    suffix than .jsonl or .csv, OSError where it cannot be opened. An error of the disk after that
    is kept in `failure`, and `path` stays as it was: the metrics do not depend on this file.
    """

    def __init__(self, path: Path | BinaryIO):
        self.failure: OSError | None = None
        self._texts: DecidingTexts | None = None
        with contextlib.ExitStack() as files:
            if isinstance(path, Path):
                check_suffix(path)
                packed = path.suffix == PACKED
                partial = files.enter_context(whole_file(path))
                raw: BinaryIO | gzip.GzipFile = files.enter_context(partial.open("wb"))
            else:
                packed, raw = True, path
            if packed:  # the same bytes for the same answers: no name, no time
                raw = files.enter_context(
                    gzip.GzipFile("", "wb", compresslevel=LEVEL, fileobj=raw, mtime=0)
                )
            self._lines: TextIO = files.enter_context(
                io.TextIOWrapper(raw, newline="", encoding="utf-8", errors="backslashreplace")
            )
            self._files = files.pop_all()
        self._table = None
        if isinstance(path, Path) and is_table(path):
            self._table = csv.DictWriter(self._lines, COLUMNS, restval="")
            self._table.writeheader()  # into the buffer: no disk is met yet

    def __enter__(self) -> "PredictionsFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        error = error or self.failure
        try:
            self._files.__exit__(type(error) if error else None, error, traceback)
        except OSError as failure:  # of the lines that were still in the buffer
            self.failure = self.failure or failure

    def look_up(self, texts: DecidingTexts) -> None:
        """Where the lines of `of_set` that follow get their "label_text" and "predicted_text": the
        description of the true and of the predicted class that the image is most similar to, and
        its cosine.
        """
        self._texts = texts

    def of_set(
        self,
        dataset: ZeroShotSet,
        *,
        logit_scale: float | None = None,
        draws: DrawnAnswers | None = None,
    ) -> OnScores:
        """What `evaluate_zero_shot` is to call: a line for every image and method.

        draws: how right each draw's answers are, of methods whose texts were drawn several times,
        filled before the first call (`note_draws`). "correct" is then their mean.
        logit_scale: of the model; the softmax of the scores times it is the "probability" of the
        predicted class, as `predict` has it. None: the lines have none.
        """
        ids, names = record_ids(dataset.source), dataset.class_names
        choices = _digest(names)

        def write(
            method: str,
            alpha: float | None,
            start: int,
            scores: Float[np.ndarray, "n K"],
            labels: Int[np.ndarray, "n"],
        ) -> None:
            hits = expected_recall_of_labels(scores, labels, (1,))[1]
            by_draw = (draws or {}).get((method, alpha))
            if by_draw is not None:
                by_draw = by_draw[:, start : start + len(scores)]
                hits = by_draw.mean(axis=0)
            best = best_classes(scores, TOP)
            of_best = _rows(np.take_along_axis(scores, best, axis=1))
            probability = best_probability(method, scores, logit_scale)
            probabilities = None if probability is None else _list(probability)
            deciding: list[dict[str, Any]] = [{} for _ in labels]
            for name, classes in (("label_text", labels), ("predicted_text", best[:, 0])):
                found = self._texts and self._texts(method, alpha, start, classes)
                for line, (text, cosine) in zip(deciding, found or (), strict=False):
                    line[name] = [text, _rounded(cosine)]
            of_draws = None if by_draw is None else _rows(by_draw.T)
            correct = _list(hits)
            for row, (label, order) in enumerate(zip(labels.tolist(), best.tolist(), strict=True)):
                top = [[names[k], value] for k, value in zip(order, of_best[row], strict=True)]
                self.write(
                    task="zero_shot",
                    set=dataset.name,
                    method=method,
                    alpha=alpha,
                    image=ids[start + row],
                    label=names[label],
                    predicted=top[0][0],
                    score=top[0][1],
                    correct=correct[row],
                    **({} if probabilities is None else {"probability": probabilities[row]}),
                    **({} if of_draws is None else {"correct_by_draw": of_draws[row]}),
                    top5=top,
                    choices=choices,
                    **deciding[row],
                )

        return write

    def retrieval(
        self,
        split: str,
        image: Float[np.ndarray, "N E"],
        text: Float[np.ndarray, "T E"],
        *,
        ids: Sequence[str],
        texts: Sequence[str],
        text_rows: Int[np.ndarray, "C"],
        image_rows: Int[np.ndarray, "C"],
    ) -> None:
        """A line for every image that looks for its texts, and every caption for its image."""
        all_texts, all_images = _digest(texts), _digest(ids)
        found = ranked(image, text, image_rows, text_rows)
        for row, name in enumerate(ids):
            self.write(
                task="retrieval",
                set=split,
                method="image_to_text",
                image=name,
                predicted=texts[found.best[row]],
                score=_rounded(found.score[row]),
                correct=_rounded(found.hit[row]),
                rank=_rounded(found.rank[row]),
                choices=all_texts,
            )
        found = ranked(text, image, text_rows, image_rows)
        for row, image_row in zip(text_rows.tolist(), image_rows.tolist(), strict=True):
            self.write(
                task="retrieval",
                set=split,
                method="text_to_image",
                image=ids[image_row],
                text=texts[row],
                predicted=ids[found.best[row]],
                score=_rounded(found.score[row]),
                correct=_rounded(found.hit[row]),
                rank=_rounded(found.rank[row]),
                choices=all_images,
            )

    def grounding(
        self,
        split: str,
        phrases: Sequence[Phrase],
        *,
        ids: Sequence[str],
        chosen: Int[np.ndarray, "T"],
        chosen_xyxy: Float[np.ndarray, "T 4"],
        cosines: Float[np.ndarray, "T"],
        protocol: Protocol,
    ) -> None:
        """A line for every phrase: the query that answers it, and the best IoU of its box."""
        hits = phrase_hits(chosen_xyxy, phrases)
        for row, phrase in enumerate(phrases):
            iou = pairwise_iou(chosen_xyxy[row][None], phrase.boxes).max(initial=0.0)
            self.write(
                task="grounding",
                set=split,
                method="phrase",
                image=ids[phrase.image],
                text=phrase.text,
                score=_rounded(cosines[row]),
                correct=_rounded(hits[row]),
                iou=_rounded(iou),
                query=int(chosen[row]),
                box_xyxy=_box(chosen_xyxy[row]),
                true_xyxy=[_box(box) for box in phrase.boxes],
                protocol=protocol.text,
            )

    def grounding_answers(
        self,
        name: str,
        ids: Sequence[str],
        texts: Sequence[str],
        *,
        protocol: Protocol,
        answers: BoxAnswers,
        truths: Sequence[Float[np.ndarray, "_ 4"]],
        iou: Float[np.ndarray, "T"],
        correct: Float[np.ndarray, "T"],
    ) -> None:
        """A line for every query of a benchmark, numbered: the same words are asked more than once.

        Boxes, also the true ones in `truths`, are in [0, 1] of the whole image, `ids` those of the
        queries' images.
        """
        for row, (image, text) in enumerate(zip(ids, texts, strict=True)):
            line: dict[str, Any] = (
                {} if answers.queries is None else {"query": int(answers.queries[row])}
            )
            self.write(
                task="grounding",
                set=name,
                method=protocol.feature,
                image=image,
                text=text,
                label=str(row),
                score=_rounded(answers.cosines[row]),
                correct=_rounded(correct[row]),
                iou=_rounded(iou[row]),
                box_xyxy=_box(answers.boxes_xyxy[row]),
                true_xyxy=[_box(box) for box in truths[row]],
                protocol=protocol.text,
                **line,
            )

    def question(
        self,
        name: str,
        method: str,
        number: int,
        *,
        image: str,
        text: str,
        score: float,
        correct: float,
        predicted: str | None = None,
        metric: str | None = None,
    ) -> None:
        """A line for a question of a compositional test, numbered: some are asked twice.

        `text` is the right caption, `score` its cosine with the image, `predicted` the caption that
        was chosen, where one is. `metric`: which score of the question, where there are several.
        """
        chosen = {"predicted": predicted, "metric": metric}
        self.write(
            task="compositional",
            set=name,
            method=method,
            image=image,
            text=text,
            label=str(number),
            score=_rounded(score),
            correct=_rounded(correct),
            **{key: value for key, value in chosen.items() if value is not None},
        )

    def write(self, **line: Any) -> None:
        """One line of these columns; an error of the disk goes to `failure`."""
        if self.failure is not None:
            return
        try:
            if self._table is None:
                self._lines.write(_as_json(line) + "\n")
            else:
                for name in JSON_CELLS:
                    if name in line:
                        line[name] = json.dumps(line[name], ensure_ascii=False)
                self._table.writerow(line)
        except OSError as failure:
            self.failure = failure


def best_classes(scores: Float[np.ndarray, "n K"], top: int) -> Int[np.ndarray, "n _"]:
    """The classes with the highest scores of each image, best first; of equal ones the first."""
    if scores.shape[1] <= 4 * top:
        return np.argsort(-scores, axis=1, kind="stable")[:, :top]
    found = np.sort(np.argpartition(-scores, top - 1, axis=1)[:, :top], axis=1)
    values = np.take_along_axis(scores, found, axis=1)
    found = np.take_along_axis(found, np.argsort(-values, axis=1, kind="stable"), axis=1)
    # Where more are as good as the last of these, which of them are here is by chance.
    ties = (scores >= values.min(axis=1, keepdims=True)).sum(axis=1) > top
    found[ties] = np.argsort(-scores[ties], axis=1, kind="stable")[:, :top]
    return found


def highest(logits: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "n"]:
    """The largest probability of each row's softmax."""
    logits = logits.astype(np.float64)
    return 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)


def best_probability(
    method: str, scores: Float[np.ndarray, "n K"], logit_scale: float | None
) -> Float[np.ndarray, "n"] | None:
    """Of the predicted class, by the unit of the method's scores; None where they have none."""
    match METHODS[method].unit if method in METHODS else "other":
        case "cosine" if logit_scale is not None:
            return highest(logit_scale * scores)
        case "log_probability":
            return highest(scores)
        case "probability":
            return scores.max(axis=1)
    return None


def record_ids(source: Source) -> list[str]:
    """The name of every record; of image files without reading them."""
    files = getattr(source, "files", None)
    return [source[i].id for i in range(len(source))] if files is None else list(files)


def note_draws(draws: DrawnAnswers) -> OnDraws:
    """What `evaluate_zero_shot` is to call, to fill `draws`."""
    return lambda method, alpha, hits: draws.update({(method, alpha): hits})


def _list(values: Float[np.ndarray, "_"]) -> list[float]:
    return [_rounded(value) for value in values.tolist()]


def _rows(values: Float[np.ndarray, "n _"]) -> list[list[float]]:
    return [[_rounded(value) for value in row] for row in values.tolist()]


def _box(xyxy: Float[np.ndarray, "4"]) -> list[float]:
    return [_rounded(value) for value in xyxy]


def _digest(names: Sequence[str]) -> str:
    return sha256_of(sorted(names))[:SHORT]


def _rounded(value: Any) -> float:
    """With the six digits that float32 has."""
    return float(f"{float(value):.6g}")
