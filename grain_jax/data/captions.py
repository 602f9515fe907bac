"""The texts of a record: how they are compared, and which caption a sample gets."""

import random
from collections.abc import Sequence

from grain_jax.config import DataConfig
from grain_jax.data.records import Record, Region


def normalize_text(text: str) -> str:
    """Lower case, white space collapsed: how texts are compared."""
    return " ".join(text.lower().split())


def clean_text(text: str) -> str:
    """White space collapsed; lone surrogates, which UTF-8 has no bytes for, become "?"."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def choose_caption(
    record: Record, visible: Sequence[Region], config: DataConfig, rng: random.Random
) -> str:
    """One caption of the record.

    With `region_caption_probability`: the descriptions of all its visible regions, each once, in
    random order, joined by ", ". Else, where it has both kinds, a synthetic one with
    `synthetic_caption_probability` (official: 0.5); any one of the kind. Raises ValueError where
    there is none.
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
            f"Record {record.id!r} has no caption, and training needs one; "
            "`python -m grain_jax.prepare` drops such images."
        )
    synthetic = [caption.text for caption in record.captions if caption.source == "synthetic"]
    original = [caption.text for caption in record.captions if caption.source != "synthetic"]
    if synthetic and original:
        pick_synthetic = rng.random() < config.synthetic_caption_probability
        return rng.choice(synthetic if pick_synthetic else original)
    return rng.choice(synthetic or original)
