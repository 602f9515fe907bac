"""Image-to-text and text-to-image retrieval with several captions an image.

The rule, since published figures differ by it: an image finds its text when any of its captions is
in the top k of all texts; a text finds its image when the image (or any image that carries the very
same text) is in the top k of all images. Equal texts are one text: they fill one place of a ranking
and are right for every image that has them. Every caption is a query of its own. Exact ties are
drawn at random (their expected value is counted).

Intervals (95 %) are the percentile bootstrap of images, in both directions: the captions of an
image stay together. The images and texts to choose from are those measured, as drawing fewer of
them would make it easier.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.data.captions import normalize_text
from grain_jax.evaluation.mean_results import mean_result
from grain_jax.evaluation.ranking import CHUNK_ROWS, expected_recall
from grain_jax.evaluation.statistics import mean_of_means_interval
from grain_jax.results import Result

KS = (1, 5, 10)
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_to_text", "text_to_image"


def unique_texts(
    captions: Sequence[Sequence[str]],
) -> tuple[list[str], Int[np.ndarray, "C"], Int[np.ndarray, "C"]]:
    """Captions of N images to the T different texts (case and spacing do not count), and of all C
    captions their text row and their image row.
    """
    row: dict[str, int] = {}
    texts, text_rows, image_rows = [], [], []
    for image, own in enumerate(captions):
        for text in own:
            key = normalize_text(text)
            if key not in row:
                row[key] = len(row)
                texts.append(text)
            text_rows.append(row[key])
            image_rows.append(image)
    return texts, np.array(text_rows, int), np.array(image_rows, int)


def retrieval(
    image: Float[np.ndarray, "N E"],
    text: Float[np.ndarray, "T E"],
    *,
    text_rows: Int[np.ndarray, "C"],
    image_rows: Int[np.ndarray, "C"],
    dataset: str,
    intervals: bool = True,
) -> list[Result]:
    """Recall at 1, 5 and 10 both ways, in [0, 1], the mean of both R@1, and what a
    random ranking has at 1; with `intervals` of the recalls, see above.

    `text` holds each different text once; pair c says that image `image_rows[c]` carries text
    `text_rows[c]`. Raises ValueError when an image or a text has no partner.
    """
    num_images, num_texts = len(image), len(text)
    if len(set(image_rows.tolist())) != num_images or len(set(text_rows.tolist())) != num_texts:
        raise ValueError(
            f"Retrieval needs a caption for each of the {num_images} images and an image for each "
            f"of the {num_texts} texts; leave out images without captions."
        )
    to_text = _recall(image, text, image_rows, text_rows)
    to_image = _recall(text, image, text_rows, image_rows)
    of_images = {f"R@{k}": (to_text[k], np.arange(num_images)) for k in KS}
    of_texts = {f"R@{k}": (to_image[k][text_rows], image_rows) for k in KS}  # of each caption
    both = [of_images["R@1"], of_texts["R@1"]]
    mean = float(np.mean([values.mean() for values, _ in both]))
    interval = (mean_of_means_interval(both) if intervals else None) or (None, None)
    weights = np.bincount(text_rows, minlength=num_texts)  # captions of each text: queries
    pairs = np.unique(np.stack([image_rows, text_rows]), axis=1)  # a text twice at an image: once
    images_of_text = np.bincount(pairs[1], minlength=num_texts)
    random_text = pairs.shape[1] / num_images / num_texts
    random_image = float(np.average(images_of_text, weights=weights) / num_images)
    directions = (
        (IMAGE_TO_TEXT, of_images, random_text),
        (TEXT_TO_IMAGE, of_texts, random_image),
    )
    results = []
    for method, recalls, random in directions:
        for metric, (values, images) in recalls.items():
            results.append(mean_result(dataset, method, metric, values, images, interval=intervals))
        results.append(Result(dataset, method, None, "random_R@1", random))
    return [
        *results,
        Result(dataset, "retrieval", None, "mean_R@1", mean, *interval),
        Result(dataset, "retrieval", None, "images", float(num_images)),
        Result(dataset, "retrieval", None, "texts", float(num_texts)),
    ]


@dataclass(frozen=True)
class Ranked:
    """How Q queries found what is right for them; exact ties are drawn at random."""

    best: Int[np.ndarray, "Q"]  # the item most similar to each
    score: Float[np.ndarray, "Q"]  # its similarity
    rank: Float[np.ndarray, "Q"]  # of the best right item, from 1; the expected one among ties
    hit: Float[np.ndarray, "Q"]  # expected recall at 1


def ranked(queries, items, query_rows, item_rows) -> Ranked:
    """Every query with its best item and the rank of the first right one; pair c says that item
    `item_rows[c]` is right for `query_rows[c]`.
    """
    parts = []
    for _, scores, correct in _similarities(queries, items, query_rows, item_rows):
        best = np.where(correct, scores, -np.inf).max(axis=1, keepdims=True)  # [n, 1]
        tied = scores == best
        wrong_tied, right_tied = (tied & ~correct).sum(axis=1), (tied & correct).sum(axis=1)
        rank = 1 + (scores > best).sum(axis=1) + wrong_tied / (right_tied + 1)
        hit = expected_recall(scores, correct, (1,))[1]
        parts.append((scores.argmax(axis=1), scores.max(axis=1), rank, hit))
    return Ranked(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _recall(queries, items, query_rows, item_rows) -> dict[int, np.ndarray]:
    """Expected recall for each query; pairs as in `ranked`."""
    hits = {k: np.empty(len(queries)) for k in KS}
    for block, scores, correct in _similarities(queries, items, query_rows, item_rows):
        for k, values in expected_recall(scores, correct, KS).items():
            hits[k][block] = values
    return hits


def _similarities(
    queries, items, query_rows, item_rows
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Block of queries, their similarity to all items, and which of these are right for them."""
    order = np.argsort(query_rows, kind="stable")
    query_rows, item_rows = query_rows[order], item_rows[order]
    for start in range(0, len(queries), CHUNK_ROWS):
        block = slice(start, min(start + CHUNK_ROWS, len(queries)))
        first, last = np.searchsorted(query_rows, (block.start, block.stop))
        correct = np.zeros((block.stop - start, len(items)), bool)
        correct[query_rows[first:last] - start, item_rows[first:last]] = True
        yield block, queries[block] @ items.T, correct
