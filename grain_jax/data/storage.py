"""Records on disk: a TFDS data set over ArrayRecord, written and read without TensorFlow.

A folder holds the splits' shards, `features.json` and `dataset_info.json`, so TFDS (and with it
TensorFlow users) can open it too: `tfds.builder_from_directory(folder)`. Shards are written by any
number of processes and then adopted with `tfds.folder_dataset.write_metadata`.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float

from grain_jax.data.records import Caption, Record, Region

NAME = "grain_records"  # of the TFDS data set
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class SplitShards:
    """What the metadata must know of a written split."""

    lengths: tuple[int, ...]  # records of each shard
    num_bytes: int


@cache
def features() -> Any:
    """The TFDS features of a record. `image` is encoded bytes: an array would need TensorFlow."""
    kinds = tfds.features
    return kinds.FeaturesDict(
        {
            "id": kinds.Text(),
            "image": kinds.Image(),
            "captions": kinds.Sequence({"text": kinds.Text(), "source": kinds.Text()}),
            "regions": kinds.Sequence(
                {
                    "bbox": kinds.BBoxFeature(),
                    "description": kinds.Text(),
                    "score": np.float32,
                }
            ),
            "label": kinds.Text(),  # "" where there is none
        }
    )


def encode_record(record: Record) -> bytes:
    """The serialised example of a record whose image is encoded bytes."""
    if not isinstance(record.image, bytes):
        raise ValueError(f"Record {record.id!r} holds pixels; only encoded images are stored.")
    example = {
        "id": record.id,
        "image": record.image,
        "captions": [{"text": c.text, "source": c.source} for c in record.captions],
        "regions": [
            {
                "bbox": tfds.features.BBox(*region.bbox),
                "description": region.description,
                "score": np.float32(region.score),
            }
            for region in record.regions
        ],
        "label": record.label or "",
    }
    return features().serialize_example(features().encode_example(example))


def decode_record(example: Mapping[str, Any]) -> Record:
    """A record from what `as_data_source` yields, image undecoded."""
    captions, regions = example["captions"], example["regions"]
    label = example["label"].decode()
    return Record(
        id=example["id"].decode(),
        image=example["image"],
        captions=tuple(
            Caption(text.decode(), source.decode())
            for text, source in zip(captions["text"], captions["source"], strict=True)
        ),
        regions=tuple(
            Region(_bbox(bbox), description.decode(), float(score))
            for bbox, description, score in zip(
                regions["bbox"], regions["description"], regions["score"], strict=True
            )
        ),
        label=label or None,
    )


def _bbox(stored: Float[np.ndarray, "4"]) -> tuple[float, float, float, float]:
    ymin, xmin, ymax, xmax = stored.tolist()
    return ymin, xmin, ymax, xmax


class RecordSource:
    """The records of one split of a prepared folder; TFDS sub-splits ("train[:1%]") work too.

    Raises ValueError where the folder or the split is not there, or the folder holds another kind
    of data set.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str) -> None:
        self._directory, self._split = os.fspath(directory), split
        if not self._directory:
            raise ValueError(
                "data.source='records' needs data.directory: a folder that "
                "`python -m grain_jax.prepare` wrote."
            )
        try:
            builder = tfds.builder_from_directory(self._directory)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self._directory!r} holds no prepared data set (no dataset_info.json); write one "
                "with `python -m grain_jax.prepare`."
            ) from error
        if missing := set(features()) - set(builder.info.features or ()):
            raise ValueError(
                f"The data set in {self._directory!r} lacks {sorted(missing)}; convert it with "
                "`python -m grain_jax.prepare`."
            )
        if split.split("[")[0] not in builder.info.splits:
            raise ValueError(
                f"{self._directory!r} has no split {split!r}; it has {sorted(builder.info.splits)}."
            )
        self._data = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        return decode_record(self._data[index])

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return RecordSource, (self._directory, self._split)  # a process opens its own files


def write_shard(path: Path, records: Iterable[bytes]) -> SplitShards:
    """Writes one shard whole or not at all: `path` appears when it is complete."""
    partial = path.with_name(path.name + ".partial")
    writer = ArrayRecordWriter(os.fspath(partial), "group_size:1")  # 1: random access
    count = size = 0
    try:
        for record in records:
            writer.write(record)
            count, size = count + 1, size + len(record)
    finally:
        writer.close()
    os.replace(partial, path)
    return SplitShards((count,), size)


def shard_path(directory: Path, split: str, shard: int, num_shards: int) -> Path:
    """Where TFDS looks for a shard."""
    return directory / f"{NAME}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"


def write_metadata(directory: Path, splits: Mapping[str, SplitShards]) -> None:
    """Makes the shards in `directory` a data set with these splits; replaces earlier metadata."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=os.fspath(directory),
        dataset_name=NAME,
        filetype_suffix="array_record",
        template=TEMPLATE,
    )
    infos = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=list(shards.lengths),
            num_bytes=shards.num_bytes,
            filename_template=template.replace(split=name),
        )
        for name, shards in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=os.fspath(directory),
        features=features(),
        split_infos=infos,
        filename_template=TEMPLATE,
        check_data=False,  # its check reads through TensorFlow
        description="Images with captions and described regions, prepared for GRAIN.",
    )
