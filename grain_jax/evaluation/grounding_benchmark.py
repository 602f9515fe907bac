"""Phrase grounding by published protocols: the figures of a model on a set of queries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from grain_jax.boxes import IOU_HIT, pairwise_iou
from grain_jax.data.grounding.queries import GroundingSet
from grain_jax.evaluation.box_features import (
    BoxAnswers,
    BoxFeatures,
    boxes_of_images,
    cropped,
    given_regions,
    predicted_regions,
)
from grain_jax.evaluation.caption_choice import caption_choice, caption_scores
from grain_jax.evaluation.content_digests import unordered_sha256
from grain_jax.evaluation.grounding import box_scores
from grain_jax.evaluation.grounding_protocol import (
    BoxesOf,
    Feature,
    Protocol,
    Truth,
    make_protocol,
)
from grain_jax.evaluation.grounding_ranking import (
    WHOLE_IMAGE,
    Hits,
    Ranking,
    constant_hits,
    cross_fitted_hits,
    hits,
    random_hits,
    rank_boxes,
    true_boxes,
    upper_bound,
)
from grain_jax.evaluation.mean_results import mean_result
from grain_jax.evaluation.predictions import PredictionsFile
from grain_jax.evaluation.query_usage import Usage, mean_cosine, mean_overlap, query_usage
from grain_jax.inference.encoder import Encoder, ImageFeatures, errors_about
from grain_jax.results import Result

CONSTANT, WHOLE, RANDOM, MODEL = "fitted_box", "whole_image", "random", "decoder"


def describe_grounding(data: GroundingSet) -> dict[str, Any]:
    """What was asked: numbers of images, texts and boxes, and the SHA-256 of the queries."""
    queries = [
        (data.images.ids[query.image], query.text, query.boxes_xyxy.tolist(), query.negatives)
        for query in data.queries
    ]
    return {
        "images": len(data.images),
        "queries": len(data.queries),
        "boxes": sum(map(len, data.boxes)),
        "left_out": data.left_out,
        "queries_sha256": unordered_sha256(queries),
    }


@dataclass
class Measured:
    """The figures, and what does not fit into them."""

    results: list[Result] = field(default_factory=list)
    protocols: dict[Feature, Protocol] = field(default_factory=dict)
    usage: dict[Feature, Usage] = field(default_factory=dict)  # of decoder queries as answers


def measure_grounding(
    encoder: Encoder,
    data: GroundingSet,
    *,
    boxes: BoxesOf,
    truth: Truth,
    features: Sequence[Feature],
    prompt: str = "{}",
    predictions: PredictionsFile | None = None,
    on_crops: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Accuracy, baselines, and what the decoder's queries do, on every query of `data`.

    Every process of a multi-host run must call it.

    Args:
        boxes: what a text chooses from.
        truth: which boxes are right.
        features: what a box is compared with a text by, one or several on the same boxes.
        prompt: what each text is put into, at its "{}".
        predictions: where a line for every query and feature goes, if anywhere.
        on_crops: called with how many of how many crops are encoded.

    Raises ValueError where the model lacks the boxes or regions that are asked for, an image cannot
    be decoded, or an embedding is not finite.
    """
    with errors_about(f"Grounding on {data.name!r}"):
        seen = encoder.images(data.images)
        _check(seen, boxes, features)
        found = None
        if seen.boxes is not None:
            found = boxes_of_images(seen.boxes, data.shapes, encoder.preprocessing)
        images = np.array([query.image for query in data.queries], int)
        truths = [true_boxes(query.boxes_xyxy, truth) for query in data.queries]
        candidates = data.boxes if boxes == "given" else tuple(_known(found))
        ranking = rank_boxes(candidates, images, truths)
        texts = [prompt.replace("{}", query.text) for query in data.queries]
        embed = encoder.texts(texts, kind="description")
        measured = Measured()
        for feature in features:
            protocol = make_protocol(
                boxes=boxes,
                truth=truth,
                feature=feature,
                preprocessing=encoder.preprocessing,
                prompt=prompt,
                queries=data.queries_are,
                given_boxes=data.boxes_are,
            )
            given = _box_features(encoder, data, seen, found, protocol, on_crops)
            scores = _scores(given, images, embed, ranking)
            right = hits(ranking, scores)
            answers = _answers(given, images, scores)
            measured.protocols[feature] = protocol
            measured.results += _accuracies(data.name, feature, right, images)
            measured.results += _captions(encoder, data, given, protocol)
            if answers.queries is not None and found is not None:
                measured.usage[feature] = query_usage(answers.queries, found.shape[1])
            if predictions is not None:
                predictions.grounding_answers(
                    data.name,
                    [data.images.ids[image] for image in images],
                    [query.text for query in data.queries],
                    protocol=protocol,
                    answers=answers,
                    truths=truths,
                    iou=ranking.iou[np.arange(len(images)), answers.rows],
                    correct=right.recall[1],
                )
    for feature, usage in measured.usage.items():
        measured.results += [
            Result(data.name, feature, None, "queries_used", usage.used, n=len(images)),
            Result(data.name, feature, None, "query_entropy", usage.entropy, n=len(images)),
        ]
    bound = mean_result(data.name, MODEL, "upper_bound", upper_bound(ranking), images)
    measured.results += [
        bound,
        *_baselines(data, ranking, truths, images, boxes),
        *_decoder(data, seen, found),
    ]
    return measured


def _known(found: Float[np.ndarray, "N Q 4"] | None) -> Float[np.ndarray, "N Q 4"]:
    assert found is not None  # `_check` has refused models without
    return found


def _check(seen: ImageFeatures, boxes: BoxesOf, features: Sequence[Feature]) -> None:
    """Raises ValueError where the model lacks what is asked for."""
    if boxes == "predicted" and seen.boxes is None:
        raise ValueError(
            "this model predicts no boxes, or they were never trained; measure it with "
            "--boxes=given --feature=crop."
        )
    if "region" in features and (seen.boxes is None or seen.regions is None):
        raise ValueError(
            "this model has no trained regions; measure it with --boxes=given --feature=crop."
        )


def _box_features(
    encoder: Encoder,
    data: GroundingSet,
    seen: ImageFeatures,
    found: Float[np.ndarray, "N Q 4"] | None,
    protocol: Protocol,
    on_crops: Callable[[int, int], None],
) -> BoxFeatures:
    given = protocol.boxes == "given"
    if protocol.feature == "crop":
        boxes = data.boxes if given else tuple(_known(found))
        queries = None if given else tuple(np.arange(len(own)) for own in boxes)
        return cropped(encoder, data.images, boxes, queries=queries, on_block=on_crops)
    assert seen.regions is not None
    if given:
        return given_regions(data.boxes, _known(found), seen.regions)
    return predicted_regions(_known(found), seen.regions)


def _scores(
    given: BoxFeatures,
    images: Int[np.ndarray, "T"],
    embed: Float[np.ndarray, "T E"],
    ranking: Ranking,
) -> Float[np.ndarray, "T C"]:
    """Cosines of each text with the boxes of its image; below all cosines beyond them."""
    scores = np.full(ranking.real.shape, -2.0, np.float32)
    for row, image in enumerate(images.tolist()):
        own = given.embed[image] @ embed[row]
        scores[row, : len(own)] = own
    return scores


def _answers(
    given: BoxFeatures, images: Int[np.ndarray, "T"], scores: Float[np.ndarray, "T C"]
) -> BoxAnswers:
    rows = scores.argmax(axis=1)
    every = list(zip(images.tolist(), rows.tolist(), strict=True))
    queries = None
    if given.queries is not None:
        queries = np.array([given.queries[image][row] for image, row in every], int)
    boxes = np.stack([given.boxes[image][row] for image, row in every])
    return BoxAnswers(rows, boxes, scores.max(axis=1), queries)


def _accuracies(
    dataset: str, method: str, found: Hits, images: Int[np.ndarray, "T"]
) -> list[Result]:
    named = {f"R@{k}": values for k, values in found.recall.items()} | {"pointing": found.pointing}
    return [
        mean_result(dataset, method, metric, values, images) for metric, values in named.items()
    ]


def _captions(
    encoder: Encoder, data: GroundingSet, given: BoxFeatures, protocol: Protocol
) -> list[Result]:
    """Of queries with wrong captions, how each object's box ranks its true one."""
    asked = [query for query in data.queries if query.negatives]
    if not asked:
        return []
    groups = [(query.text, *query.negatives) for query in asked]
    texts = [protocol.prompt.replace("{}", text) for group in groups for text in group]
    embed = encoder.texts(texts, kind="description")
    captions = np.split(embed, np.cumsum([len(group) for group in groups])[:-1])
    scores, counts, images = [], [], []
    for query, own in zip(asked, captions, strict=True):
        for box in query.boxes_xyxy:
            overlap = pairwise_iou(given.boxes[query.image], box[None])[:, 0]
            # A given box is the object's own; of predicted ones all that are on it count.
            least = float(overlap.max()) if protocol.boxes == "given" else IOU_HIT
            scores.append(caption_scores(given.embed[query.image], overlap >= least, own))
            counts.append(len(own))
            images.append(query.image)
    found, owners = caption_choice(scores, counts), np.array(images, int)
    method, random = protocol.feature, float((1 / np.array(counts)).mean())
    return [
        mean_result(data.name, method, "caption_top1", found.top1, owners),
        Result(data.name, method, None, "caption_rank", float(found.rank.mean()), n=len(counts)),
        Result(data.name, method, None, "caption_random_top1", random, n=len(counts)),
    ]


def _baselines(
    data: GroundingSet,
    ranking: Ranking,
    truths: Sequence[np.ndarray],
    images: Int[np.ndarray, "T"],
    boxes: BoxesOf,
) -> list[Result]:
    """A random box, the whole image, and the best constant box, none of which read the text."""
    chosen_from = (data.boxes, images) if boxes == "given" else None
    own = None if chosen_from is None else data.boxes
    found = {
        RANDOM: random_hits(ranking),
        WHOLE: constant_hits(WHOLE_IMAGE, truths, chosen_from=chosen_from),
        CONSTANT: cross_fitted_hits(truths, images, candidates=own),
    }
    results = []
    for method, one in found.items():
        if one is None:
            continue
        if method != RANDOM and own is None:  # a single box: there is no second best
            one = Hits({1: one.recall[1]}, one.pointing)
        results += _accuracies(data.name, method, one, images)
    return results


def _decoder(
    data: GroundingSet, seen: ImageFeatures, found: Float[np.ndarray, "N Q 4"] | None
) -> list[Result]:
    """Of the predicted boxes and regions themselves, whichever of them are chosen."""
    results: list[Result] = []
    measured: dict[str, tuple[float, int]] = {}
    if found is not None:
        boxes = box_scores(found, data.boxes)
        results = boxes.results(data.name, MODEL)
        measured = {"box_recall_upper_bound": (boxes.upper_bound, boxes.count)}
        if found.shape[1] > 1:
            measured["box_overlap"] = float(mean_overlap(found).mean()), len(found)
    if seen.regions is not None and seen.regions.shape[1] > 1:
        measured["region_cosine"] = float(mean_cosine(seen.regions).mean()), len(seen.regions)
    return results + [
        Result(data.name, MODEL, None, metric, value, n=count)
        for metric, (value, count) in measured.items()
    ]
