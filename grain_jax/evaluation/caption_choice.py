"""Does an object's box prefer its true caption to nearly right ones? The measure of FG-OVD."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from grain_jax.evaluation.ranking import expected_recall


@dataclass(frozen=True)
class CaptionChoice:
    """Of each annotated object."""

    top1: Float[np.ndarray, "K"]  # the true caption has the highest score; ties by expectation
    rank: Float[np.ndarray, "K"]  # of the true caption, from 1; of equals the last, as published


def caption_scores(
    embed: Float[np.ndarray, "C E"],
    of_object: Bool[np.ndarray, "C"],
    captions: Float[np.ndarray, "L E"],
) -> Float[np.ndarray, "L"] | None:
    """Of each caption the best cosine with the boxes that are the object's; None without any.

    The first caption is the true one.
    """
    if not of_object.any():
        return None
    return (embed[of_object] @ captions.T).max(axis=0)


def caption_choice(
    scores: Sequence[Float[np.ndarray, "_"] | None], captions: Sequence[int]
) -> CaptionChoice:
    """How the true caption, the first, ranks among the captions of each object.

    Args:
        scores: of the captions; None for an object that no box is on, which comes last.
        captions: how many each object has.
    """
    top1, rank = np.zeros(len(scores)), np.array(captions, np.float64)
    for row, own in enumerate(scores):
        if own is not None:
            true = np.arange(len(own))[None] == 0
            top1[row] = expected_recall(own[None], true, (1,))[1][0]
            rank[row] = float((own >= own[0]).sum())
    return CaptionChoice(top1, rank)
