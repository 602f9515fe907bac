"""Build one shard of a split: what a worker process does.

A shard is written atomically, with its statistics beside it, under a name that is a hash of its
input and options.
"""

import array
import hashlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.checks import DatasetStatistics, check_item, image_state
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers import Importer, InvalidRecordError
from grain_jax.data.merging import MergedImporter
from grain_jax.data.processes import end_with_parent
from grain_jax.data.tfds_records import encode_record, write_shard
from grain_jax.disk import write_whole

UNREADABLE = "unreadable entry"  # the reason counted for an `InvalidRecordError`


@dataclass(frozen=True)
class Shard:
    """Consecutive records of the input, and the files that they become."""

    number: int
    start: int
    stop: int
    path: Path

    @property
    def statistics_path(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def merged_path(self) -> Path:
        """The file with the rows of --merge_annotations that its images got, 32-bit numbers."""
        return self.path.with_suffix(".merged")

    @property
    def ids_path(self) -> Path:
        """The file with 64-bit hashes of each record's id and image."""
        return self.path.with_suffix(".ids")


def is_current(done: dict[str, Any], spec: DatasetBuildSpec) -> bool:
    """Whether rebuilding a shard would skip the same records.

    Their images may have been repaired since, and `on_error` may have changed.
    """
    if spec.on_error == "raise" and UNREADABLE in done["figures"]["dropped_images"]:
        return False
    folder = spec.images_folder
    return folder is None or all(
        image_state(name, folder) == state for name, state in done["left_out"].items()
    )


_worker_state: tuple[DatasetBuildSpec, Importer] | None = None  # of a worker process


def start_worker(spec: DatasetBuildSpec, importer: Importer) -> None:
    """Initializes a worker process."""
    global _worker_state
    _worker_state = spec, importer
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C, no traceback from each process
    end_with_parent()


def build_in_worker(shard: Shard) -> DatasetStatistics:
    """`build_shard` with what `start_worker` was given."""
    assert _worker_state is not None
    return build_shard(shard, *_worker_state)


def build_shard(shard: Shard, spec: DatasetBuildSpec, importer: Importer) -> DatasetStatistics:
    """Writes the files of a shard; returns its statistics. Raises ValueError and OSError."""
    statistics, ids = DatasetStatistics(), array.array("Q")
    left_out: dict[str, list[int] | None] = {}
    merged: list[int] = []
    written = write_shard(
        shard.path,
        _encoded(shard, spec, importer, statistics, ids, left_out, merged),
        compress=spec.decoded_cache is None,
    )
    shard.ids_path.write_bytes(ids.tobytes())
    if isinstance(importer, MergedImporter):
        shard.merged_path.write_bytes(np.asarray(merged, np.uint32).tobytes())
    # The statistics are written last: a shard without them is rebuilt.
    write_json(
        shard.statistics_path,
        {
            "figures": statistics.to_json(),
            "records": written.lengths[0],
            "bytes": written.num_bytes,
            "left_out": left_out,
        },
    )
    return statistics


def _encoded(
    shard: Shard,
    spec: DatasetBuildSpec,
    importer: Importer,
    statistics: DatasetStatistics,
    ids: "array.array[int]",
    left_out: dict[str, list[int] | None],
    merged: list[int],
) -> Iterator[bytes]:
    """The encoded records of a shard.

    Fills `statistics`, `ids` (hashes of each record's id and image), `left_out` (skipped image
    -> its `image_state`) and `merged` (rows of annotations that images got, kept or not).
    """
    for index in range(shard.start, shard.stop):
        item = None
        try:
            item = importer[index]
            merged += item.merged_rows
            record = check_item(
                item,
                spec.images_folder,
                max_image_side=spec.max_image_side,
                decoded_cache=spec.decoded_cache,
                captions_from_regions=spec.captions_from_regions,
                statistics=statistics,
            )
        except InvalidRecordError as error:
            if spec.on_error == "raise":
                raise ValueError(f"{error} (--on-error=skip skips such records.)") from None
            statistics.drop_image(UNREADABLE, str(error))
        except SkippedSample as error:
            statistics.drop_image(error.reason, str(error))
        else:
            assert isinstance(record.image, bytes)
            ids.extend(_hash(part) for part in (record.id.encode(), record.image))
            yield encode_record(record)
            continue
        if item is not None and item.content is None and spec.images_folder is not None:
            left_out[item.image] = image_state(item.image, spec.images_folder)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def read_json(path: Path) -> Any:
    """The content of a file; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_json(path: Path, value: Any) -> None:
    """Writes a file atomically."""
    write_whole(path, json.dumps(value, indent=1))
