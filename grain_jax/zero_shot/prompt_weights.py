"""Weights of prompt templates from images without labels (ZPE).

Allingham et al. 2023, arXiv 2302.06235.
"""

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.arithmetic import unit
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Images, Score, Support
from grain_jax.zero_shot.scorers import TextBank
from grain_jax.zero_shot.text_kinds import NAMES
from grain_jax.zero_shot.unlabeled import ClassVectors, blocks, images_to_fit

MAX_IMAGES = 10_000  # whose best class is looked for with every template


def zpe(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """The ensemble of all templates, each by its weight: `template_weights`.

    Published with pretraining images beside the test images: those of the caption bank, where there
    is one. The best class is looked for in `MAX_IMAGES` drawn images at most.
    """
    names = texts[NAMES]
    prompts = by_template(names)
    images = images_to_fit(unlabeled, 1)
    mean = images.mean(axis=0, dtype=np.float64)
    if bank is not None:
        mean = (mean + bank.image.mean(axis=0, dtype=np.float64)) / 2
    chosen = images_to_fit(unlabeled, 1, max_cells=MAX_IMAGES)
    weights = template_weights(chosen, prompts, mean.astype(np.float32), texts.logit_scale)
    _, first = np.unique(names.distinct[1], return_index=True)
    vectors = unit(np.tensordot(weights, prompts[:, first], axes=1))
    classes = ClassVectors(vectors, names.distinct[1])
    return lambda images, alpha: classes.expand(images.image @ vectors.T)


def by_template(names: TextBank) -> Float[np.ndarray, "P K E"]:
    """Embeddings of every class's name in each of the P templates.

    Raises ValueError where classes have different numbers of prompts.
    """
    counts = {len(rows) for rows in names.members}
    if len(counts) > 1:
        raise ValueError(
            f"Weights of templates take the same templates for every class; these have from "
            f"{min(counts)} to {max(counts)} prompts."
        )
    return names.embed[np.stack(names.members, axis=1)]


def template_weights(
    images: Float[np.ndarray, "N E"],
    prompts: Float[np.ndarray, "P K E"],
    mean_image: Float[np.ndarray, "E"],
    scale: float,
) -> Float[np.ndarray, "P"]:
    """Softmax over the templates of the mean over images of the largest normalised logit, which is
    `scale` times the cosine less that with the mean image.
    """
    scores = np.zeros(len(prompts))
    for position, vectors in enumerate(prompts):
        offset = vectors @ mean_image
        for rows in blocks(len(images), len(vectors)):
            best = (images[rows] @ vectors.T - offset).max(axis=1)
            scores[position] += best.sum(dtype=np.float64)
    scores *= scale / len(images)
    weights = np.exp(scores - scores.max())
    return (weights / weights.sum()).astype(np.float32)
