"""Whether the decoder's queries differ: how often each is chosen, how alike they are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.boxes import pairwise_iou


@dataclass(frozen=True)
class Usage:
    """How the answers spread over Q queries."""

    counts: Int[np.ndarray, "Q"]
    used: int  # chosen at least once
    entropy: float  # of the choices, over the largest possible, ln Q: 1 where all are chosen alike


def query_usage(chosen: Int[np.ndarray, "T"], num_queries: int) -> Usage:
    """How often each query is the answer to a text; entropy 0 for a single query."""
    counts = np.bincount(chosen, minlength=num_queries)
    fractions = counts[counts > 0] / counts.sum()
    entropy = float(-(fractions * np.log(fractions)).sum())
    most = np.log(num_queries) if num_queries > 1 else 1.0
    return Usage(counts, int((counts > 0).sum()), abs(entropy / most))


def mean_cosine(regions: Float[np.ndarray, "N Q E"]) -> Float[np.ndarray, "N"]:
    """Mean cosine of two different region embeddings, of unit length, of each image; Q above 1."""
    count = regions.shape[1]
    total = (regions.astype(np.float64).sum(axis=1) ** 2).sum(axis=-1)
    lengths = (regions.astype(np.float64) ** 2).sum(axis=(1, 2))
    return (total - lengths) / (count * (count - 1))


def mean_overlap(boxes_xyxy: Float[np.ndarray, "N Q 4"]) -> Float[np.ndarray, "N"]:
    """Mean IoU of two different predicted boxes of each image; Q above 1."""
    count = boxes_xyxy.shape[1]
    pairs = np.triu_indices(count, 1)
    return np.array([float(pairwise_iou(own, own)[pairs].mean()) for own in boxes_xyxy])
