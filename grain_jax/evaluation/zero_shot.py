"""Zero-shot classification of a `ZeroShotSet`: by name, by description, and with the region score
mixed in.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.data.classification.class_counts import (
    FREQUENCIES,
    frequency_groups,
    group_indices,
)
from grain_jax.data.image_variants import VARIANTS, VariantKind, of_draw
from grain_jax.data.records import Labelled, LabelledSelection, ZeroShotSet
from grain_jax.evaluation.costs import Cost, EncodedTexts, method_costs
from grain_jax.evaluation.deciding_texts import DecidingTexts
from grain_jax.evaluation.ranking import CHUNK_ROWS, expected_recall_of_labels, wilson_interval
from grain_jax.evaluation.statistics import class_mean_interval
from grain_jax.evaluation.variants import BLOCK_IMAGES, VariantEmbeddings, possible_variants
from grain_jax.evaluation.variants import passes as variant_passes
from grain_jax.inference.encoder import Encoder, ImageFeatures, errors_about
from grain_jax.results import DRAW, SPREAD_OF_DRAWS, Result
from grain_jax.zero_shot.arithmetic import mean_vectors
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Images, Support
from grain_jax.zero_shot.methods import (
    DEFAULT_METHODS,
    METHODS,
    FittedMethods,
    check_methods,
    drawn_methods,
    encode_banks,
)
from grain_jax.zero_shot.scorers import ClassTexts, class_texts
from grain_jax.zero_shot.text_kinds import NAMES
from grain_jax.zero_shot.ties import note_ties

OnScores = Callable[[str, float | None, int, Float[np.ndarray, "n K"], Int[np.ndarray, "n"]], None]
OnDraws = Callable[[str, float | None, Float[np.ndarray, "D N"]], None]
Key = tuple[str, float | None]  # method and alpha
Names = Float[np.ndarray, "K E"] | None
MAX_SCORES = 1 << 22  # of one method, held at once
LOKI = "loki"  # the method that is made for a small distance of its mistakes


@dataclass(frozen=True)
class Accuracy:
    """All in [0, 1], with 95 % intervals: Wilson's, images as independent trials, and
    `class_mean_interval`.
    """

    top1: float
    top5: float
    per_class: float  # mean over the classes that have images of their top-1 accuracy
    top1_interval: tuple[float, float]
    top5_interval: tuple[float, float]
    per_class_interval: tuple[float, float]


def accuracy(scores: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"]) -> Accuracy:
    """Accuracy of the best-scored class; exact ties count as a draw among the tied classes."""
    hits = _Hits(labels, scores.shape[1])
    for start in range(0, len(scores), CHUNK_ROWS):
        hits.add(start, scores[start : start + CHUNK_ROWS])
    return hits.accuracy()


class _Hits:
    """Expected hits, gathered block by block of images, so that no N x K scores are kept."""

    def __init__(self, labels: Int[np.ndarray, "N"], num_classes: int):
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"Labels must be of 1 or more images, each in [0, {num_classes}).")
        self._labels, self._num_classes = labels, num_classes
        self._top1, self._top5 = np.zeros(len(labels)), np.zeros(len(labels))

    def add(self, start: int, scores: Float[np.ndarray, "n K"]) -> None:
        """Scores of the images from `start` on."""
        rows = slice(start, start + len(scores))
        hits = expected_recall_of_labels(scores, self._labels[rows], (1, 5))
        self._top1[rows], self._top5[rows] = hits[1], hits[5]

    @property
    def top1(self) -> Float[np.ndarray, "N"]:
        """Of each image, the probability that its best-scored class is the true one."""
        return self._top1

    def mean_with(self, others: Sequence["_Hits"]) -> "_Hits":
        """Of each image, the mean probabilities over these and `others`."""
        mean = _Hits(self._labels, self._num_classes)
        every = (self, *others)
        mean._top1 = np.mean([one._top1 for one in every], axis=0)
        mean._top5 = np.mean([one._top5 for one in every], axis=0)
        return mean

    def of_group(self, groups: Int[np.ndarray, "K"], group: int) -> tuple[float, int]:
        """Top-1 accuracy of the images of a group of classes, and their number."""
        chosen = groups[self._labels] == group
        count = int(chosen.sum())
        return float(self._top1[chosen].mean()) if count else 0.0, count

    def accuracy(self) -> Accuracy:
        counts = np.bincount(self._labels, minlength=self._num_classes)
        right = np.bincount(self._labels, weights=self._top1, minlength=self._num_classes)
        seen = counts > 0
        rates, count = right[seen] / counts[seen], len(self._labels)
        top1, top5 = float(self._top1.mean()), float(self._top5.mean())
        return Accuracy(
            top1=top1,
            top5=top5,
            per_class=float(rates.mean()),
            top1_interval=wilson_interval(top1, count),
            top5_interval=wilson_interval(top5, count),
            per_class_interval=class_mean_interval(rates, counts[seen]),
        )


def evaluate_zero_shot(
    encoder: Encoder,
    dataset: ZeroShotSet,
    *,
    alphas: Sequence[float],
    methods: Sequence[str] = DEFAULT_METHODS,
    prompt_ensembling: str = "embedding",
    region_aggregation: str = "max_over_queries",
    text_draws: int = 1,
    features: ImageFeatures | None = None,
    details: bool = False,
    on_scores: OnScores | None = None,
    on_draws: OnDraws | None = None,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    kinds: Mapping[str, VariantKind] = VARIANTS,
    on_texts: Callable[[DecidingTexts], None] | None = None,
    on_costs: Callable[[Mapping[str, Cost]], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Result]:
    """Top-1 accuracies in [0, 1] of the `methods` at their alphas, and the random baseline.

    A model without regions, and a set without descriptions, report what they have: alpha = 1, or
    names only. Methods that need images without labels get those of the set, and those that look at
    variants of an image get them encoded, which takes the `passes` among the results.

    Args:
        text_draws: how often texts and crops that are random are drawn (`drawn_methods`). With
            several, the metrics of such a method are means over the draws, and there are
            `top1_draw0`, ... of each and their standard deviation, `top1_draws_sd`.
        features: those of the images, where they are encoded already.
        details: with 95 % intervals, top-5 and per-class accuracy, counts of the set, where it
            has counts of its classes accuracies of unseen, rare and frequent ones, and where Loki
            is measured the `expected_distance` of every method.
        on_scores: called with the method, alpha, the index of the first image of a block, the
            block's scores [n, K] and its true classes [n]; of several draws with the first.
        on_draws: called before that, where there are several, with the method, alpha, and of each
            draw and image the probability that its best-scored class is the true one. The first
            draw is scored once more for it.
        on_texts: called once before them, with what descriptions can be looked up in.
        on_costs: called once, with the cost of each method that is measured.
        bank: captions for methods that need them.
        support: labelled images, in the order of the set's classes, likewise.
        kinds: the variants of images, by their names in `VARIANTS`.
        note: called with sentences on classes whose scores tie.
    """
    check_methods(methods)
    texts = class_texts(dataset)
    labels = label_indices(dataset, {name: k for k, name in enumerate(dataset.class_names)})
    if features is None:
        with errors_about(f"Zero-shot set {dataset.name!r}"):
            features = encoder.images(dataset.source)
    has_regions = features.regions is not None
    unlabeled, encoded = Images(features.image, features.regions), EncodedTexts()

    def fitted_to(texts: ClassTexts, methods: Sequence[str]) -> tuple[FittedMethods, ClassBanks]:
        banks = encode_banks(
            encoder.texts,
            texts,
            methods=methods,
            has_regions=has_regions,
            prompt_ensembling=prompt_ensembling,
            region_aggregation=region_aggregation,
            logit_scale=encoder.logit_scale,
        )
        if on_costs is not None:
            encoded.add(banks)
        fitted = FittedMethods(
            banks,
            methods=methods,
            alphas=alphas,
            has_regions=has_regions,
            bank=bank,
            support=support,
            unlabeled=unlabeled,
            variants=possible_variants(has_boxes=features.boxes is not None),
        )
        return fitted, banks

    def measured(
        fitted: FittedMethods, names: Names, on_scores: OnScores | None = None, *, draw: int = 0
    ) -> dict[Key, _Measured]:
        drawn_kinds = of_draw(kinds, draw)
        needed = {name: drawn_kinds[name] for name in fitted.variants_needed}
        variants = VariantEmbeddings(encoder, dataset.source, features.boxes, needed)

        def rows(start: int, stop: int) -> dict[str, Float[np.ndarray, "n V E"]]:
            with errors_about(f"Zero-shot set {dataset.name!r}"):
                return variants.rows(start, stop)

        return _measure(fitted, features, rows, labels, names, on_scores)

    fitted, banks = fitted_to(texts, methods)
    if note is not None:
        note_ties(dataset.name, dataset.class_names, banks, note)
    if on_texts is not None:
        on_texts(DecidingTexts(banks, features))
    num_boxes = 0 if features.boxes is None else features.boxes.shape[1]
    names = mean_vectors(banks[NAMES]) if details and LOKI in fitted.scores else None
    draws: dict[Key, list[_Measured]] = {}
    drawn = drawn_methods(fitted.scores)
    for draw in range(1, text_draws) if drawn else ():
        again, _ = fitted_to(dataclasses.replace(texts, draw=draw), drawn)
        for key, one in measured(again, names, draw=draw).items():
            draws.setdefault(key, []).append(one)
    if on_draws is not None and draws:
        first = measured(fitted_to(texts, drawn)[0], None)
        for key, others in draws.items():
            by_draw = [first[key].hits, *(other.hits for other in others)]
            on_draws(*key, np.stack([one.top1 for one in by_draw]))
    if on_costs is not None:
        costs = method_costs(
            fitted.scores,
            encoded,
            num_boxes=num_boxes,
            kinds=kinds,
            draws=text_draws,
            bank=bank,
            support=support,
        )
        on_costs(costs)
    found = measured(fitted, names, on_scores)
    num_classes = len(dataset.class_names)
    name, count = dataset.name, len(labels)
    results = [Result(name, "random", None, "top1", 1.0 / num_classes)]
    for key, own in found.items():
        every = [own, *draws.get(key, ())]
        averaged = own.hits.mean_with([other.hits for other in every[1:]])
        rates = averaged.accuracy()
        low, high = rates.top1_interval if details else (None, None)
        results.append(Result(name, *key, "top1", rates.top1, low, high, count))
        if details:
            top5, per_class = rates.top5_interval, rates.per_class_interval
            results.append(Result(name, *key, "top5", rates.top5, *top5, count))
            results.append(Result(name, *key, "per_class", rates.per_class, *per_class, count))
            if looked_at := METHODS[key[0]].variants:
                passes = variant_passes(looked_at, num_boxes, kinds=kinds, draws=text_draws)
                results.append(Result(name, *key, "passes", float(passes), n=count))
            results += _by_frequency(averaged, dataset, key)
        if own.distances:
            mean = float(np.mean([one.distances for one in every]))
            results.append(Result(name, *key, "expected_distance", mean, n=count))
        if len(every) > 1:
            values = [float(one.hits.top1.mean()) for one in every]
            results.append(Result(name, *key, SPREAD_OF_DRAWS, float(np.std(values, ddof=1))))
            for draw, value in enumerate(values):
                results.append(Result(name, *key, f"{DRAW}{draw}", value, n=count))
    if details:
        counts = {
            "images": count,
            "classes": num_classes,
            "undescribed_classes": len(texts.undescribed),
        }
        for what, number in counts.items():
            results.append(Result(name, "dataset", None, what, float(number)))
    return results


@dataclass
class _Measured:
    """What a method's scores say of every image."""

    hits: _Hits
    distances: list[float]  # empty where they are not asked for


def _measure(
    fitted: FittedMethods,
    features: ImageFeatures,
    variants: Callable[[int, int], dict[str, Float[np.ndarray, "n V E"]]],
    labels: Int[np.ndarray, "N"],
    names: Names,
    on_scores: OnScores | None,
) -> dict[Key, _Measured]:
    """Scores the images block by block; `variants` embeds those of a range of images, `names` are
    embeddings to measure distances by.
    """
    found: dict[Key, _Measured] = {}
    rows = max(1, min(CHUNK_ROWS, MAX_SCORES // fitted.num_classes))
    rows = min(rows, BLOCK_IMAGES) if fitted.variants_needed else rows
    for start in range(0, len(labels), rows):
        block, truth = features.rows(start, start + rows), labels[start : start + rows]
        again = variants(start, start + rows)
        for key, values in fitted(Images(block.image, block.regions, again)).items():
            if key not in found:
                found[key] = _Measured(_Hits(labels, fitted.num_classes), [])
            found[key].hits.add(start, values)
            if names is not None:
                found[key].distances.extend(answer_distances(values, truth, names).tolist())
            if on_scores is not None:
                on_scores(*key, start, values, truth)
    return found


def answer_distances(
    scores: Float[np.ndarray, "n K"],
    labels: Int[np.ndarray, "n"],
    names: Float[np.ndarray, "K E"],
) -> Float[np.ndarray, "n"]:
    """Squared Euclidean distance, in [0, 4], of the best-scored class from the true one, between
    the embeddings of their names, of unit length; the mean over classes that tie.
    """
    best = scores == scores.max(axis=1, keepdims=True)
    answers = (best / best.sum(axis=1, keepdims=True)) @ names.astype(np.float64)
    return np.maximum(2 - 2 * np.einsum("ne,ne->n", answers, names[labels]), 0.0)


def _by_frequency(hits: _Hits, dataset: ZeroShotSet, method: Key) -> Iterator[Result]:
    """Accuracies of unseen, rare and frequent classes, where they have images and are counted."""
    if not dataset.counts:
        return
    groups = group_indices(frequency_groups(dataset.counts), dataset.class_names)
    for group, frequency in enumerate(FREQUENCIES):
        rate, count = hits.of_group(groups, group)
        if count:
            interval = wilson_interval(rate, count)
            yield Result(dataset.name, *method, f"top1_{frequency}", rate, *interval, count)


def subset(dataset: ZeroShotSet, limit: int) -> ZeroShotSet:
    """The set with at most `limit` of its images, and all of its classes.

    The same images each time: evenly spaced over the images in the order of their classes, so that
    every class keeps its share (to one image), and classes beyond `limit` take turns.
    """
    if len(dataset.source) <= limit:
        return dataset
    position = {name: k for k, name in enumerate(dataset.class_names)}
    labels = label_indices(dataset, position)
    by_class = np.argsort(labels, kind="stable")
    middles = (np.arange(limit) + 0.5) * len(labels) / limit  # of as many equal stretches
    chosen = np.sort(by_class[middles.astype(int)]).tolist()
    names = tuple(dataset.class_names[labels[i]] for i in chosen)
    return dataclasses.replace(dataset, source=LabelledSelection(dataset.source, chosen, names))


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
