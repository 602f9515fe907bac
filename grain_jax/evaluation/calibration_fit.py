"""A calibration of a model on a set of images: fitted to a part of them, measured on the rest."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from grain_jax.data.records import ZeroShotSet
from grain_jax.evaluation.calibration import (
    blocks,
    check_logits,
    false_accept_threshold,
    false_reject_threshold,
    fit_label_sets,
    fit_temperature,
    match_prior,
    mean_probabilities,
    prior_departure,
    says_nothing,
    seen_histogram,
    seen_rate,
    seen_threshold,
    split_by_name,
    summed_sets,
)
from grain_jax.evaluation.calibration_metrics import (
    false_accepts_at,
    joined,
    measure,
    predictions,
    separation,
)
from grain_jax.evaluation.missed_targets import missed_targets
from grain_jax.evaluation.ranking import wilson_interval
from grain_jax.evaluation.reliability import reliability_bins
from grain_jax.evaluation.zero_shot import label_indices
from grain_jax.inference.calibrated import in_distribution_scores, scored_method
from grain_jax.inference.encoder import ImageFeatures
from grain_jax.inference.fingerprints import params_sha256
from grain_jax.models.bundle import ModelBundle
from grain_jax.zero_shot.arithmetic import softmax
from grain_jax.zero_shot.calibration import (
    Calibration,
    NoneOfThese,
    SetRule,
    gl_mcm_score,
    sets_of_labels,
    texts_sha256,
)
from grain_jax.zero_shot.method import ClassBanks, Images
from grain_jax.zero_shot.methods import METHODS, encode_banks
from grain_jax.zero_shot.scorers import class_texts
from grain_jax.zero_shot.text_kinds import REGIONS, EncodeTexts

FEW = 100  # images that a part should have
CHUNK_ROWS = 1024  # images scored together


@dataclass(frozen=True)
class FitSettings:
    """What is fitted, and at which rates."""

    method: str  # of `METHODS`, or as `Model.classify` has it
    alpha: float
    fit_fraction: float = 0.5
    coverage: float = 0.9
    set_rule: SetRule = "lac"
    false_reject: float = 0.05
    false_accept: float | None = None  # chosen by it instead, where there are outliers
    region_weight: float = 1.0
    none_temperature: float = 1.0


@dataclass(frozen=True)
class Fitted:
    """A calibration, the report for its file, and reliability before and after where known."""

    calibration: Calibration
    report: dict[str, Any]
    reliability: Sequence[tuple[str, list[tuple[float, float, int]]]] = ()


@dataclass(frozen=True)
class Scores:
    """What a method says of N images."""

    fitted: Float[np.ndarray, "F K"]  # logits of those to fit to, of the model's own temperature
    held_out: Float[np.ndarray, "H K"]  # of the others
    image: Float[np.ndarray, "N"]  # the two terms of `mcm_scores`
    region: Float[np.ndarray, "N"] | None

    def joined(self, region_weight: float) -> Float[np.ndarray, "N"]:
        """The in-distribution scores."""
        return gl_mcm_score(self.image, self.region, region_weight)


@dataclass
class Texts:
    """The classes of a set as a method meets them."""

    dataset: ZeroShotSet
    method: str  # of `METHODS`
    alpha: float | None
    banks: ClassBanks
    sha256: str


def encode_classes(
    loaded: ModelBundle, dataset: ZeroShotSet, settings: FitSettings, encode_texts: EncodeTexts
) -> Texts:
    """Encodes what the method compares images with.

    Raises ValueError for a method that the model or the set lacks something for.
    """
    described = any(dataset.descriptions.values()) or any(dataset.global_texts.values())
    if settings.method == "name" or not described:
        dataset = dataclasses.replace(dataset, descriptions={}, global_texts={})
    if settings.method != "name" and not described:
        raise ValueError(
            f"method {settings.method!r} needs descriptions of the classes; give some."
        )
    if settings.method == "name_and_regions" and not loaded.has_regions:
        raise ValueError("method 'name_and_regions' needs a GRAIN model with trained regions.")
    method, alpha = scored_method(settings.method, settings.alpha, described=described)
    texts = class_texts(dataset)
    evaluation = loaded.config.evaluation
    banks = encode_banks(
        encode_texts,
        texts,
        methods=(method,),
        has_regions=loaded.has_regions,
        prompt_ensembling=evaluation.prompt_ensembling,
        region_aggregation=evaluation.region_aggregation,
    )
    found = texts_sha256(dataset.class_names, texts, banks.banks)
    return Texts(dataset, method, alpha, banks, found)


def score(
    loaded: ModelBundle,
    texts: Texts,
    features: ImageFeatures,
    fitting: Bool[np.ndarray, "N"],
    *,
    temperature: float,
) -> Scores:
    """Logits and in-distribution scores of all images; no other logits are kept."""
    image, region = [], []
    method = METHODS[texts.method].fit(texts.banks)
    num_classes = len(texts.dataset.class_names)
    fitted = np.empty((int(fitting.sum()), num_classes))
    held_out = np.empty((len(fitting) - len(fitted), num_classes))
    place = np.where(fitting, fitting.cumsum(), (~fitting).cumsum()) - 1
    for start in range(0, len(features.image), CHUNK_ROWS):
        block = features.rows(start, start + CHUNK_ROWS)
        images = Images(block.image, block.regions)
        scores = method(images, texts.alpha)
        logits = loaded.logit_scale * scores.astype(np.float64)
        chosen, rows = fitting[start : start + CHUNK_ROWS], place[start : start + CHUNK_ROWS]
        fitted[rows[chosen]] = logits[chosen]
        held_out[rows[~chosen]] = logits[~chosen]
        whole, best = in_distribution_scores(
            images, texts.banks, method=texts.method, temperature=temperature
        )
        image.append(whole)
        region.append(best)
    parts = [part for part in region if part is not None]
    return Scores(fitted, held_out, np.concatenate(image), np.concatenate(parts) if parts else None)


def fit(
    loaded: ModelBundle,
    texts: Texts,
    features: ImageFeatures,
    settings: FitSettings,
    *,
    names: Sequence[str],
    labelled: bool,
    outliers: ImageFeatures | None = None,
    outlier_names: Sequence[str] = (),
    note: Callable[[str], None] = print,
) -> Fitted:
    """Fits to a part of the images and measures on the rest.

    Args:
        features: of the images of the set, whose files are `names`.
        labelled: whether the set's labels are known; if not, prior matching.
        outliers: images of none of the classes, whose files are `outlier_names`.

    Raises ValueError where a part has no images, or is too small for a rate.
    """
    notes: list[str] = []

    def tell(text: str) -> None:
        notes.append(text)
        note(text)

    fitting = split_by_name(names, settings.fit_fraction)
    _check_parts(fitting, "images", tell)
    found = score(loaded, texts, features, fitting, temperature=settings.none_temperature)
    check_logits(found.fitted)
    check_logits(found.held_out)
    fitted = Calibration(
        method=texts.method,
        alpha=texts.alpha,
        scoring=texts.banks.scoring,
        weights_sha256=params_sha256(loaded.params),
        step=loaded.step,
        classes=tuple(texts.dataset.class_names),
        texts_sha256=texts.sha256,
        temperature=1.0,
    )
    report: dict[str, Any] = {
        "labelled": labelled,
        "images": {"fitted": int(fitting.sum()), "held_out": int((~fitting).sum())},
        "logit_scale": loaded.logit_scale,
        "settings": dataclasses.asdict(settings),
    }
    fitted, report["none_of_these"] = _fit_none(
        fitted, loaded, texts, settings, found, fitting, outliers, outlier_names, tell
    )
    pages: list[tuple[str, list[tuple[float, float, int]]]] = []
    if labelled:
        position = {name: k for k, name in enumerate(texts.dataset.class_names)}
        labels = label_indices(texts.dataset, position)
        fitted, pages = _fit_labelled(fitted, settings, found, labels, fitting, report, tell)
        if features.regions is not None and texts.banks.get(REGIONS) is not None:
            fitted = _fit_seen(fitted, features, texts, labels, fitting, report)
    else:
        shift = match_prior(found.fitted)
        fitted = dataclasses.replace(
            fitted,
            class_shift=dict(zip(texts.dataset.class_names, shift.tolist(), strict=True)),
        )
        for when, added in (("before", 0 * shift), ("after", shift)):
            means = mean_probabilities(found.held_out, added)
            report[when] = {"prior_departure": prior_departure(means)}
        tell(
            "without labels there is no temperature and no set of labels: each class is shifted so "
            "that it is as probable as any other over these images, which takes images of all "
            "classes in about equal numbers."
        )
    for text in missed_targets(report):
        tell(text)
    return Fitted(fitted, report | {"notes": notes}, pages)


def check_counts(
    settings: FitSettings, names: Sequence[str], outlier_names: Sequence[str] | None
) -> None:
    """Raises ValueError, with the option to change, for fewer images than the settings take.

    `names` are those of the images, `outlier_names` of images of none of the classes, None without.
    """
    parts = {"--data": names} | ({} if outlier_names is None else {"--outliers": outlier_names})
    fitted = {
        option: int(split_by_name(of, settings.fit_fraction).sum()) for option, of in parts.items()
    }
    for option, of in parts.items():
        if not 0 < fitted[option] < len(of):
            raise ValueError(
                f"Of the {len(of)} images of {option} {fitted[option]} are to fit to and "
                f"{len(of) - fitted[option]} to measure on, and both take some; give more images, "
                "or another --fit_fraction."
            )
    if settings.false_accept is None or outlier_names is None:
        option, rate, limit = "--data", settings.false_reject, "--false_reject"
    else:
        option, rate, limit = "--outliers", settings.false_accept, "--false_accept"
    if math.floor((fitted[option] + 1) * rate + 1e-9) < 1:
        raise ValueError(
            f"{limit}={rate:g} takes at least {math.ceil(1 / rate) - 1} images of {option} to fit "
            f"to, and of its {len(parts[option])} there are {fitted[option]}; give more, a higher "
            f"{limit}, or another --fit_fraction."
        )


def _check_parts(fitting: Bool[np.ndarray, "N"], what: str, tell: Callable[[str], None]) -> None:
    fitted, held = int(fitting.sum()), int((~fitting).sum())
    if not fitted or not held:
        raise ValueError(
            f"Of {len(fitting)} {what} {fitted} are to fit to and {held} to measure on, and both "
            "take some; give more images, or another --fit_fraction."
        )
    if min(fitted, held) < FEW:
        tell(
            f"{fitted} {what} to fit to and {held} to measure on are few: under {FEW}, figures are "
            "loose, as their intervals say."
        )


def _fit_labelled(
    fitted: Calibration,
    settings: FitSettings,
    found: Scores,
    labels: Int[np.ndarray, "N"],
    fitting: Bool[np.ndarray, "N"],
    report: dict[str, Any],
    tell: Callable[[str], None],
) -> tuple[Calibration, list[tuple[str, list[tuple[float, float, int]]]]]:
    """Temperature and sets; the report has metrics of the held-out part before and after."""
    temperature = fit_temperature(found.fitted, labels[fitting])
    if temperature is None:
        tell(
            f"all {int(fitting.sum())} images that are fitted to are right, so no temperature can "
            "be fitted to them, and it stays 1; give more images, or harder ones."
        )
        temperature = 1.0
    elif says_nothing(temperature):
        raise ValueError(
            "The scores say nothing about the labels: at no temperature is a right label more "
            "probable than another, so no calibration is written. Check that the classes are "
            "named as their images show them; else give descriptions or a method that the model "
            "was trained for, or a trained checkpoint."
        )
    sets = fit_label_sets(
        found.fitted,
        labels[fitting],
        temperature=temperature,
        coverage=settings.coverage,
        rule=settings.set_rule,
    )
    if sets.quantile is None:
        tell(
            f"{int(fitting.sum())} images are too few for sets of {settings.coverage:.1%} "
            "coverage, so each holds every label."
        )
    truth = labels[~fitting]
    pages = []
    for when, divisor, choose in (
        ("before", 1.0, lambda own: summed_sets(own, settings.coverage)),
        ("after", temperature, lambda own: sets_of_labels(own, sets)),
    ):
        parts = []
        for rows, block in blocks(found.held_out, divisor):
            probabilities = softmax(block)
            parts.append(predictions(probabilities, choose(probabilities), truth[rows]))
        said = joined(parts)
        report[when] = {name: vars(value) for name, value in measure(said).items()}
        bins = reliability_bins(said.confidence, said.correct)
        pages.append((when, [(one.probability, one.accuracy, one.answers) for one in bins]))
    return dataclasses.replace(fitted, temperature=temperature, label_sets=sets), pages


def _fit_seen(
    fitted: Calibration,
    features: ImageFeatures,
    texts: Texts,
    labels: Int[np.ndarray, "N"],
    fitting: Bool[np.ndarray, "N"],
    report: dict[str, Any],
) -> Calibration:
    """From which cosine a description is seen in a region; the report has how often it is then."""
    assert features.regions is not None
    bank = texts.banks[REGIONS]
    cosine = seen_threshold(*seen_histogram(features.regions[fitting], bank, labels[fitting]))
    if cosine is None:
        return fitted
    own, others = seen_histogram(features.regions[~fitting], bank, labels[~fitting])
    report["seen"] = {
        "of_the_class": seen_rate(own, cosine),
        "of_other_classes": seen_rate(others, cosine),
    }
    return dataclasses.replace(fitted, seen_cosine=cosine)


def _fit_none(
    fitted: Calibration,
    loaded: ModelBundle,
    texts: Texts,
    settings: FitSettings,
    found: Scores,
    fitting: Bool[np.ndarray, "N"],
    outliers: ImageFeatures | None,
    outlier_names: Sequence[str],
    tell: Callable[[str], None],
) -> tuple[Calibration, dict[str, Any]]:
    weight = settings.region_weight if found.region is not None else 0.0
    scores = found.joined(weight)
    report: dict[str, Any] = {}
    if outliers is None:
        if settings.false_accept is not None:
            raise ValueError(
                "A false-accept rate is of images of none of the classes; give some as outliers."
            )
        tell(
            "how often images of none of these classes are accepted is not known; give some with "
            "--outliers."
        )
        threshold = false_reject_threshold(scores[fitting], settings.false_reject)
    else:
        chosen = split_by_name(outlier_names, settings.fit_fraction)
        _check_parts(chosen, "outliers", tell)
        outside = score(loaded, texts, outliers, chosen, temperature=settings.none_temperature)
        others = outside.joined(weight)
        if settings.false_accept is None:
            threshold = false_reject_threshold(scores[fitting], settings.false_reject)
        else:
            threshold = false_accept_threshold(others[chosen], settings.false_accept)
        report = {
            "false_accept": _rate(others[~chosen] >= threshold),
            "auroc": separation(scores[~fitting], others[~chosen]),
            "auroc_image_alone": separation(found.image[~fitting], outside.image[~chosen]),
            "fpr95": false_accepts_at(scores[~fitting], others[~chosen]),
            "fpr95_image_alone": false_accepts_at(found.image[~fitting], outside.image[~chosen]),
        }
    report["false_reject"] = _rate(scores[~fitting] < threshold)
    none = NoneOfThese(threshold, weight, settings.none_temperature)
    return dataclasses.replace(fitted, none_of_these=none), report


def _rate(hits: Bool[np.ndarray, "N"]) -> dict[str, float]:
    rate = float(hits.mean())
    low, high = wilson_interval(rate, len(hits))
    return {"value": rate, "low": low, "high": high, "n": len(hits)}
