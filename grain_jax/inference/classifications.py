"""The best labels of each image with what defines them and which of their texts decided."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from grain_jax.inference.calibrated import Meaning
from grain_jax.inference.examples import EXAMPLES, Definitions
from grain_jax.inference.grounding import grounded_texts
from grain_jax.inference.results import (
    DESCRIPTION,
    NAME,
    Classification,
    ImageEmbeddings,
    RankedLabel,
)
from grain_jax.zero_shot.method import ClassBanks
from grain_jax.zero_shot.scorers import ClassTexts


@dataclass(frozen=True)
class ComparedTexts:
    """The texts that images were compared with, and how.

    `grounded`: whether each label says which of its texts an image shows; not by name alone.
    """

    texts: ClassTexts  # of the labels that texts have a part in, in their order
    banks: ClassBanks
    alpha: float
    grounded: bool


def classifications(
    embedded: ImageEmbeddings,
    scores: Float[np.ndarray, "N K"],
    meaning: Meaning,
    defined: Definitions,
    compared: ComparedTexts,
    *,
    top_k: int | None,
) -> Iterator[Classification]:
    """Of each image the `top_k` best labels, or all where that is None."""
    labels = defined.labels
    row = {label: k for k, label in enumerate(defined.named)}
    undescribed = frozenset(compared.texts.undescribed)

    def ranked(n: int, k: int) -> RankedLabel:
        label, by = labels[k], defined.defined_by(k)
        probability = float(meaning.probabilities[n, k])
        counted = None if by is None else defined.num_examples[k]
        if not compared.grounded or by == EXAMPLES:
            score = float(scores[n, k])
            return RankedLabel(label, score, probability, (), defined_by=by, num_examples=counted)
        texts = grounded_texts(
            embedded, n, compared.texts, compared.banks, row[label], alpha=compared.alpha
        )
        kind = NAME if label in undescribed else DESCRIPTION
        return RankedLabel(
            label,
            float(scores[n, k]),
            probability,
            texts,
            meaning.num_seen(texts) if kind == DESCRIPTION else None,
            by,
            counted,
            kind,
        )

    for n, name in enumerate(embedded.names):
        best = np.argsort(-meaning.rank_by[n], kind="stable")[:top_k].tolist()
        height, width = embedded.sizes[n].tolist()
        shown, calibrated = tuple(ranked(n, k) for k in best), meaning.of_image(n, labels)
        yield Classification(name, height, width, shown, len(labels), calibrated)
