"""What a result says beside its metrics: which texts and images they were measured on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from grain_jax.data.classification.class_counts import (
    FREQUENCIES,
    frequency_groups,
    published_counts,
)
from grain_jax.data.classification.templates import TEMPLATE_LISTS
from grain_jax.data.records import Labelled, Source, ZeroShotSet
from grain_jax.evaluation.content_digests import (
    labelled_sha256,
    records_sha256,
)
from grain_jax.evaluation.costs import Cost
from grain_jax.evaluation.digests import sha256_of
from grain_jax.evaluation.predictions import PredictionsFile


@dataclass
class ResultDetails:
    """Filled while a model is evaluated; any of it may stay empty."""

    predictions: PredictionsFile | None = None  # where every single answer goes, if anywhere
    zero_shot_sets: dict[str, dict[str, Any]] = field(default_factory=dict)  # see `describe_set`
    # name of a set -> method -> texts that were encoded for it and passes of an image
    costs: dict[str, Mapping[str, Cost]] = field(default_factory=dict)
    # name of a split or test -> number of images, and what was asked, by which protocol
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    # name of a grounding test -> feature -> how often each decoder query is chosen
    query_usage: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    # what methods looked at beside: "support" (labelled images), "bank" (captions of others)
    given: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    # set -> methods that were asked for and not measured on it -> what they need
    left_out: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def add_split(self, name: str, source: Source) -> None:
        """Notes a split of records that was measured."""
        is_first = jax.process_index() == 0
        found = records_sha256(source) if is_first else None
        self.splits[name] = {"images": len(source), "sha256": found}


def describe_set(dataset: ZeroShotSet) -> dict[str, Any]:
    """Names, counts and SHA-256 of the images, classes, templates and descriptions of a set.

    "file" and "file_sha256" are those of the file that the texts were read from, None where there
    was none: classes are then the labels of the images, templates those of the model. "sha256" is
    of the texts themselves, as they were compared with the images. Of images, it is
    of their bytes and labels; of a multi-host run the first process alone has it, the others None.
    Raises OSError for a file that has gone.
    """
    described = [name for name in dataset.class_names if _has_description(dataset, name)]
    texts = {name: list(dataset.descriptions.get(name, ())) for name in dataset.class_names}
    whole = {name: list(dataset.global_texts.get(name, ())) for name in dataset.class_names}
    labels = dataset.source.labels if isinstance(dataset.source, Labelled) else ()
    is_first = jax.process_index() == 0
    images = {
        "count": len(dataset.source),
        **_file(dataset, "labels"),
        "sha256": labelled_sha256(dataset.source, labels) if is_first else None,
    }
    return {
        "images": images,
        "classes": {
            "count": len(dataset.class_names),
            **_file(dataset, "classes"),
            "sha256": sha256_of(list(dataset.class_names)),
        },
        "templates": {
            "count": len(dataset.templates),
            **_file(dataset, "templates"),
            "sha256": sha256_of(list(dataset.templates)),
            "texts": list(dataset.templates),
        },
        "descriptions": {
            "count": sum(map(len, texts.values())),
            "classes_with_any": len(described),
            **_file(dataset, "descriptions"),
            "sha256": sha256_of([texts, whole]) if described else None,
            "template": dataset.description_template,
        },
        **({"counts": _counts(dataset)} if dataset.counts else {}),
        **{
            kind: {
                "count": sum(map(len, further.values())),
                "classes_with_any": sum(map(bool, further.values())),
                **_file(dataset, kind),
                "sha256": sha256_of(further),
            }
            for kind, further in dataset.further.items()
        },
        **{
            kind: {
                "count": sum(map(len, groups)),
                **_file(dataset, kind),
                "sha256": sha256_of(groups),
            }
            for kind, groups in dataset.shared.items()
        },
        **({"pairs": _pairs(dataset)} if dataset.pairs else {}),
    }


def _pairs(dataset: ZeroShotSet) -> dict[str, Any]:
    texts = [of_pair for others in dataset.pairs.values() for of_pair in others.values()]
    return {
        "count": sum(map(len, texts)),
        "classes_with_any": sum(map(bool, dataset.pairs.values())),
        **_file(dataset, "pairs"),
        "sha256": sha256_of(dataset.pairs),
    }


def _counts(dataset: ZeroShotSet) -> dict[str, Any]:
    groups = frequency_groups(dataset.counts)
    return {
        **{name: sum(found == name for found in groups.values()) for name in FREQUENCIES},
        **_file(dataset, "counts"),
        "sha256": sha256_of(dataset.counts),
    }


def _has_description(dataset: ZeroShotSet, name: str) -> bool:
    every: Sequence[str] = (
        *dataset.descriptions.get(name, ()),
        *dataset.global_texts.get(name, ()),
    )
    return any(text.strip() for text in every)


def _file(dataset: ZeroShotSet, role: str) -> dict[str, str | None]:
    if (name := dataset.text_files.get(role)) is None:
        return {"file": None, "file_sha256": None}
    packaged = {"templates": TEMPLATE_LISTS, "counts": published_counts()}
    if name in packaged.get(role, ()):
        return {"file": name, "file_sha256": None}  # the package's own; "sha256" is of the texts
    path = Path(name)
    return {
        "file": str(path.absolute()),
        "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
