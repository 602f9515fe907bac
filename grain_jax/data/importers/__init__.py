"""Formats that `python -m grain_jax.prepare --from=NAME` reads.

To add one, write a class like those here (an `Importer`, built from the `--input` path) and name it
in `IMPORTERS`.
"""

from collections.abc import Callable
from pathlib import Path

from grain_jax.data.importers.flickr30k_entities import Flickr30kEntities
from grain_jax.data.importers.item import (
    ImportedImage,
    ImportedRegion,
    Importer,
    InvalidRecordError,
)
from grain_jax.data.importers.jsonl import JsonLines

IMPORTERS: dict[str, Callable[[Path], Importer]] = {
    "jsonl": JsonLines,
    "flickr30k_entities": Flickr30kEntities,
}

__all__ = ["IMPORTERS", "ImportedImage", "ImportedRegion", "Importer", "InvalidRecordError"]
