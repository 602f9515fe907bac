"""Scores of images by the texts of labels, and what a calibration says of them: probabilities,
"none of these", sets of labels.

`calibration` in config.json has what `python -m grain_jax.calibrate` fitted. The formulas are those
of `grain_jax.zero_shot`; a calibration is applied in float64 on the CPU.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Keys of an answer's entries, as in the CSV of `python -m grain_jax.predict`.
FOUND = ("in_set", "none_of_these", "num_seen")


@dataclass(frozen=True, eq=False)
class Compared:
    """B images and the texts of K labels; embeddings of unit length.

    Texts are prompts, those of all labels in one template after the other, or descriptions, those
    of one label after the other.
    """

    image: Tensor  # [B, E]
    regions: Tensor | None  # [B, Q, E]; None for a model without
    embed_texts: Callable[[], Tensor]  # [N, E], as images are compared with them
    embed_region_texts: Callable[[], Tensor]  # [N, E] descriptions, as regions are
    num_labels: int
    counts: list[int] | None  # number of descriptions of each label; None: prompts
    alpha: float | None  # weight of the whole image with descriptions
    prompt_ensembling: str
    region_aggregation: str

    def scores(self) -> Tensor:
        """[B, K] by the prompts, or the mixture of whole image and regions by the descriptions."""
        if self.counts is None or self.alpha is None or self.alpha == 1:
            return self.whole
        if self.region_aggregation == "max_over_queries":
            regions = _by_label(self._region_cosines.amax(dim=1), self.counts)
        else:
            regions = _by_label(self._region_cosines, self.counts, torch.amax).mean(dim=1)
        if self.alpha == 0:
            return regions
        return self.alpha * self.whole + (1 - self.alpha) * regions

    @functools.cached_property
    def whole(self) -> Tensor:
        """[B, K] cosines of images with the labels."""
        texts = self.embed_texts()
        if self.counts is None:
            return self.image @ self._prompt_means(texts, self.prompt_ensembling).T
        return _by_label(self.image @ texts.T, self.counts)

    def of_regions(self) -> Tensor | None:
        """[B, Q, K] cosines of regions with the mean of each label's texts at unit length, in any
        ensembling; None for a model without.
        """
        if self.regions is None:
            return None
        if self.counts is None:
            means = self._prompt_means(self.embed_texts(), "embedding")
        else:
            means = F.normalize(_by_label(self.embed_region_texts().T, self.counts).T, dim=-1)
        return self.regions @ means.T

    def num_seen(self, cosine: float) -> Tensor | None:
        """[B, K] how many descriptions of each label have a region of at least this cosine; None
        where regions have no part in the scores.
        """
        if self.regions is None or self.counts is None or self.alpha == 1:
            return None
        best = _float64(self._region_cosines.amax(dim=1))
        return _by_label(best >= cosine, self.counts, torch.sum)

    @functools.cached_property
    def _region_cosines(self) -> Tensor:
        """[B, Q, N] of regions and descriptions."""
        assert self.regions is not None
        return self.regions @ self.embed_region_texts().T

    def _prompt_means(self, prompts: Tensor, ensembling: str) -> Tensor:
        """[K, E]; with "embedding" at unit length."""
        means = prompts.unflatten(0, (-1, self.num_labels)).mean(dim=0)
        return F.normalize(means, dim=-1) if ensembling == "embedding" else means


def part_that_holds(
    calibration: Mapping[str, Any] | None, asked: Mapping[str, Any], texts: str | None
) -> tuple[Mapping[str, Any], str | None]:
    """The part of a calibration that holds for a question, and why it is not all of it.

    It is {} for another method, and the temperature alone for other classes or for other texts of
    the same ones. A calibration of earlier exports has nothing but a temperature.

    Args:
        calibration: None for a model without.
        asked: method, alpha and scoring of the question.
        texts: `texts_sha256` of the question.
    """
    if calibration is None:
        return {}, None
    fitted = {name: calibration[name] for name in ("method", "alpha")}
    fitted |= calibration.get("scoring") or {}
    for name, value in asked.items():
        if name in fitted and fitted[name] != value:
            return {}, (
                f"The calibration is not used: it was fitted for {name}={fitted[name]}, and this "
                f"is {name}={value}."
            )
    if "texts_sha256" not in calibration or calibration["texts_sha256"] == texts:
        return calibration, None
    if calibration["class_shift"] is not None:
        return {}, (
            "The calibration is not used: it was fitted to other classes, or to these by other "
            "texts, and it has no temperature."
        )
    return {"temperature": calibration["temperature"]}, (
        "The calibration was fitted to other classes, or to these by other descriptions or "
        "templates. Only its temperature is used, which often carries over and is not certain to; "
        "answers have no 'none_of_these' and no 'in_set'."
    )


def texts_sha256(
    labels: Sequence[str],
    texts: Sequence[str],
    counts: Sequence[int] | None,
    *,
    with_regions: bool,
) -> str:
    """SHA-256 of what each label is compared with, in any order of the labels.

    `texts` and `counts` as in `Compared`; `with_regions`: whether regions are compared with
    descriptions too.
    """
    if counts is None:
        kinds, groups = ["names"], [list(texts[k :: len(labels)]) for k in range(len(labels))]
    else:
        kinds, ends = ["descriptions", "regions"][: 1 + with_regions], itertools.accumulate(counts)
        groups = [list(texts[end - count : end]) for end, count in zip(ends, counts, strict=True)]
    classes = sorted(
        [label, *[group] * len(kinds)] for label, group in zip(labels, groups, strict=True)
    )
    return hashlib.sha256(json.dumps([kinds, classes]).encode()).hexdigest()


def calibrated_logits(fitted: Mapping[str, Any], logits: Tensor, labels: Sequence[str]) -> Tensor:
    """[B, K] logits of the model with the temperature and the shifts of the labels, if any."""
    logits = logits / fitted.get("temperature", 1.0)
    if (shift := fitted.get("class_shift")) is None:
        return logits
    return logits + logits.new_tensor([shift[label] for label in labels])


def answered(
    fitted: Mapping[str, Any], logits: Tensor, compared: Compared
) -> dict[str, Tensor | None]:
    """What the part of a calibration that holds says of images beside their probabilities, on the
    CPU: `in_set` [B, K], `none_of_these` [B] and `num_seen` [B, K]; None for what was not fitted.

    `logits`: [B, K], calibrated.
    """
    found: dict[str, Tensor | None] = dict.fromkeys(FOUND)
    if (sets := fitted.get("label_sets")) is not None:
        found["in_set"] = in_label_sets(logits, sets)
    if (none := fitted.get("none_of_these")) is not None:
        regions = compared.of_regions() if none["region_weight"] else None
        scores = in_distribution_scores(compared.whole, regions, none)
        found["none_of_these"] = scores < none["threshold"]
    if (cosine := fitted.get("seen_cosine")) is not None:
        found["num_seen"] = compared.num_seen(cosine)
    return found


def with_answers(
    entries: list[dict[str, Any]], labels: Sequence[str], found: Mapping[str, Tensor | None]
) -> list[dict[str, Any]]:
    """The entries of one image with what `answered` found of it, in the first row of tensors."""
    for name, values in found.items():
        if values is None:
            continue
        of_image = values[0].tolist()  # of all labels, or one for the image
        of_label = dict(zip(labels, of_image, strict=True)) if values.dim() == 2 else None
        for entry in entries:
            entry[name] = of_image if of_label is None else of_label[entry["label"]]
    return entries


def in_distribution_scores(
    whole: Tensor, regions: Tensor | None, none_of_these: Mapping[str, Any]
) -> Tensor:
    """[B] scores of images by GL-MCM: low where they look like none of the labels.

    Args:
        whole: [B, K] cosines of images and labels.
        regions: [B, Q, K] those of their regions; None for the image alone.
        none_of_these: temperature, and weight of the regions.
    """
    temperature = none_of_these["temperature"]
    scores = (_float64(whole) / temperature).softmax(dim=-1).amax(dim=-1)
    if regions is None:
        return scores
    best = (_float64(regions) / temperature).softmax(dim=-1).amax(dim=(1, 2))
    return scores + none_of_these["region_weight"] * best


def in_label_sets(logits: Tensor, label_sets: Mapping[str, Any]) -> Tensor:
    """[B, K] whether each label is in the conformal set of the image: those whose nonconformity is
    at most the quantile, and the best one; all where too few images gave no quantile.
    """
    if label_sets["quantile"] is None:
        return torch.ones(logits.shape, dtype=torch.bool)
    probabilities = _float64(logits).softmax(dim=-1)
    inside = nonconformity(probabilities, label_sets["rule"]) <= label_sets["quantile"]
    return inside | (probabilities == probabilities.amax(dim=-1, keepdim=True))


def nonconformity(probabilities: Tensor, rule: str) -> Tensor:
    """[B, K]: "lac" 1 - probability, "aps" the sum of all that are at least the label's own.

    Raises ValueError for another rule.
    """
    if rule == "lac":
        return 1 - probabilities
    if rule != "aps":
        raise ValueError(
            f"label_sets of the calibration has the rule {rule!r}; expected 'lac' or 'aps'. Export "
            "the model again, or delete `calibration` in its config.json."
        )
    ascending = probabilities.sort(dim=-1).values
    sums = ascending.flip(-1).cumsum(dim=-1)  # of the 1, 2, ... largest
    # How many are at least as large, so that of equal ones each counts all.
    count = probabilities.shape[-1] - torch.searchsorted(ascending, probabilities)
    return sums.gather(-1, count - 1).clamp(max=1.0)


def _by_label(
    values: Tensor, counts: Sequence[int], reduce: Callable[..., Tensor] = torch.mean
) -> Tensor:
    """[..., K] of values [..., N] of the texts of one label after the other."""
    return torch.stack([reduce(part, dim=-1) for part in values.split(counts, dim=-1)], dim=-1)


def _float64(values: Tensor) -> Tensor:
    return values.detach().cpu().double()
