"""Embeddings of variants of a set's images, for methods with a second pass: a block at a time."""

from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Float

from grain_jax.config import TrainConfig
from grain_jax.data.image_variants import DRAWN, VARIANTS, ImageVariants, VariantKind
from grain_jax.data.records import Selection, Source
from grain_jax.inference.encoder import Encoder
from grain_jax.models.learned import Learned

BLOCK_IMAGES = 256  # whose variants are encoded, cached and held together


def possible_variants(*, has_boxes: bool) -> frozenset[str]:
    """Kinds of `VARIANTS` that can be made with a model that predicts boxes, or without."""
    return frozenset(name for name, kind in VARIANTS.items() if has_boxes or not kind.needs_boxes)


def passes(
    names: Collection[str],
    num_boxes: int,
    *,
    kinds: Mapping[str, VariantKind] = VARIANTS,
    draws: int = 1,
) -> int:
    """How often an image goes through the encoder for variants of the `kinds` with these names,
    itself included; those that are random as often as there are `draws`.
    """
    return 1 + sum(kinds[name].count(num_boxes) * (draws if name in DRAWN else 1) for name in names)


def predicted_boxes(config: TrainConfig, learned: Learned) -> int:
    """Boxes that a model predicts for an image; 0 where it has none that are trained."""
    return config.model.decoder.num_queries if config.model.type == "grain" and learned.boxes else 0


class VariantEmbeddings:
    """Of all images of a source, encoded where they are asked for and not before.

    Blocks begin at multiples of `BLOCK_IMAGES`, so that what is cached does not depend on which
    rows are asked for; the one looked at last is held. With several processes every one asks for
    the same rows.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Source,
        boxes_cxcywh: Float[np.ndarray, "N Q 4"] | None,
        kinds: Mapping[str, VariantKind],
    ):
        self._encoder, self._images, self._boxes = encoder, images, boxes_cxcywh
        self._kinds = dict(sorted(kinds.items()))
        self._held: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def rows(self, start: int, stop: int) -> dict[str, Float[np.ndarray, "n V E"]]:
        """By kind, of the images from `start` to `stop`."""
        stop = min(stop, len(self._images))
        if not self._kinds or start >= stop:
            return {}
        found: dict[str, list[np.ndarray]] = {kind: [] for kind in self._kinds}
        for block in range(start // BLOCK_IMAGES, -(-stop // BLOCK_IMAGES)):
            first = block * BLOCK_IMAGES
            for kind, embed in self._block(block).items():
                found[kind].append(embed[max(start - first, 0) : stop - first])
        return {kind: np.concatenate(parts) for kind, parts in found.items()}

    def _block(self, block: int) -> dict[str, np.ndarray]:
        if self._held[0] != block:
            first = block * BLOCK_IMAGES
            rows = range(first, min(first + BLOCK_IMAGES, len(self._images)))
            boxes = None if self._boxes is None else self._boxes[first : rows.stop]
            images, preprocessing = Selection(self._images, rows), self._encoder.preprocessing
            made = {}
            for name, kind in self._kinds.items():
                own = boxes if kind.needs_boxes else None
                source = ImageVariants(images, kind, preprocessing, own)
                made[name] = self._encoder.variants(source)
            self._held = block, made
        return self._held[1]
