"""A prepared data set of a few records, written without `prepare`."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from grain_jax.data.records import Record
from grain_jax.data.tfds_records import (
    SplitShards,
    encode_record,
    shard_path,
    write_metadata,
    write_shard,
)


def write_prepared(folder: Path, splits: Mapping[str, Sequence[Record]]) -> Path:
    """Writes each split as one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, records in splits.items():
        shard = write_shard(shard_path(folder, split, 0, 1), map(encode_record, records))
        written[split] = SplitShards((len(records),), shard.num_bytes)
    write_metadata(folder, written)
    return folder


def noise_image(seed: int, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """An encoded image of (width, height), of coarse noise; another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()
