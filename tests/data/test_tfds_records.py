"""Records on disk: what is written is read, by TFDS, without TensorFlow."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from grain_jax.config import DataConfig
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.source import open_source
from grain_jax.data.tfds_records import (
    RecordSource,
    SplitShards,
    decode_record,
    encode_record,
    features,
    parse_record,
    shard_path,
    write_metadata,
    write_shard,
)

RECORDS = [
    Record(
        id=f"récord/{i}",
        image=bytes([i, 0, 255]),
        captions=(Caption("a bird"), Caption("ein Vögelchen", "synthetic")),
        regions=tuple(
            Region((0.0, 0.25, 0.5, 1.0), f"part {k} of {i}", 0.5 + k / 8) for k in range(i)
        ),
        label="wren" if i else None,
    )
    for i in range(5)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = [RECORDS[:2], RECORDS[2:]]
    sizes = 0
    for number, records in enumerate(shards):
        path = shard_path(tmp_path, "train", number, 2)
        sizes += write_shard(path, map(encode_record, records)).num_bytes
    write_metadata(tmp_path, {"train": SplitShards((2, 3), sizes)})
    return tmp_path


def test_records_survive_a_round_trip(folder: Path) -> None:
    source = open_source(DataConfig(dataset="tfds", data_dir=str(folder)), "train", image_size=8)
    assert len(source) == 5
    assert [source[i] for i in range(5)] == RECORDS
    assert RecordSource(folder, "train[3:]")[0] == RECORDS[3]
    again = pickle.loads(pickle.dumps(source))
    assert again[4] == RECORDS[4]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.floats(0, 1, width=32)


def sorted_box(corners: tuple[float, float, float, float]) -> tuple[float, ...]:
    (x0, x1), (y0, y1) = sorted(corners[::2]), sorted(corners[1::2])
    return x0, y0, x1, y1


parts = {
    "id": texts,
    "image": st.binary(max_size=20),
    "captions": st.lists(st.tuples(texts, texts), max_size=3),
    "regions": st.lists(
        st.tuples(
            st.tuples(*[numbers] * 4).map(sorted_box), texts, st.floats(width=32, allow_nan=False)
        ),
        max_size=3,
    ),
    "label": st.none() | texts.filter(bool),
}


@given(st.fixed_dictionaries(parts))
def test_records_are_parsed_as_tfds_does(found) -> None:
    captions = tuple(Caption(*caption) for caption in found["captions"])
    regions = tuple(Region(*region) for region in found["regions"])
    record = Record(**{**found, "captions": captions, "regions": regions})
    stored = encode_record(record)
    skip = {"image": tfds.decode.SkipDecoding()}
    assert parse_record(stored) == record
    assert decode_record(features().deserialize_example_np(stored, decoders=skip)) == record


def test_a_data_set_with_further_features_is_read_too(tmp_path: Path, monkeypatch) -> None:
    kinds = tfds.features
    wider = kinds.FeaturesDict({**features(), "source_url": kinds.Text()})
    stored = []
    for record in RECORDS:
        plain = features().deserialize_example_np(
            encode_record(record), decoders={"image": tfds.decode.SkipDecoding()}
        )
        for name in ("captions", "regions"):
            columns = plain[name]
            rows = zip(*columns.values(), strict=True)
            plain[name] = [dict(zip(columns, row, strict=True)) for row in rows]
        for region in plain["regions"]:
            ymin, xmin, ymax, xmax = region["bbox"]
            region["bbox"] = kinds.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax)
        example = wider.encode_example({**plain, "source_url": "of another"})
        stored.append(wider.serialize_example(example))
    size = write_shard(shard_path(tmp_path, "train", 0, 1), stored)
    monkeypatch.setattr("grain_jax.data.tfds_records.features", lambda: wider)
    write_metadata(tmp_path, {"train": size})
    monkeypatch.undo()
    source = RecordSource(tmp_path, "train")
    assert [source[i] for i in range(5)] == RECORDS
    assert source.__getitems__([4, 0]) == [RECORDS[4], RECORDS[0]]


def test_tfds_opens_the_folder(folder: Path) -> None:
    info = tfds.builder_from_directory(str(folder)).info
    assert info.splits["train"].num_examples == 5
    assert info.splits["train"].num_bytes == sum(len(encode_record(r)) for r in RECORDS)
    assert set(info.features) == set(features())


def test_a_shard_is_written_atomically(tmp_path: Path) -> None:
    def records():
        yield encode_record(RECORDS[0])
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "shard", records())
    assert not (tmp_path / "shard").exists()


def test_pixels_are_not_stored() -> None:
    with pytest.raises(ValueError, match="only encoded images"):
        encode_record(Record("x", np.zeros((2, 2, 3), np.uint8)))


def test_splits_can_be_sliced_and_added(folder: Path) -> None:
    whole = RecordSource(folder, "train")
    parts = RecordSource(folder, "train[:50%] + train[50%:]")
    assert [parts[i] for i in range(len(parts))] == [whole[i] for i in range(len(whole))]


def test_missing_parts_are_named(folder: Path, tmp_path: Path) -> None:
    assert len(RecordSource(folder, "train[:50%] + train[50%:]")) == len(
        RecordSource(folder, "train")
    )
    with pytest.raises(ValueError, match="no split 'test'; it has \\['train'\\]"):
        RecordSource(folder, "test")
    with pytest.raises(ValueError, match="holds no prepared data set"):
        RecordSource(tmp_path / "elsewhere", "train")
    with pytest.raises(ValueError, match=r"needs data\.data_dir"):
        RecordSource("", "train")


def test_another_kind_of_data_set_is_refused(tmp_path: Path) -> None:
    write_shard(shard_path(tmp_path, "train", 0, 1), [encode_record(RECORDS[0])])
    kinds = tfds.features
    tfds.folder_dataset.write_metadata(
        data_dir=str(tmp_path),
        features=kinds.FeaturesDict({"id": kinds.Text()}),
        split_infos=[
            tfds.core.SplitInfo(
                name="train", shard_lengths=[1], num_bytes=1, filename_template=None
            )
        ],
        check_data=False,
    )
    with pytest.raises(ValueError, match="lacks"):
        RecordSource(tmp_path, "train")


DICTIONARY = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
FOREIGN = "foreign_features.Feature"
OLD_FORM = {"type": FOREIGN, "content": {}}


def nested(feature: dict) -> dict:
    """A features dictionary as TFDS writes it, with `feature` two levels down."""
    for name in ("inner", "outer"):
        feature = {"pythonClassName": DICTIONARY, "featuresDict": {"features": {name: feature}}}
    return feature


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("features.json", nested({"pythonClassName": FOREIGN, "text": {}})),
        ("features.json", nested({"python_class_name": FOREIGN, "text": {}})),
        ("features.json", OLD_FORM),
        (
            "features.json",
            nested(
                {
                    "pythonClassName": DICTIONARY,
                    "jsonFeature": {"json": json.dumps({"a": OLD_FORM})},
                }
            ),
        ),
        ("dataset_info.json", {"features": nested({"pythonClassName": FOREIGN, "text": {}})}),
    ],
    ids=["class", "other spelling", "old form", "old form in a string", "info"],
)
def test_a_folder_cannot_run_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: dict
) -> None:
    code = folder / "code"
    code.mkdir()
    (code / "foreign_features.py").write_text("raise RuntimeError('code of the folder ran')")
    monkeypatch.syspath_prepend(str(code))
    path = folder / file
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, **content} if file == "dataset_info.json" else content))
    with pytest.raises(RuntimeError, match="code of the folder ran"):
        tfds.builder_from_directory(str(folder))
    with pytest.raises(ValueError, match="only features of TFDS itself are read"):
        RecordSource(folder, "train")


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_damaged_metadata_is_named(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match="holds no prepared data set"):
        RecordSource(folder, "train")


def test_no_large_framework_is_imported(folder: Path) -> None:
    code = f"""
import sys
import grain_jax.prepare, grain_jax.data.loader
from grain_jax.data.tfds_records import *
source = RecordSource({os.fspath(folder)!r}, "train")
encode_record(source[3])
print(sorted({{"tensorflow", "torch", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
