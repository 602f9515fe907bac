"""Where records come from: the embedded world or a folder of prepared records."""

from grain_jax.config import DataConfig
from grain_jax.data.records import Source


def open_source(config: DataConfig, split: str, *, image_size: int) -> Source:
    """The records of one split, random access. `image_size`: pixels a side that a procedural source
    draws.

    World: splits "train", "validation", "seen", "unseen". Records: the splits that were prepared.
    Raises ValueError where the source, the folder or the split does not exist.
    """
    match config.source:
        case "world":
            from grain_jax.data.world import WorldSource

            return WorldSource(config.world, split, image_size)
        case "records":
            from grain_jax.data.storage import RecordSource

            return RecordSource(config.directory, split)
    raise ValueError(f"Unknown data.source {config.source!r}; choose 'world' or 'records'.")
