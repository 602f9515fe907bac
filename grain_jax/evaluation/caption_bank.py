"""Captions of prepared records that have nothing to do with the classes of a zero-shot set, for the
methods that look at some.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from grain_jax.config import DataConfig
from grain_jax.data.records import Record, Selection, Source, evenly_spaced
from grain_jax.data.source import open_source
from grain_jax.evaluation.content_digests import unordered_sha256
from grain_jax.evaluation.shared_images import BY_OPTIONS, HashedImages, Wording
from grain_jax.inference.encoder import Encoder, errors_about
from grain_jax.zero_shot.method import CaptionBank


@dataclass(frozen=True)
class CaptionedImages:
    """Images with a caption each, not encoded yet."""

    source: Source
    captions: tuple[str, ...]
    described: Mapping[str, Any]  # what a result says of them

    @functools.cached_property
    def hashed(self) -> HashedImages:
        """Read once, for all sets that must not share an image with them."""
        return HashedImages.of(self.source[index] for index in range(len(self.source)))


def load_bank(
    folder: Path,
    data: DataConfig,
    *,
    split: str,
    size: int,
    image_size: int,
    wording: Wording = BY_OPTIONS,
    note: Callable[[str], None] = print,
) -> CaptionedImages:
    """At most `size` images of a split of prepared records, evenly spaced, each with a caption: the
    first original one, or else the first.

    Images without captions are left out, and noted. Raises ValueError where the split does not
    exist and where none of the images has a caption.
    """
    prepared = replace(data, dataset="tfds", data_dir=str(folder))
    sample = evenly_spaced(open_source(prepared, split, image_size=image_size), size)
    rows, captions, ids = [], [], []
    for row in range(len(sample)):
        record = sample[row]
        if text := _caption(record):
            rows.append(row)
            captions.append(text)
            ids.append(record.id)
    if not rows:
        raise ValueError(
            f"None of the {len(sample)} images of split {split!r} of {str(folder)!r} has a "
            f"caption. Give prepared records with captions as {wording.bank}, or another "
            f"{wording.setting}bank_split."
        )
    if len(rows) < len(sample):
        note(
            f"bank: {len(sample) - len(rows)} of {len(sample)} images have no caption and are left "
            "out."
        )
    described = {
        "data": str(folder.absolute()),
        "split": split,
        "size": size,
        "captions": len(captions),
        "sha256": unordered_sha256(zip(ids, captions, strict=True)),
    }
    return CaptionedImages(Selection(sample, rows), tuple(captions), described)


def encode_bank(encoder: Encoder, images: CaptionedImages) -> CaptionBank:
    """Each caption once; each image once when its embedding is first looked at."""
    title = f"Captioned images of {images.described['data']}"

    def encode_images() -> Float[np.ndarray, "M E"]:
        with errors_about(title):
            return encoder.whole_images(images.source)

    with errors_about(title):
        text = encoder.texts(images.captions, kind="caption")
    return CaptionBank(
        images.captions, text, encode_images, lambda texts: encoder.texts(texts, kind="caption")
    )


def _caption(record: Record) -> str:
    ranked = sorted(record.captions, key=lambda caption: caption.source != "original")
    return next((caption.text.strip() for caption in ranked if caption.text.strip()), "")
