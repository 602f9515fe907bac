"""Formats that `python -m grain_jax.prepare --from=NAME` reads.

To add one, write an `Importer` that is constructed from the `--input` path and its options, and
add it to `IMPORTERS`.
"""

from collections.abc import Callable

from grain_jax.data.importers.annotations import AnnotationRows
from grain_jax.data.importers.coco import Coco
from grain_jax.data.importers.csv_table import CsvTable
from grain_jax.data.importers.flickr30k_entities import Flickr30kEntities
from grain_jax.data.importers.imagefolder import ImageFolder
from grain_jax.data.importers.item import (
    FilePart,
    ImagesFolder,
    ImportedImage,
    ImportedRegion,
    Importer,
    InvalidRecordError,
)
from grain_jax.data.importers.jsonl import JsonLines
from grain_jax.data.importers.official_grain import OfficialGrain
from grain_jax.data.importers.parquet import ParquetTable
from grain_jax.data.importers.refcoco import RefCoco
from grain_jax.data.importers.tfds_folder import TfdsFolder
from grain_jax.data.importers.webdataset import WebDataset

IMPORTERS: dict[str, Callable[..., Importer]] = {
    "jsonl": JsonLines,
    "flickr30k_entities": Flickr30kEntities,
    "coco": Coco,
    "csv": CsvTable,
    "webdataset": WebDataset,
    "imagefolder": ImageFolder,
    "parquet": ParquetTable,
    "refcoco": RefCoco,
    "official_grain": OfficialGrain,
    "tfds": TfdsFolder,
    "annotations": AnnotationRows,
}

__all__ = [
    "IMPORTERS",
    "FilePart",
    "ImagesFolder",
    "ImportedImage",
    "ImportedRegion",
    "Importer",
    "InvalidRecordError",
]
