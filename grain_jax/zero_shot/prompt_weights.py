"""Weights of prompt templates from images without labels (ZPE).

Allingham et al. 2023, arXiv 2302.06235.
"""

import numpy as np
from jaxtyping import Float, Int

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
    templates = by_template(names)
    images = images_to_fit(unlabeled, 1)
    mean = images.mean(axis=0, dtype=np.float64)
    if bank is not None:
        mean = (mean + bank.image.mean(axis=0, dtype=np.float64)) / 2
    chosen = images_to_fit(unlabeled, 1, max_cells=MAX_IMAGES)
    weights = template_weights(chosen, names, mean.astype(np.float32), texts.logit_scale)
    total = np.zeros((templates.shape[1], names.embed.shape[1]), np.float32)
    for weight, rows in zip(weights, templates, strict=True):
        total += weight * names.embed[rows]
    vectors = unit(total)
    classes = ClassVectors(vectors, names.distinct[1])
    return lambda images, alpha: classes.expand(images.image @ vectors.T)


def by_template(names: TextBank) -> Int[np.ndarray, "P D"]:
    """Rows of `TextBank.embed` that the names of the D classes that differ have in each of the P
    templates.

    Raises ValueError where classes have different numbers of prompts.
    """
    members = names.distinct[0]
    counts = {len(rows) for rows in members}
    if len(counts) > 1:
        raise ValueError(
            f"Weights of templates take the same templates for every class; these have from "
            f"{min(counts)} to {max(counts)} prompts."
        )
    return np.stack(members, axis=1)


def template_weights(
    images: Float[np.ndarray, "N E"],
    names: TextBank,
    mean_image: Float[np.ndarray, "E"],
    scale: float,
) -> Float[np.ndarray, "P"]:
    """Softmax over the templates of the mean over images of the largest normalised logit, which is
    `scale` times the cosine less that with the mean image. Goes through the texts a template at a
    time: there is no second copy of all of them.
    """
    templates = by_template(names)
    scores = np.zeros(len(templates))
    for position, prompts in enumerate(templates):
        vectors = names.embed[prompts]
        offset = vectors @ mean_image
        for rows in blocks(len(images), len(vectors)):
            best = (images[rows] @ vectors.T - offset).max(axis=1)
            scores[position] += best.sum(dtype=np.float64)
    scores *= scale / len(images)
    weights = np.exp(scores - scores.max())
    return (weights / weights.sum()).astype(np.float32)
