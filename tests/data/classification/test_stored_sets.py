"""Labelled images in tars, Parquet tables and TFDS: read in place, bound by name, or refused."""

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from labelled_tars import coloured, write_tar, write_webdataset
from tiny_tfds import build

from grain_jax.data.classification import parquet_tables, webdataset_folder
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.classification.set_names import folder_name
from grain_jax.data.records import Labelled

NAMES = ["sea_horse", "owl", "newt"]


def load(path, **options):
    return load_zero_shot(path, note=lambda text: None, **options)


def seen(dataset):
    """Image bytes and label of every record, after a journey to another process."""
    source = pickle.loads(pickle.dumps(dataset.source))
    assert isinstance(source, Labelled)
    records = [source[i] for i in range(len(source))]
    assert [record.label for record in records] == list(source.labels)
    assert [record.id for record in records] == list(source.files)
    return [(record.image, record.label) for record in records]


@pytest.fixture
def tars(tmp_path):
    first = {
        "s0.webp": coloured(10, "WEBP"),
        "s0.cls": b"1",
        "s1.cls": b"0\n",
        "s1.jpg": coloured(20, "JPEG"),
    }
    return write_webdataset(
        tmp_path / "animals", [first, {"s2.png": coloured(30), "s2.cls": b"1"}], NAMES
    )


def test_tars_are_read_in_place_with_their_names_and_templates(tars):
    notes = []
    dataset = load_zero_shot(tars, note=notes.append)
    assert seen(dataset) == [
        (coloured(10, "WEBP"), "owl"),
        (coloured(20, "JPEG"), "sea horse"),
        (coloured(30), "owl"),
    ]
    assert set(dataset.class_names) == {"sea horse", "owl", "newt"}
    assert dataset.templates == ("a photo of a {}", "a {}")
    assert dataset.source.files[0] == "test/0.tar/s0.webp"
    assert dataset.text_files["classes"] == str(tars / "classnames.txt")
    assert dataset.text_files["templates"].endswith("zeroshot_classification_templates.txt")
    assert any("1 of 3 classes have no images" in note for note in notes)


def test_ten_tars_are_in_the_order_of_their_numbers(tmp_path):
    shards = [{f"k{i}.png": coloured(i), f"k{i}.cls": str(i % 3).encode()} for i in range(11)]
    dataset = load(write_webdataset(tmp_path / "many", shards, NAMES))
    assert [dataset.source[i].image for i in range(11)] == [coloured(i) for i in range(11)]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"0": "hippocampus", "1": "barn owl", "2": "eft"}, {}),
        ({"owl": "barn owl", "newt": "eft", "sea horse": "hippocampus"}, {}),
        (["hippocampus", "barn owl", "eft"], {"classes_by": "order"}),
    ],
)
def test_other_names_are_bound_by_number_name_or_order(tars, tmp_path, given, options):
    (tmp_path / "names.json").write_text(json.dumps(given))
    dataset = load(tars, classes=str(tmp_path / "names.json"), **options)
    assert [label for _, label in seen(dataset)] == ["barn owl", "hippocampus", "barn owl"]
    assert set(dataset.class_names) == {"barn owl", "hippocampus", "eft"}


def test_two_classes_of_one_name_are_told_apart_by_their_numbers(tars):
    (tars / "classnames.txt").write_text("owl\nowl\nnewt\n")
    with pytest.raises(ValueError, match="labels '0' and '1'"):
        load(tars)
    dataset = load(tars, allow_equal_names=True)
    assert [label for _, label in seen(dataset)] == ["owl (1)", "owl (0)", "owl (1)"]
    assert dataset.name_texts == {"owl (0)": "owl", "owl (1)": "owl"}


def test_a_split_of_tars_is_chosen(tars):
    write_tar(tars / "train" / "0.tar", {"a.png": coloured(99), "a.cls": b"2"})
    assert len(load(tars).source) == 3
    assert seen(load(tars, split="train")) == [(coloured(99), "newt")]
    with pytest.raises(ValueError, match="has no split 'dev'; it has test, train"):
        load(tars, split="dev")


def test_a_symbolic_link_in_a_tar_is_refused(tars):
    with tarfile.open(tars / "test" / "1.tar", "w") as tar:
        entry = tarfile.TarInfo("s2.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with pytest.raises(ValueError, match="a link, a device or a sparse file"):
        load(tars)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"x", "a.cls": b"3"}, "has the class 3, and only 3 names"),
        ({"a.png": b"x", "a.cls": b"-1"}, "stands for no label"),
        ({"a.png": b"x", "a.cls": b"owl"}, "a.cls should hold the number of a class, got b'owl'"),
        ({"a.png": b"x"}, "a has png; expected one image"),
        ({"a.cls": b"0"}, "a has cls; expected one image"),
        ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"0"}, "expected one image"),
        ({"../a.png": b"x", "../a.cls": b"0"}, "leads out of the folder"),
    ],
)
def test_odd_samples_are_refused(tars, members, message):
    write_tar(tars / "test" / "1.tar", members)
    with pytest.raises(ValueError, match=message):
        load(tars)


def test_incomplete_or_unlike_sets_of_tars_are_refused(tars, monkeypatch):
    monkeypatch.setattr(webdataset_folder, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(ValueError, match=r"test/0.tar/s0.webp is larger than 10 bytes"):
        load(tars)
    monkeypatch.undo()
    (tars / "test" / "nshards.txt").write_text("3")
    with pytest.raises(ValueError, match="counts 3 tars, and 2 are there"):
        load(tars)
    (tars / "test" / "nshards.txt").unlink()
    (tars / "classnames.txt").write_text("owl\n\nnewt\n")
    with pytest.raises(ValueError, match=r"Line 2 of .* is empty"):
        load(tars)
    (tars / "dataset_type.txt").write_text("retrieval\n")
    with pytest.raises(ValueError, match="is a set for 'retrieval'"):
        load(tars)
    (tars / "dataset_type.txt").unlink()
    data = (tars / "test" / "1.tar").read_bytes()
    (tars / "test" / "1.tar").write_bytes(data[:700])
    with pytest.raises(ValueError, match="end of data"):
        load(tars)


def write_table(path, values, labels, *, names=None, group=2, image="image", label="label"):
    """A table as Hugging Face writes it, several rows a group."""
    cells = [{"bytes": value, "path": f"{i}.png"} for i, value in enumerate(values)]
    table = pyarrow.table({image: cells, label: labels, "size": [3] * len(labels)})
    if names is not None:
        features = {
            image: {"_type": "Image"},
            label: {"names": names, "_type": "ClassLabel"},
            "size": {"dtype": "int64", "_type": "Value"},
        }
        stored = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": stored})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


@pytest.fixture
def tables(tmp_path):
    root = tmp_path / "mteb"
    images = [coloured(i) for i in range(7)]
    for part, rows in enumerate((slice(0, 4), slice(4, 7))):
        path = root / "data" / f"test-{part:05d}-of-00002.parquet"
        write_table(path, images[rows], [1, 0, 2, 1, 0, 0, 1][rows], names=NAMES)
    write_table(root / "data" / "train-00000-of-00001.parquet", images[:1], [2], names=NAMES)
    return root


def test_tables_are_read_by_row_group_with_names_from_their_metadata(tables, monkeypatch):
    monkeypatch.setattr(parquet_tables, "GROUPS_KEPT", 1)
    dataset = load(tables)
    named = [NAMES[i].replace("_", " ") for i in (1, 0, 2, 1, 0, 0, 1)]
    assert seen(dataset) == [(coloured(i), name) for i, name in enumerate(named)]
    assert dataset.source.files[4] == "data/test-00001-of-00002.parquet:0"
    backwards = [dataset.source[i].image for i in reversed(range(7))]
    assert backwards == [coloured(i) for i in reversed(range(7))]
    assert seen(load(tables, split="train")) == [(coloured(0), "newt")]
    with pytest.raises(ValueError, match="has no split 'val'; it has test, train"):
        load(tables, split="val")


def test_a_file_of_names_as_texts_or_of_numbers_alone(tmp_path):
    texts = write_table(tmp_path / "a.parquet", [coloured(1), coloured(2)], ["owl", "newt"])
    (tmp_path / "classes.json").write_text('["of", "another"]')  # not of this file
    assert seen(load(texts)) == [(coloured(1), "owl"), (coloured(2), "newt")]
    numbers = write_table(tmp_path / "b.parquet", [coloured(1), coloured(2)], [1, 0])
    with pytest.raises(ValueError, match="numbers its classes and does not name them"):
        load(numbers)
    (tmp_path / "names.txt").write_text("owl\nnewt\n")
    dataset = load(numbers, classes=str(tmp_path / "names.txt"), classes_by="order")
    assert [label for _, label in seen(dataset)] == ["newt", "owl"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"labels": [0, 3]}, {}, "an image has the class 3, and only 3 names"),
        ({"labels": [0, -1]}, {}, "stands for no label"),
        ({"labels": [0, None]}, {}, "row 1 of 'label' has no label"),
        ({"labels": [[0], [1]]}, {}, "holds list<.*>, not one class an image"),
        ({"values": [b"x", None]}, {}, None),
        ({"names": ["owl", "", "newt"]}, {}, "metadata names a class ''"),
        ({}, {"label_column": "nothing"}, "no column 'nothing', but image, label, size"),
        ({}, {"image_column": "size"}, "'size' holds int64, not the bytes of images"),
        ({}, {"classes_by": "order"}, "class names of its own"),
        ({}, {"split": "test"}, "is one file; leave --split out"),
        ({"label": "kind", "names": None}, {}, "0 columns of classes .* --label_column"),
    ],
)
def test_odd_tables_are_refused(tmp_path, change, options, message):
    given = {"values": [coloured(1), coloured(2)], "labels": [0, 1], "names": NAMES} | change
    path = write_table(tmp_path / "t.parquet", **given)
    if message is None:  # seen when the image is read
        with pytest.raises(ValueError, match=r"Image 't.parquet:1' has no bytes in 'image'"):
            seen(load(path, **options))
        return
    with pytest.raises(ValueError, match=message):
        load(path, **options)


def test_damaged_and_unlike_tables_are_refused(tables, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(parquet_tables, "MAX_IMAGE_BYTES", 10)
        with pytest.raises(ValueError, match=r"larger than 10 bytes"):
            seen(load(tables))
    with monkeypatch.context() as patch:
        patch.setattr(parquet_tables, "MAX_GROUP_BYTES", 10)
        with pytest.raises(ValueError, match="smaller row_group_size"):
            load(tables)
    second = tables / "data" / "test-00001-of-00002.parquet"
    write_table(second, [coloured(1)], [0], names=["newt", "owl", "sea_horse"])
    with pytest.raises(ValueError, match="class names differ from"):
        load(tables)
    second.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match="00001-of-00002"):
        load(tables)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """tiny/1.0.0, as TFDS prepares it."""
    label = tfds.features.ClassLabel(names=NAMES)
    features = {"image": tfds.features.Image(), "label": label, "size": np.int64}
    rows = [{"image": io.BytesIO(coloured(i)), "label": n, "size": 1} for i, n in enumerate("102")]
    for row in rows:
        row["label"] = int(row["label"])
    return build(
        tmp_path_factory.mktemp("tfds"),
        features,
        {"test": rows, "train": [rows[0] | {"image": io.BytesIO(coloured(0))}]},
    )


def test_a_prepared_tfds_set_is_found_by_its_name(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared.parent.parent))
    for address in ("tfds:tiny", "tfds:tiny:1.0.0", f"tfds:{prepared}"):
        dataset = load(address)
        assert dataset.name == "tiny"
        images = [(coloured(0), "owl"), (coloured(1), "sea horse"), (coloured(2), "newt")]
        assert sorted(seen(dataset)) == sorted(images)  # TFDS shuffles what it writes
        assert dataset.source.files[1] == "test/1"
        assert dataset.text_files["classes"].endswith("label.labels.txt")
    assert seen(load("tfds:tiny", split="train")) == [(coloured(0), "owl")]
    assert folder_name("tfds:eurosat/rgb:2.0.0") == "eurosat-rgb-2.0.0"


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("tfds:tiny:2.0.0", {}, "holds no prepared data set.*tfds build tiny"),
        ("tfds:other", {}, "holds no prepared data set"),
        ("tfds:../tiny", {}, "there is no dataset_info.json"),
        ("tfds:tiny/../tiny", {}, "should be tfds:NAME"),
        ("tfds:tiny", {"split": "dev"}, "no split 'dev'; it has test, train"),
        ("tfds:tiny", {"label_column": "size"}, "'size' of .* is not a feature of ClassLabel"),
    ],
)
def test_other_tfds_addresses_are_refused(prepared, monkeypatch, address, options, message):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared.parent.parent))
    with pytest.raises(ValueError, match=message):
        load(address, **options)


def test_a_folder_of_images_has_no_splits_or_columns(tmp_path):
    for option in ("split", "image_column", "label_column"):
        with pytest.raises(ValueError, match=f"--{option}|leave --split out"):
            load(tmp_path, **{option: "test"})
