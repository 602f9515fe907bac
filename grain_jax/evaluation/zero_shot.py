"""Zero-shot classification of a `ZeroShotSet`: by name, by description, and with the region score
mixed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from grain_jax.data.records import ZeroShotSet
from grain_jax.evaluation.encode import Encoder, ImageFeatures, errors_about
from grain_jax.evaluation.ranking import CHUNK_ROWS, hit_chance, wilson_interval
from grain_jax.evaluation.scorers import (
    ClassTexts,
    class_texts,
    global_scores,
    mixed_scores,
    region_scores,
    text_bank,
)

EncodeTexts = Callable[..., Float[np.ndarray, "T E"]]  # called as `Encoder.texts` is
WAYS = ("name", "description", "name_and_regions")


@dataclass(frozen=True)
class Accuracy:
    """All in [0, 1]. `low` and `high` bound `top1` at 95 % (Wilson, images as
    independent trials).
    """

    top1: float
    top5: float
    per_class: float  # mean over the classes that have images of their top-1 accuracy
    low: float
    high: float


def accuracy(scores: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"]) -> Accuracy:
    """Accuracy of the best-scored class; exact ties count as a draw among the tied classes."""
    num_images, num_classes = scores.shape
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"Labels must be of 1 or more images, each in [0, {num_classes}).")
    top1, top5 = np.empty(num_images), np.empty(num_images)
    for start in range(0, num_images, CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        correct = labels[rows, None] == np.arange(num_classes)[None]
        hits = hit_chance(scores[rows], correct, (1, 5))
        top1[rows], top5[rows] = hits[1], hits[5]
    counts = np.bincount(labels, minlength=num_classes)
    per_class = np.bincount(labels, weights=top1, minlength=num_classes)[counts > 0]
    rate = float(top1.mean())
    return Accuracy(
        rate,
        float(top5.mean()),
        float((per_class / counts[counts > 0]).mean()),
        *wilson_interval(rate, num_images),
    )


def evaluate_zero_shot(
    encoder: Encoder,
    dataset: ZeroShotSet,
    *,
    alphas: Sequence[float],
    by: Sequence[str] = WAYS,
    name_ensemble: str = "embedding",
    region_score: str = "descriptions",
    features: ImageFeatures | None = None,
    details: bool = False,
) -> dict[str, float]:
    """Accuracies in [0, 1] of the set under "<set>/name" and "<set>/description/alpha<a>", and
    "<set>/chance". "name_and_regions" in `by` adds "<set>/name_and_regions/alpha<a>" for 0 < a < 1:
    the name score with the region score mixed in, as the official protocol has it.

    A model without regions, and a set without descriptions, report what they have: alpha = 1, or
    names only. With `details` each accuracy brings its /top5, /per_class, /low and /high.
    `features` saves encoding the images again.
    """
    if unknown := set(by) - set(WAYS):
        raise ValueError(f"Unknown way to classify {unknown.pop()!r}; choose among {WAYS}.")
    texts = class_texts(dataset)
    position = {name: k for k, name in enumerate(dataset.class_names)}
    labels = label_indices(dataset, position)
    if features is None:
        with errors_about(f"Zero-shot set {dataset.name!r}"):
            features = encoder.images(dataset.source)
    prefix = dataset.name
    scores = class_scores(
        encoder.texts,
        texts,
        features,
        alphas=alphas,
        by=by,
        name_ensemble=name_ensemble,
        region_score=region_score,
    )
    results = {f"{prefix}/chance": 1.0 / len(position)}
    for way, values in scores.items():
        key, measured = f"{prefix}/{way}", accuracy(values, labels)
        results[key] = measured.top1
        if details:
            for detail in ("top5", "per_class", "low", "high"):
                results[f"{key}/{detail}"] = getattr(measured, detail)
    if details:
        results[f"{prefix}/images"] = float(len(labels))
        results[f"{prefix}/classes"] = float(len(position))
        results[f"{prefix}/undescribed_classes"] = float(len(texts.undescribed))
    return results


def class_scores(
    encode_texts: EncodeTexts,
    texts: ClassTexts,
    features: ImageFeatures,
    *,
    alphas: Sequence[float],
    by: Sequence[str] = WAYS,
    name_ensemble: str,
    region_score: str,
) -> dict[str, Float[np.ndarray, "N K"]]:
    """Scores of N images for K classes under "name", "description/alpha<a>" and
    "name_and_regions/alpha<a>": what `evaluate_zero_shot` measures, as far as model and texts have
    it.
    """
    scores: dict[str, np.ndarray] = {}
    described = len(texts.undescribed) < len(texts.names)
    regions = None
    if features.regions is not None and described:
        bank = text_bank(lambda t: encode_texts(t, kind="description"), texts.regions)
        regions = region_scores(features.regions, bank, reduction=region_score)
    if {"name", "name_and_regions"} & set(by):
        bank = text_bank(lambda t: encode_texts(t, kind="caption"), texts.names)
        named = global_scores(features.image, bank, ensemble=name_ensemble)
        if "name" in by:
            scores["name"] = named
        if regions is not None and "name_and_regions" in by:
            for alpha in (alpha for alpha in alphas if 0 < alpha < 1):
                scores[f"name_and_regions/alpha{alpha:g}"] = mixed_scores(named, regions, alpha)
    if described and "description" in by:
        bank = text_bank(lambda t: encode_texts(t, kind="caption"), texts.descriptions)
        whole = global_scores(features.image, bank, ensemble="cosine")
        for alpha in alphas if regions is not None else (1.0,):
            mixed = whole if regions is None else mixed_scores(whole, regions, alpha)
            scores[f"description/alpha{alpha:g}"] = mixed
    return scores


@runtime_checkable
class Labelled(Protocol):
    """A source that knows the label of every record without decoding or drawing its picture."""

    labels: Sequence[str]


def label_indices(dataset: ZeroShotSet, position: dict[str, int]) -> Int[np.ndarray, "N"]:
    """Class index of every image, bound by name. Raises ValueError naming a label that
    is no class.
    """
    source = dataset.source
    if isinstance(source, Labelled):
        labels: Sequence[str | None] = source.labels
    else:
        labels = [source[i].label for i in range(len(source))]
    if len(labels) != len(source):
        raise ValueError(
            f"Zero-shot set {dataset.name!r} has {len(source)} images but {len(labels)} labels."
        )
    for i, label in enumerate(labels):
        if label not in position:
            raise ValueError(
                f"Image {i} of zero-shot set {dataset.name!r} has label {label!r}, which is none "
                f"of its {len(position)} classes."
            )
    return np.array([position[str(label)] for label in labels], int)
