"""What was fitted to the scores of a model, and what they mean by it: probabilities, "none of
these", sets of labels.

Fitting is in `evaluation/calibration.py`; here is what `Model.classify` applies, and the file.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from grain_jax.zero_shot.arithmetic import softmax
from grain_jax.zero_shot.method import ClassBanks
from grain_jax.zero_shot.scorers import ClassTexts, TextBank
from grain_jax.zero_shot.text_kinds import DESCRIPTIONS, NAMES, REGIONS

FILE = "calibration.json"  # beside a model
VERSION = 1
MAX_BYTES = 64 * 2**20  # of the file, which has names of classes and at most a number for each
SetRule = Literal["lac", "aps"]
MAX_CELLS = 1 << 24  # similarities held at once


@dataclass(frozen=True)
class NoneOfThese:
    """An image whose in-distribution score is below `threshold` is none of the classes."""

    threshold: float
    region_weight: float  # lambda of GL-MCM; 0 without regions
    temperature: float  # of the softmax over cosines


@dataclass(frozen=True)
class LabelSets:
    """Conformal sets: the labels whose `nonconformity` is at most `quantile`, and the best one."""

    rule: SetRule
    coverage: float  # 1 - alpha: the fraction of images whose set holds the true label
    quantile: float | None  # None: too few images for this coverage, so every label


@dataclass(frozen=True)
class Calibration:
    """Fitted to one model by one method; `docs/evaluation.md` says what holds for which classes."""

    method: str
    alpha: float | None  # None for a method without one
    scoring: Mapping[str, str]  # prompt_ensembling, region_aggregation
    weights_sha256: str
    step: int
    classes: tuple[str, ...]
    texts_sha256: str  # of the class texts (`texts_sha256`)
    temperature: float  # the model's logits are divided by it; 1 where there were no labels
    class_shift: Mapping[str, float] | None = None  # added to logits, of prior matching
    none_of_these: NoneOfThese | None = None
    label_sets: LabelSets | None = None
    seen_cosine: float | None = None  # least cosine with a region to call a description seen

    def __post_init__(self) -> None:
        sets, none = self.label_sets, self.none_of_these
        numbers = {
            "temperature": self.temperature,
            "alpha": self.alpha,
            "seen_cosine": self.seen_cosine,
            **{f"shift of {name!r}": value for name, value in (self.class_shift or {}).items()},
        }
        if none:
            numbers |= {f"{name} of none_of_these": value for name, value in vars(none).items()}
        if sets:
            numbers |= {"coverage": sets.coverage, "quantile": sets.quantile}
        for name, value in numbers.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; expected a finite number.")
        for value in (self.temperature, none.temperature if none else 1.0):
            if value <= 0:
                raise ValueError(f"A temperature is {value}; expected a number above 0.")
        if sets and (sets.rule not in get_args(SetRule) or not 0 < sets.coverage < 1):
            raise ValueError(
                f"label_sets has rule {sets.rule!r} and coverage {sets.coverage}; expected one of "
                f"{', '.join(get_args(SetRule))} and a number between 0 and 1."
            )
        if self.class_shift is not None and set(self.class_shift) != set(self.classes):
            raise ValueError("class_shift is not of the classes.")


def mcm_scores(
    whole: Float[np.ndarray, "N K"],
    regions: Float[np.ndarray, "N Q E"] | None,
    classes: Float[np.ndarray, "K E"],
    *,
    temperature: float,
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"] | None]:
    """In-distribution scores of images and of the best of their regions: high where they look like
    one of the classes in particular, low where they look like none.

    The two terms of GL-MCM (Miyai et al., IJCV 2025): the largest softmax over classes of the
    image's cosines / temperature, and the largest of those of its regions, which stand for the
    local features. The first alone is MCM (Ming et al. 2022).

    Args:
        whole: cosines of the image embedding.
        regions: embeddings; None for a model without.
        classes: embeddings that regions are compared with.
    """
    image = softmax(whole.astype(np.float64) / temperature).max(axis=1)
    if regions is None:
        return image, None
    num_images, num_queries, width = regions.shape
    best = np.empty(num_images)
    step = max(1, MAX_CELLS // max(1, num_queries * len(classes)))
    for start in range(0, num_images, step):
        block = regions[start : start + step].reshape(-1, width)
        cosines = (block @ classes.T).astype(np.float64) / temperature
        found = softmax(cosines).max(axis=1).reshape(-1, num_queries)
        best[start : start + step] = found.max(axis=1)
    return image, best


def gl_mcm_score(
    image: Float[np.ndarray, "N"], region: Float[np.ndarray, "N"] | None, region_weight: float
) -> Float[np.ndarray, "N"]:
    """The in-distribution score of GL-MCM, `region_weight` its lambda; MCM's without regions."""
    return image if region is None else image + region_weight * region


def bank_of_regions(banks: ClassBanks) -> TextBank:
    """The texts that regions are compared with: descriptions of regions, or where there are none
    the texts that the image is compared with, as published.
    """
    kinds = (REGIONS, NAMES, DESCRIPTIONS)
    return next(found for kind in kinds if (found := banks.get(kind)) is not None)


def nonconformity(
    probabilities: Float[np.ndarray, "N K"], rule: SetRule
) -> Float[np.ndarray, "N K"]:
    """The nonconformity score of each label, in [0, 1]: how unlike the prediction it is.

    - "lac": 1 - its probability (Sadinle et al. 2019): the smallest sets on average;
    - "aps": the sum of all probabilities that are at least its own (Romano et al. 2020, without
      randomisation, so that sets are a little larger): sets grow where the model is unsure.
    """
    if rule == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    sums = np.cumsum(ranked, axis=1)
    # Of equal probabilities each counts all: the last of a run has the sum, which the others take.
    last = np.ones(ranked.shape, bool)
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    whole = np.minimum.accumulate(np.where(last, sums, np.inf)[:, ::-1], axis=1)[:, ::-1]
    found = np.empty_like(whole)
    np.put_along_axis(found, order, np.minimum(whole, 1.0), axis=1)
    return found


def sets_of_labels(
    probabilities: Float[np.ndarray, "N K"], sets: LabelSets
) -> Bool[np.ndarray, "N K"]:
    """Which labels are in the set of each image."""
    if sets.quantile is None:
        return np.ones(probabilities.shape, bool)
    inside = nonconformity(probabilities, sets.rule) <= sets.quantile
    return inside | (probabilities == probabilities.max(axis=1, keepdims=True))


def texts_sha256(labels: Sequence[str], texts: ClassTexts, kinds: Collection[str]) -> str:
    """SHA-256 of what each class is compared with, in any order of the classes.

    `kinds`: those that are compared.
    """
    used = [
        group
        for kind, group in (
            (NAMES, texts.names),
            (DESCRIPTIONS, texts.descriptions),
            (REGIONS, texts.regions),
        )
        if kind in kinds
    ]
    classes = sorted([label, *([*group[k]] for group in used)] for k, label in enumerate(labels))
    return hashlib.sha256(json.dumps([sorted(kinds), classes]).encode()).hexdigest()


def to_json(calibration: Calibration, report: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the file; `report`: how it was fitted and what it was measured to do."""
    none, sets = calibration.none_of_these, calibration.label_sets
    return {
        "grain_jax_calibration": VERSION,
        "fitted_for": {
            "method": calibration.method,
            "alpha": calibration.alpha,
            "scoring": dict(calibration.scoring),
            "weights_sha256": calibration.weights_sha256,
            "step": calibration.step,
            "classes": list(calibration.classes),
            "texts_sha256": calibration.texts_sha256,
        },
        "temperature": calibration.temperature,
        "class_shift": calibration.class_shift and dict(calibration.class_shift),
        "none_of_these": none and dict(vars(none)),
        "label_sets": sets and dict(vars(sets)),
        "seen_cosine": calibration.seen_cosine,
        "report": dict(report),
    }


def from_json(content: Any, where: str) -> Calibration:
    """What `to_json` wrote. Raises ValueError that names the file `where`."""
    try:
        if content["grain_jax_calibration"] != VERSION:
            raise ValueError(
                f"it is of version {content['grain_jax_calibration']!r}, and {VERSION} is read"
            )
        fitted, none, sets = (content[k] for k in ("fitted_for", "none_of_these", "label_sets"))
        shift, seen = content["class_shift"], content["seen_cosine"]
        return Calibration(
            method=str(fitted["method"]),
            alpha=None if fitted["alpha"] is None else float(fitted["alpha"]),
            scoring=dict(fitted["scoring"]),
            weights_sha256=str(fitted["weights_sha256"]),
            step=int(fitted["step"]),
            classes=tuple(map(str, fitted["classes"])),
            texts_sha256=str(fitted["texts_sha256"]),
            temperature=float(content["temperature"]),
            class_shift=shift and {str(name): float(value) for name, value in shift.items()},
            none_of_these=none and NoneOfThese(**{k: float(v) for k, v in none.items()}),
            label_sets=sets and LabelSets(**sets),
            seen_cosine=None if seen is None else float(seen),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{where} is not a calibration: {what}. Write it with python -m grain_jax.calibrate."
        ) from error


def read_calibration(text: str, where: str) -> Calibration:
    """`from_json` of the text of a file."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is not a calibration: its JSON is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{where} is not a calibration: not JSON ({error}).") from error
    return from_json(content, where)
