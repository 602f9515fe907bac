"""Classification without a list of classes: CaSED over a bank of captions, and its metrics.

Conti et al. 2023, arXiv 2306.00917. The answer to an image is free text; the true class is compared
with it afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.evaluation.caption_candidates import Candidates, candidates_of
from grain_jax.evaluation.percentages import COSINE, percent, result_text
from grain_jax.evaluation.statistics import mean_interval
from grain_jax.evaluation.tables import Table
from grain_jax.inference.encoder import Encoder
from grain_jax.results import Result, keyed
from grain_jax.zero_shot.by_captions import (
    CASED_CAPTION_WEIGHT,
    CASED_CAPTIONS,
    candidate_probabilities,
)
from grain_jax.zero_shot.method import CaptionBank
from grain_jax.zero_shot.neighbours import nearest

TASK = "vocabulary_free"
# Metrics of free answers.
CLUSTER, IOU, SIMILARITY = "cluster_accuracy", "semantic_iou", "own_encoder_similarity"
METHODS = {
    "cased": "CaSED",
    "cased_image": "by the image alone",
    "cased_captions": "by its captions alone",
}
TOP = 5  # answers kept of each image
EXAMPLES = 8


@dataclass(frozen=True)
class FreeAnswers:
    """What one method answers to N images."""

    answers: tuple[str, ...]
    # of each image the best candidates with their probabilities, the answer first
    best: tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True)
class Searched:
    """What was found for N images."""

    by_method: Mapping[str, FreeAnswers]
    nearest: tuple[str, ...]  # the caption most similar to each image
    num_candidates: tuple[int, ...]


def answer_images(
    encoder: Encoder,
    image: Float[np.ndarray, "N E"],
    bank: CaptionBank,
    *,
    num_captions: int = CASED_CAPTIONS,
    caption_weight: float = CASED_CAPTION_WEIGHT,
    candidates: Candidates = "words",
    prompt: str = "{}",
) -> Searched:
    """Answers from the candidates of each image's `num_captions` nearest captions: those of the
    largest (1 - w) softmax(s x.c) + w softmax(s t.c) for w the `caption_weight`, x the image, t the
    mean of its captions, s the logit scale. Equal ones: the first mentioned.

    Args:
        image: embeddings of unit length.
        candidates: see `candidates_of`.
        prompt: what a candidate is encoded in; "{}" takes it.
    """
    found_rows, _ = nearest(image, bank.text, num_captions)
    texts = [candidates_of([bank.captions[row] for row in rows], candidates) for rows in found_rows]
    place = {text: i for i, text in enumerate(dict.fromkeys(t for own in texts for t in own))}
    embed = encoder.texts([prompt.replace("{}", text) for text in place], kind="caption")
    weights = dict(zip(METHODS, (caption_weight, 0.0, 1.0), strict=True))
    found: dict[str, list[tuple[tuple[str, float], ...]]] = {name: [] for name in METHODS}
    for own, rows, vector in zip(texts, found_rows, image, strict=True):
        by_image, by_caption = candidate_probabilities(
            vector,
            bank.text[rows],
            embed[[place[text] for text in own]],
            logit_scale=encoder.logit_scale,
        )
        for name, weight in weights.items():
            scores = (1 - weight) * by_image + weight * by_caption
            order = np.argsort(-scores, kind="stable")[:TOP]
            found[name].append(tuple((own[k], float(scores[k])) for k in order))
    return Searched(
        {
            name: FreeAnswers(tuple(one[0][0] for one in best), tuple(best))
            for name, best in found.items()
        },
        tuple(bank.captions[rows[0]] for rows in found_rows),
        tuple(map(len, texts)),
    )


def cluster_accuracy(answers: Sequence[str], labels: Int[np.ndarray, "N"]) -> float:
    """The fraction of images whose answer belongs to their class, where each different answer is
    given to at most one class and each class gets at most one, so that it is largest (Hungarian
    method). It is fitted to the images that it is measured on.
    """
    from scipy.optimize import linear_sum_assignment

    _, rows = np.unique(np.array(answers), return_inverse=True)
    _, columns = np.unique(labels, return_inverse=True)
    counts = np.zeros((rows.max() + 1, columns.max() + 1), int)
    np.add.at(counts, (rows, columns), 1)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(answers))


def word_iou(answer: str, name: str) -> float:
    """Words in both over words in any, in [0, 1]; neither case nor what is no letter or digit
    counts.
    """
    left, right = (
        set("".join(c for c in text.lower() if c.isalnum() or c.isspace()).split())
        for text in (answer, name)
    )
    return len(left & right) / max(1, len(left | right))


def score_answers(
    encoder: Encoder,
    dataset: str,
    searched: Searched,
    labels: Int[np.ndarray, "N"],
    names: Sequence[str],
) -> list[Result]:
    """Metrics of every method: `cluster_accuracy`; the mean `word_iou` with the name of the true
    class; and the mean cosine with it of this model's own text embeddings, where the paper has
    those of Sentence-BERT. 95 % intervals are of the bootstrap over images.

    Args:
        labels: true class of each image, its place in `names`.
    """
    results = []
    truth = [names[label] for label in labels]
    images = np.arange(len(labels))
    by_name = encoder.texts(list(names), kind="caption")[labels]
    for method, found in searched.by_method.items():
        iou = np.array([word_iou(*pair) for pair in zip(found.answers, truth, strict=True)])
        cosine = (encoder.texts(found.answers, kind="caption") * by_name).sum(axis=1)
        accuracy = cluster_accuracy(found.answers, labels)
        results.append(Result(dataset, method, None, CLUSTER, accuracy, n=len(labels)))
        for metric, values in ((IOU, iou), (SIMILARITY, cosine.astype(float))):
            varies = metric == IOU or np.ptp(values) > 0  # a cosine that is the same has none
            interval = (mean_interval(values, images) if varies else None) or (None, None)
            mean = float(values.mean())
            low, high = interval
            results.append(Result(dataset, method, None, metric, mean, low, high, len(labels)))
        distinct = len(set(found.answers))
        results.append(Result(dataset, method, None, "distinct_answers", float(distinct)))
    mean = float(np.mean(searched.num_candidates))
    counts = {"images": len(labels), "classes": len(names), "candidates_per_image": mean}
    return results + [Result(dataset, "dataset", None, *one) for one in counts.items()]


def free_table(results: Sequence[Result]) -> Table:
    """In percent; the similarity as it is."""
    found = {(r.dataset, r.method, r.metric): r for r in results}
    rows = []
    for dataset in dict.fromkeys(r.dataset for r in results):
        for method, title in METHODS.items():
            title = keyed(method, title)
            accuracy, iou, cosine, distinct = (
                found[dataset, method, metric]
                for metric in (CLUSTER, IOU, SIMILARITY, "distinct_answers")
            )
            rows.append(
                (
                    *(dataset, title, percent(accuracy.value)),
                    *(result_text(iou), result_text(cosine, unit=COSINE)),
                    *(f"{distinct.value:g}", f"{accuracy.n:,}"),
                )
            )
    return Table(
        "Without a list of classes: free answers out of captions",
        (
            *("set", "method", "cluster accuracy, %", "semantic IoU, %"),
            *("similarity (own text encoder)", "different answers", "images"),
        ),
        tuple(rows),
        "Cluster accuracy: each answer is matched with one class at most, the best way for these "
        "very images. Semantic IoU: words that the answer and the name of the class share. "
        "Similarity: cosine of both by this model's own text encoder, not by Sentence-BERT as "
        "published, so not to be compared between models. With the 95 % interval (bootstrap over "
        "images).",
    )


def example_table(
    searched: Searched, labels: Int[np.ndarray, "N"], names: Sequence[str], ids: Sequence[str]
) -> Table:
    """Answers to evenly spaced images."""
    best = searched.by_method["cased"].best
    count = min(EXAMPLES, len(best))
    rows = []
    for row in ((np.arange(count) + 0.5) * len(best) / count).astype(int).tolist():
        answers = [f"{text} {100 * probability:.0f} %" for text, probability in best[row]]
        rows.append(
            (
                ids[row],
                names[labels[row]],
                answers[0],
                ", ".join(answers[1:]),
                searched.nearest[row],
            )
        )
    return Table(
        "Examples",
        ("image", "class", "answer", "next", "nearest caption"),
        tuple(rows),
        "Probabilities are among the candidates of the image alone.",
        num_texts=5,
    )
