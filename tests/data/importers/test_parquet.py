"""Parquet and Arrow: what Hugging Face's library writes, and tables of others."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collections import image_bytes, write_images

from grain_jax.data.build_dataset import build_split
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.importers import InvalidRecordError
from grain_jax.data.importers.parquet import ParquetTable
from grain_jax.data.tfds_records import RecordSource

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PNG = image_bytes(1)


def write(path: Path, rows: list[dict[str, Any]], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def texts(importer: ParquetTable) -> list[list[str]]:
    return [[c.text for c in importer[i].captions] for i in range(len(importer))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of save_to_disk and one of shards, by the library of Hugging Face."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hub")
    columns = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["wren", "jay"])}
    )
    rows = {
        "img": [{"bytes": image_bytes(i), "path": None} for i in range(4)],
        "label": [0, 1, 1, 0],
    }
    data = datasets.Dataset.from_dict(rows, features=columns)
    datasets.disable_progress_bars()
    both = datasets.DatasetDict({"train": data, "test": data.select([1, 2])})
    both.save_to_disk(folder / "both", num_shards={"train": 2, "test": 1})
    data.save_to_disk(folder / "one")
    (folder / "shards").mkdir()
    for number in range(2):
        data.shard(2, number).to_parquet(folder / "shards" / f"train-0000{number}-of-00002.parquet")
    return folder


@pytest.mark.parametrize("name", ["both", "one", "shards"])
def test_what_hugging_face_writes_is_read(saved: Path, tmp_path: Path, name: str) -> None:
    spec = DatasetBuildSpec("parquet", saved / name, None, tmp_path / "out")
    assert build_split(spec, workers=1).images == 4
    records = RecordSource(tmp_path / "out", "train")
    assert [records[i].label for i in range(4)] == ["wren", "jay", "jay", "wren"]
    assert [records[i].image for i in range(4)] == [image_bytes(i) for i in range(4)]
    assert records[0].captions[0].text == "a photo of a wren."


def test_a_split_of_several_is_chosen(saved: Path) -> None:
    assert len(ParquetTable(saved / "both", split="train")) == 4
    assert len(ParquetTable(saved / "both", split="train", subset="test")) == 2
    with pytest.raises(ValueError, match="which has test, train; choose one with --subset"):
        ParquetTable(saved / "both", split="validation")
    with pytest.raises(ValueError, match="--subset=test is not needed"):
        ParquetTable(saved / "one", subset="test")


@pytest.mark.parametrize("name", ["{}/0000", "{}", "{}-00000-of-00001"])
def test_train_and_test_are_not_mixed(tmp_path: Path, name: str) -> None:
    for part in ("train", "test"):
        path = tmp_path / f"{name.format(part)}.parquet"
        write(path, [{"image": PNG, "text": part}])
    assert texts(ParquetTable(tmp_path, split="train")) == [["train"]]
    assert texts(ParquetTable(tmp_path, split="train", subset="test")) == [["test"]]
    write(tmp_path / "extra.parquet", [{"image": PNG, "text": "x"}])
    with pytest.raises(ValueError, match=r"extra\.parquet, whose name tells no split"):
        ParquetTable(tmp_path, split="train")


@settings(max_examples=40, deadline=None)
@given(
    captions=st.lists(st.none() | st.lists(st.text(max_size=6), max_size=3), min_size=1),
    group=st.integers(1, 4),
    files=st.integers(1, 3),
)
def test_rows_keep_their_order(tmp_path_factory, captions, group, files) -> None:
    folder = tmp_path_factory.mktemp("rows")
    kind = pyarrow.schema(
        [("path", pyarrow.string()), ("caption", pyarrow.list_(pyarrow.string()))]
    )
    size = -(-len(captions) // files)
    for number in range(files):
        part = captions[number * size : (number + 1) * size]
        rows = [{"path": "a.png", "caption": value} for value in part]
        table = pyarrow.Table.from_pylist(rows, schema=kind)
        parquet.write_table(table, folder / f"part{number}.parquet", row_group_size=group)
    importer = ParquetTable(folder)
    assert texts(importer) == [value or [] for value in captions]


def test_paths_start_from_the_images_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [{"file": "a.png", "title": "x", "alt": "y"}])
    spec = DatasetBuildSpec("parquet", path, None, tmp_path / "out")
    with pytest.raises(ValueError, match=r"'a\.png' is a path, .* give --images=DIR"):
        build_split(spec, workers=1)
    images = write_images(tmp_path / "images")
    spec = DatasetBuildSpec(
        "parquet", path, images, tmp_path / "out", options={"caption_columns": ("alt", "title")}
    )
    assert build_split(spec, workers=1).captions == 2
    assert RecordSource(tmp_path / "out", "train")[0].id == "a.png"


def test_a_template_beside_captions_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [{"image": PNG, "text": "x", "label": "wren"}])
    with pytest.raises(ValueError, match=r"--template='a \{\}' makes captions from labels, and"):
        ParquetTable(path, template="a {}")
    assert (ParquetTable(path)[0].label, texts(ParquetTable(path))) == ("wren", [["x"]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": {"bytes": None, "path": ""}, "text": "x"}, "row 0: 'image' has neither"),
        ({"image": 3, "text": "x"}, "row 0: 'image' has neither"),
        ({"image": PNG, "text": 3}, "row 0: 'text' must be a text or a list of texts"),
        ({"image": PNG, "label": 1.5}, "row 0: 'label' is not a class: 1.5"),
    ],
)
def test_a_row_that_cannot_be_read_is_located(tmp_path: Path, row, message: str) -> None:
    importer = ParquetTable(write(tmp_path / "t.parquet", [row]))
    with pytest.raises(InvalidRecordError, match=rf"t\.parquet, {message}"):
        importer[0]


@pytest.mark.parametrize("image", [PNG, {"bytes": PNG, "path": "a.png"}])
def test_a_folder_of_images_that_is_not_read_is_refused(tmp_path: Path, image: Any) -> None:
    path = write(tmp_path / "t.parquet", [{"image": image, "text": "x"}])
    spec = DatasetBuildSpec("parquet", path, tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"--images=.* is not read: .* leave --images out"):
        build_split(spec, workers=1)


def test_numbers_without_names_make_no_captions(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [{"image": PNG, "label": 0}])
    with pytest.raises(ValueError, match="classes as numbers in 'label', without their names"):
        ParquetTable(path)
    assert texts(ParquetTable(path, template="the digit {}")) == [["the digit 0"]]
    both = write(tmp_path / "both.parquet", [{"image": PNG, "label": 0, "text": "x"}])
    assert texts(ParquetTable(both)) == [["x"]]


def test_a_damaged_page_costs_its_row_group(tmp_path: Path) -> None:
    rows = [{"image": bytes([i]) * 400, "text": "x"} for i in range(3)]
    path = write(tmp_path / "t.parquet", rows, row_group_size=1, compression="none")
    data = bytearray(path.read_bytes())
    column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + 12] = b"\xff" * 12
    path.write_bytes(data)
    importer = ParquetTable(path)
    assert [importer[i].content for i in (0, 2)] == [rows[0]["image"], rows[2]["image"]]
    with pytest.raises(InvalidRecordError, match=r"t\.parquet, row 1: cannot be read"):
        importer[1]


def test_another_kind_of_file_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "t.parquet"
    for data in (b"", b"PAR1", b"PAR1" + bytes(50) + b"PAR1"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"t\.parquet is not a table that can be read"):
            ParquetTable(path)
    (tmp_path / "t.arrow").write_bytes(b"ARROW1")
    with pytest.raises(ValueError, match=r"t\.arrow is not a table that can be read"):
        ParquetTable(tmp_path / "t.arrow")
    monkeypatch.setattr("grain_jax.data.importers.parquet.MAX_GROUP_BYTES", 10)
    write(path, [{"image": PNG, "text": "x"}])
    with pytest.raises(ValueError, match="Write it again with a smaller row_group_size"):
        ParquetTable(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "not what save_to_disk writes"),
        ("[]", "not what save_to_disk writes"),
        ({"_data_files": [{"filename": "../x.arrow"}]}, "names files that are not in its folder"),
        ({"_data_files": [{"filename": "x.arrow"}]}, "names files that are not in its folder"),
        ({"_data_files": [], "_indices_data_files": [{}]}, r"call flatten_indices\(\)"),
    ],
)
def test_a_damaged_folder_of_save_to_disk_is_refused(tmp_path: Path, state, message) -> None:
    text = state if isinstance(state, str) else json.dumps(state)
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ParquetTable(tmp_path)
