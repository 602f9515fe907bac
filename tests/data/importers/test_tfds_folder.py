"""TFDS data sets, built by the library: which features are read, and which folders are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_collections import image_bytes
from tiny_tfds import build

from grain_jax.data.build_dataset import build_split
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.importers import InvalidRecordError
from grain_jax.data.importers.tfds_folder import TfdsFolder
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.tfds_records import (
    RecordSource,
    encode_record,
    shard_path,
    write_metadata,
    write_shard,
)

kinds = tfds.features
LABELLED = {"image": kinds.Image(), "label": kinds.ClassLabel(names=["wren", "jay"])}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    rows = [{"image": image_bytes(i), "label": i % 2 - (i == 2)} for i in range(3)]
    return build(tmp_path, LABELLED, {"train": rows, "test": rows[:1]})


def test_labels_become_captions(labelled: Path, tmp_path: Path) -> None:
    spec = DatasetBuildSpec(
        "tfds", labelled, None, tmp_path / "out", options={"template": "an image of {}"}
    )
    statistics = build_split(spec, workers=1)
    assert (statistics.images, statistics.dropped_images) == (2, {"no caption": 1})  # label -1
    records = RecordSource(tmp_path / "out", "train")
    found = {(records[i].label, records[i].captions[0].text) for i in range(2)}
    assert found == {("wren", "an image of wren"), ("jay", "an image of jay")}
    assert {records[i].image for i in range(2)} == {image_bytes(0), image_bytes(1)}


@pytest.mark.parametrize("label", [kinds.ClassLabel(num_classes=2), np.int64])
def test_numbers_without_names_make_no_captions(tmp_path: Path, label) -> None:
    features = {"image": kinds.Image(), "label": label}
    folder = build(tmp_path, features, {"train": [{"image": image_bytes(0), "label": 1}]})
    with pytest.raises(ValueError, match="classes as numbers in 'label', without their names"):
        TfdsFolder(folder, split="train")
    read = TfdsFolder(folder, split="train", template="the digit {}")
    assert [caption.text for caption in read[0].captions] == ["the digit 1"]


def test_a_folder_above_and_a_split_are_found(labelled: Path, tmp_path: Path) -> None:
    assert len(TfdsFolder(tmp_path, split="train")) == 3
    assert len(TfdsFolder(labelled, split="train", subset="test")) == 1
    with pytest.raises(ValueError, match="which has test, train"):
        TfdsFolder(labelled, split="validation")
    with pytest.raises(ValueError, match=r"holds no data set of TFDS: there is no dataset_info"):
        TfdsFolder(tmp_path / "none")


def test_features_of_objects_and_texts(tmp_path: Path) -> None:
    objects = kinds.Sequence(
        {
            "bbox": kinds.BBoxFeature(),
            "label": kinds.ClassLabel(names=["tail", "head"]),
            "is_crowd": np.bool_,
        }
    )
    features = {
        "image": kinds.Image(),
        "image/filename": kinds.Text(),
        "title": kinds.Text(),
        "texts": kinds.Sequence(kinds.Text()),
        "objects": objects,
    }
    box = kinds.BBox(ymin=0.1, xmin=0.2, ymax=0.3, xmax=0.4)
    row = {
        "image": image_bytes(1),
        "image/filename": "b.png",
        "title": "one",
        "texts": ["two", "three"],
        "objects": [
            {"bbox": box, "label": 1, "is_crowd": False},
            {"bbox": box, "label": 0, "is_crowd": True},
            {"bbox": box, "label": -1, "is_crowd": False},
        ],
    }
    path = build(tmp_path, features, {"train": [row]})
    with pytest.raises(ValueError, match="several columns that could hold captions: texts, title"):
        TfdsFolder(path, split="train")
    importer = TfdsFolder(path, split="train", caption_columns=("texts", "title"))
    item = importer[0]
    assert item.id == "b.png"
    assert [c.text for c in item.captions] == ["two", "three", "one"]
    assert item.regions[0].box_xyxy == pytest.approx((0.2, 0.1, 0.4, 0.3))
    assert (item.regions[0].description, len(item.regions)) == ("head", 1)
    assert item.left_out == ("crowd region", "region without a label")


def test_a_data_set_of_this_project_is_read(tmp_path: Path) -> None:
    region = Region((0.0, 0.25, 0.5, 1.0), "a crest")
    record = Record("7", image_bytes(1), (Caption("a bird"),), (region,), label="jay")
    shards = write_shard(shard_path(tmp_path, "train", 0, 1), [encode_record(record)])
    write_metadata(tmp_path, {"train": shards})
    item = TfdsFolder(tmp_path, split="train")[0]
    assert (item.id, item.label, item.content) == ("7", "jay", record.image)
    assert (item.captions, item.regions[0].box_xyxy) == (record.captions, region.box_xyxy)


def test_files_without_random_access_are_refused(labelled: Path) -> None:
    info = labelled / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match='Build it with file_format="array_record"'):
        TfdsFolder(labelled, split="train")


def test_metadata_that_names_code_is_refused(labelled: Path) -> None:
    path = labelled / "features.json"
    features = json.loads(path.read_text())
    features["pythonClassName"] = "os.path"
    path.write_text(json.dumps(features))
    with pytest.raises(ValueError, match=r"names the feature class 'os\.path'"):
        TfdsFolder(labelled, split="train")
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a data set of TFDS that can be read"):
        TfdsFolder(labelled, split="train")


def test_a_feature_of_another_kind_is_no_image(labelled: Path) -> None:
    with pytest.raises(ValueError, match=r"'label' of .* is not an image feature; there are"):
        TfdsFolder(labelled, split="train", image_column="label")


def test_a_damaged_file_costs_its_examples(labelled: Path) -> None:
    (file,) = labelled.glob("*train.array_record*")
    data = bytearray(file.read_bytes())
    at = data.index(b"\x89PNG")
    data[at : at + 40] = bytes(40)
    file.write_bytes(data)
    importer = TfdsFolder(labelled, split="train")
    failed = 0
    for index in range(3):
        try:
            assert importer[index].content
        except InvalidRecordError as error:
            failed += 1
            message = str(error)
    assert failed >= 1
    assert "split 'train', example" in message
