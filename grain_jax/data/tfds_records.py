"""Records on disk: a TFDS data set in ArrayRecord files, written and read without TensorFlow.

A folder holds the splits' shards, `features.json` and `dataset_info.json`, so TFDS (and with it
TensorFlow users) can open it too: `tfds.builder_from_directory(folder)`. Shards are written by any
number of processes and become a data set once the metadata lists them.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float
from tensorflow_datasets.proto import tf_example_pb2

from grain_jax import buckets
from grain_jax.boxes import Box
from grain_jax.data.decoded_cache import DecodedCache
from grain_jax.data.entities_folder import refuse_entities
from grain_jax.data.records import Caption, Record, Region
from grain_jax.disk import whole_file
from grain_jax.paths import expand_home

NAME = "grain_records"  # of the TFDS data set
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
METADATA_FILES = ("features.json", "dataset_info.json")
FEATURE_MODULES = "tensorflow_datasets.core.features."  # the only module that metadata may name


@dataclass(frozen=True)
class SplitShards:
    """Shards of a written split, for the metadata."""

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
    """The serialized example of a record. Raises ValueError where its image is not encoded."""
    if not isinstance(record.image, bytes):
        raise ValueError(f"Record {record.id!r} holds pixels; only encoded images are stored.")
    example = {
        "id": record.id,
        "image": record.image,
        "captions": [{"text": c.text, "source": c.source} for c in record.captions],
        "regions": [
            {
                "bbox": _to_yxyx(region.box_xyxy),
                "description": region.description,
                "score": np.float32(region.score),
            }
            for region in record.regions
        ],
        "label": record.label or "",
    }
    return features().serialize_example(features().encode_example(example))


def parse_record(serialized: bytes) -> Record:
    """Inverse of `encode_record`, with the image encoded: `decode_record` in a tenth of its time.

    Only for an example of exactly `features`. TFDS parses any, by a walk through its features.
    """
    found = tf_example_pb2.Example.FromString(serialized).features.feature
    texts, sources = (found[f"captions/{name}"].bytes_list.value for name in ("text", "source"))
    boxes = found["regions/bbox"].float_list.value  # 4 of each region, as `_to_yxyx`
    descriptions = found["regions/description"].bytes_list.value
    scores = found["regions/score"].float_list.value
    corners = zip(boxes[1::4], boxes[0::4], boxes[3::4], boxes[2::4], strict=True)
    return Record(
        id=found["id"].bytes_list.value[0].decode(),
        image=found["image"].bytes_list.value[0],
        captions=tuple(
            Caption(text.decode(), source.decode())
            for text, source in zip(texts, sources, strict=True)
        ),
        regions=tuple(
            Region(box_xyxy, description.decode(), score)
            for box_xyxy, description, score in zip(corners, descriptions, scores, strict=True)
        ),
        label=found["label"].bytes_list.value[0].decode() or None,
    )


def decode_record(example: Mapping[str, Any]) -> Record:
    """The record of an example of `as_data_source`, with its image encoded."""
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
            Region(_to_xyxy(bbox), description.decode(), float(score))
            for bbox, description, score in zip(
                regions["bbox"], regions["description"], regions["score"], strict=True
            )
        ),
        label=label or None,
    )


def _to_yxyx(box_xyxy: Box) -> tfds.features.BBox:
    x0, y0, x1, y1 = box_xyxy
    return tfds.features.BBox(ymin=y0, xmin=x0, ymax=y1, xmax=x1)


def _to_xyxy(stored: Float[np.ndarray, "4"]) -> Box:
    ymin, xmin, ymax, xmax = stored.tolist()
    return xmin, ymin, xmax, ymax


SPLIT_ADVICE = 'Prepare it, or name another; without held-out data, set --data.eval_split="".'


class RecordSource:
    """The records of one split of a prepared folder, or of a TFDS sub-split ("train[:1%]").

    The folder may be one of a bucket, "gs://bucket/folder". Raises ValueError where the folder or
    the split does not exist, the split has no record, or the folder holds another kind of data
    set; OSError where a bucket cannot be reached. Opening a folder does not run code that it names.
    """

    def __init__(
        self, directory: str | os.PathLike[str], split: str, *, advice: str = SPLIT_ADVICE
    ) -> None:
        """`advice` ends the error about a split that is not there."""
        self._directory, self._split = expand_home(os.fspath(directory)), split
        if not self._directory:
            raise ValueError(
                "data.dataset='tfds' needs data.data_dir: a folder that "
                "`python -m grain_jax.prepare` wrote."
            )
        if buckets.in_bucket(self._directory):
            _check_bucket(self._directory)
        else:
            refuse_entities(Path(self._directory))
        try:
            foreign = foreign_features(self._directory)
            builder = None if foreign else tfds.builder_from_directory(self._directory)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self._directory!r} holds no prepared data set (no dataset_info.json and "
                "features.json that can be read); write one with `python -m grain_jax.prepare`."
            ) from error
        if builder is None:
            raise ValueError(
                f"The metadata in {self._directory!r} names {foreign[0]}, and TFDS would run the "
                "code behind it; only features of TFDS itself are read. Give a folder that "
                "`python -m grain_jax.prepare` wrote."
            )
        if missing := set(features()) - set(builder.info.features or ()):
            raise ValueError(
                f"The data set in {self._directory!r} lacks {sorted(missing)}; convert it with "
                "`python -m grain_jax.prepare`."
            )
        names = [part.strip().partition("[")[0] for part in split.split("+")]
        if absent := [name for name in names if name not in builder.info.splits]:
            raise ValueError(
                f"{self._directory!r} has no split {absent[0]!r}; it has "
                f"{sorted(builder.info.splits)}. {advice}"
            )
        if not builder.info.splits[split].num_examples:
            raise ValueError(
                f"Split {split!r} of {self._directory!r} has no record; name another split or a "
                "larger part of it."
            )
        self._lengths = {name: info.num_examples for name, info in builder.info.splits.items()}
        stored = builder.info.features.get_serialized_info()
        if stored == features().get_serialized_info():
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._data = builder.as_data_source(split, deserialize_method=raw)
            self._read: Callable[[Any], Record] = parse_record
        else:  # by others: with further features, or with other types
            skip = {"image": tfds.decode.SkipDecoding()}
            self._data, self._read = builder.as_data_source(split, decoders=skip), decode_record

    def __len__(self) -> int:
        return len(self._data)

    @property
    def num_with_regions(self) -> int | None:
        """The number of records with a region, counted by `prepare`.

        None for a part of a split, and where the report does not match the records.
        """
        counted = 0
        for name in self._split.split("+"):
            try:
                figures = self._report(name.strip())["figures"]
                images, regions = int(figures["images"]), int(figures["regions"])
                with_regions = int(figures["images_with_regions"]) if regions else 0
                stored = self._lengths[name.strip()]
            except (OSError, ValueError, KeyError, TypeError):
                return None
            # A build begun by an older version did not count all of its images.
            if images != stored or bool(regions) != bool(with_regions):
                return None
            counted += with_regions
        return counted

    @property
    def decoded_caches(self) -> tuple[DecodedCache, ...]:
        """The sizes in which `prepare --decoded_cache` stored the images; () without that."""
        found = []
        for part in self._split.split("+"):
            try:
                plan = self._report(part.strip().partition("[")[0])["plan"]
                found.append(DecodedCache.parse(plan["decoded_cache"]))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # no report, or without a cache
        return tuple(dict.fromkeys(found))

    def _report(self, split: str) -> Any:
        """What `prepare` wrote about a split. Raises OSError or ValueError."""
        path = tfds.core.Path(self._directory) / f"report-{split}.json"
        return json.loads(path.read_text(encoding="utf-8"))

    def __getitem__(self, index: int) -> Record:
        return self._read(self._data[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """`self[i]` for each of `indices`, read in one call."""
        return [self._read(stored) for stored in self._data.__getitems__(list(indices))]

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return RecordSource, (self._directory, self._split)  # each process opens the files itself


def _check_bucket(directory: str) -> None:
    """Raises ValueError or OSError where a bucket cannot be read, with what else can be done."""
    try:
        buckets.check(buckets.folder(directory))
    except (ValueError, OSError) as error:
        raise type(error)(
            f"{error} Records are also read from a bucket that is mounted: docs/scale.md, Buckets."
        ) from error


def foreign_features(directory: str) -> list[str]:
    """Feature classes named by the metadata of a TFDS folder that are not TFDS's own.

    TFDS would import the module of each class that `features.json` or `dataset_info.json` names;
    this function imports none. Raises OSError or ValueError where a file is missing or damaged.
    """
    folder = tfds.core.Path(directory)
    try:
        features, info = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in METADATA_FILES
        )
        if not isinstance(info, dict):
            raise ValueError("dataset_info.json is not a JSON object.")
        return [*_foreign(features), *_foreign(info.get("features"))]
    except RecursionError:
        raise ValueError("The metadata is nested too deeply.") from None


def _foreign(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _foreign(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            match key:
                case "pythonClassName" | "python_class_name":
                    if not str(value).startswith(FEATURE_MODULES):
                        yield f"the feature class {value!r}"
                # Forms of older TFDS, which hide further class names in strings.
                case "type" | "jsonFeature" | "json_feature":
                    yield f"a feature in the old form {key!r}"
            yield from _foreign(value)


def stored_splits(directory: Path) -> dict[str, SplitShards]:
    """The splits that the metadata in `directory` lists; {} where it cannot be read."""
    try:
        info = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
        return {
            split["name"]: SplitShards(
                tuple(int(length) for length in split["shardLengths"]), int(split["numBytes"])
            )
            for split in info["splits"]
        }
    except (OSError, ValueError, KeyError):
        return {}


def write_shard(path: Path, records: Iterable[bytes], *, compress: bool = True) -> SplitShards:
    """Writes one shard atomically: `path` appears when the shard is complete.

    `compress`: by zstd, which costs time at every read, and makes pixels hardly smaller. Readers
    take either. Raises OSError where it cannot be written.
    """
    count = size = 0
    with whole_file(path) as partial:
        with _written(partial):
            writer = ArrayRecordWriter(
                os.fspath(partial),
                "group_size:1" + ("" if compress else ",uncompressed"),  # 1: random access
            )
        try:
            for record in records:
                with _written(partial):
                    writer.write(record)
                count, size = count + 1, size + len(record)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # of the same disk
                writer.close()
            raise
        with _written(partial):
            writer.close()
    return SplitShards((count,), size)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Raises the errors of array_record, which are RuntimeError, as OSError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path.parent} cannot be written to: {error}") from error


def shard_path(directory: Path, split: str, shard: int, num_shards: int) -> Path:
    """The path at which TFDS expects a shard."""
    return directory / f"{NAME}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"


def shard_paths(directory: Path, split: str) -> list[Path]:
    """All shards of a split, including those that the metadata does not list."""
    return sorted(directory.glob(f"{NAME}-{split}.array_record-[0-9]*-of-[0-9]*"))


def write_metadata(directory: Path, splits: Mapping[str, SplitShards]) -> None:
    """Writes the metadata that makes the shards in `directory` a data set with these splits.

    Replaces earlier metadata, each file atomically.
    """
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
    # Not `tfds.folder_dataset.write_metadata`, which fails where an interrupted build has left
    # shards of a split that is not among these.
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=NAME,
            version=tfds.core.Version("1.0.0"),
            data_dir=os.fspath(directory),
            module_name="",
        ),
        features=features(),
        description="Images with captions and described regions, prepared for GRAIN.",
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.SplitDict(infos))
    with tempfile.TemporaryDirectory(dir=directory, prefix=".metadata-") as written:
        info.write_to_directory(written)
        for name in METADATA_FILES:
            os.replace(Path(written, name), directory / name)
