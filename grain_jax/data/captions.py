"""Texts of a record: how they are compared, and which caption a sample gets."""

import random
from collections.abc import Sequence

from grain_jax.config import DataConfig
from grain_jax.data.records import Record, Region


def normalize_text(text: str) -> str:
    """The text in lower case with white space collapsed, by which texts are compared."""
    return " ".join(text.lower().split())


def clean_text(text: str) -> str:
    """The text with white space collapsed and lone surrogates, invalid in UTF-8, as "?"."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def choose_caption(
    record: Record, visible: Sequence[Region], config: DataConfig, rng: random.Random
) -> str:
    """A random caption of the record.

    With `config.region_caption_probability`: the distinct descriptions of the `visible` regions, in
    random order, joined by ", ". Otherwise one of the record's captions; where it has synthetic and
    other ones, a synthetic one with `config.synthetic_caption_probability` (official code: 0.5).
    Raises ValueError where the record has no caption.
    """
    probability = config.region_caption_probability
    if visible and probability > 0 and rng.random() < probability:
        descriptions = list(
            {normalize_text(r.description): r.description for r in visible}.values()
        )
        rng.shuffle(descriptions)
        return ", ".join(descriptions)
    if not record.captions:
        raise ValueError(
            f"Record {record.id!r} has no caption, and training needs one; prepare the data set "
            "again with `python -m grain_jax.prepare`, which skips such images."
        )
    synthetic = [caption.text for caption in record.captions if caption.source == "synthetic"]
    original = [caption.text for caption in record.captions if caption.source != "synthetic"]
    if synthetic and original:
        pick_synthetic = rng.random() < config.synthetic_caption_probability
        return rng.choice(synthetic if pick_synthetic else original)
    return rng.choice(synthetic or original)
