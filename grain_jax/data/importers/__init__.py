"""Formats that `python -m grain_jax.prepare --from=NAME` reads.

To add one, write an `Importer` that is constructed from the `--input` path and add it to
`IMPORTERS`.
"""

from collections.abc import Callable
from pathlib import Path

from grain_jax.data.importers.annotations import AnnotationRows
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
    "annotations": AnnotationRows,
}

__all__ = ["IMPORTERS", "ImportedImage", "ImportedRegion", "Importer", "InvalidRecordError"]
