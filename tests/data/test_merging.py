"""Annotations joined onto images: as a dictionary joins them, whatever the number of workers."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared_records import noise_image
from tiny_collections import COLLECTIONS

from grain_jax import prepare
from grain_jax.data import build_dataset, merging
from grain_jax.data.build_dataset import build_split
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.importers import IMPORTERS, ImportedImage, ImportedRegion, InvalidRecordError
from grain_jax.data.merging import MergedImporter, merged
from grain_jax.data.records import Caption
from grain_jax.data.tfds_records import RecordSource

SIZE = (40, 20)
COUNT = 12


def write_lines(path: Path, entries: list) -> Path:
    lines = (each if isinstance(each, str) else json.dumps(each) for each in entries)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, of which the input describes every other one by a box."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    lines = []
    for i in range(COUNT):
        (tmp_path / "images" / f"sub/{i}.png").write_bytes(noise_image(i, SIZE))
        line = {"id": f"key{i}", "image": f"sub/{i}.png", "captions": [f"caption {i}"]}
        if i % 2:
            line |= {"regions": [{"bbox": [4, 2, 20, 10], "description": "own"}]}
            line |= {"bbox_unit": "pixel", "width": 40, "height": 20}
        lines.append(line)
    write_lines(tmp_path / "in.jsonl", lines)
    return tmp_path


def annotations(folder: Path, by: str) -> list[dict]:
    """In another order: for every third image two, for others one or none, and for no image some.

    Image i % 3 == 1 has none.
    """
    found = []
    for i in range(COUNT + 4):
        path = folder / "images" / f"sub/{i}.png"
        data = path.read_bytes() if i < COUNT else b"not downloaded %d" % i
        key = {
            "id": {"id": f"key{i}"},
            "image": {"image": f"./sub/{i}.png"},
            "hash": {"sha256": hashlib.sha256(data).hexdigest().upper()},
        }[by]
        for part in range({0: 2, 1: 0, 2: 1}[i % 3]):
            captions = [{"text": f"said {i}.{part}", "source": "synthetic"}, f"CAPTION  {i}"]
            box = [0.5, 0.5, 0.75, 1.0]
            region = {"bbox": box, "description": f"part {part} of {i}", "score": 0.5}
            found.append({**key, "captions": captions, "regions": [region]})
    random.Random(0).shuffle(found)
    return found


def spec(folder: Path, **changes) -> DatasetBuildSpec:
    values = {
        "format": "jsonl",
        "input": folder / "in.jsonl",
        "images": folder / "images",
        "out": folder / "out",
        "merge_annotations": folder / "more.jsonl",
    }
    return DatasetBuildSpec(**{**values, **changes})


@pytest.mark.parametrize("by", ["id", "image", "hash"])
@pytest.mark.parametrize("workers", [1, 2])
def test_as_a_dictionary_joins(folder: Path, by, workers, monkeypatch) -> None:
    if workers == 2 and by == "image":
        pytest.skip("as by id")
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 5)
    lines = annotations(folder, by)
    write_lines(folder / "more.jsonl", lines)
    figures = build_split(spec(folder, merge_by=by), workers=workers)
    source = RecordSource(folder / "out", "train")
    assert len(source) == COUNT
    for i in range(COUNT):
        record = source[i]
        joined = [line for line in lines if str(line["captions"][1]) == f"CAPTION  {i}"]
        said = [line["captions"][0]["text"] for line in joined]
        assert [c.text for c in record.captions] == [f"caption {i}", *said]
        assert [c.source for c in record.captions[1:]] == ["synthetic"] * len(said)
        own = [((0.1, 0.1, 0.5, 0.5), "own", 1.0)] if i % 2 else []
        more = [((0.5, 0.5, 0.75, 1.0), line["regions"][0]["description"], 0.5) for line in joined]
        boxes = [(r.box_xyxy, r.description, r.score) for r in record.regions]
        assert [each[1:] for each in boxes] == [each[1:] for each in [*own, *more]]
        for box, expected in zip(boxes, [*own, *more], strict=True):
            assert box[0] == pytest.approx(expected[0])
    assert figures.merged_images == 8  # of 12, a third has none
    assert figures.annotations == len(lines) == 17
    assert figures.merged_annotations == 12  # 0, 3, 6, 9 twice, 2, 5, 8, 11 once
    assert any("6 annotations of" in note and f"the {by} of an" in note for note in figures.notes)


def test_the_report_has_the_coverage(folder: Path, capsys) -> None:
    write_lines(folder / "more.jsonl", annotations(folder, "id"))
    command = ["--from=jsonl", f"--input={folder / 'in.jsonl'}", f"--images={folder / 'images'}"]
    command += [f"--output={folder / 'out'}", "--workers=1"]
    assert prepare.main([*command, f"--merge-annotations={folder / 'more.jsonl'}"]) == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "images with a merged annotation 8 (66.7%)" in printed
    assert "annotations to merge 17" in printed
    assert "annotations without an image 5 (29.4%)" in printed


def test_no_match_is_said(folder: Path, capsys) -> None:
    write_lines(folder / "more.jsonl", [{"id": "else", "captions": ["a"]}])
    command = ["--from=jsonl", f"--input={folder / 'in.jsonl'}", f"--images={folder / 'images'}"]
    command += [f"--output={folder / 'out'}", "--workers=1", "--merge_by=id"]
    assert prepare.main([*command, f"--merge_annotations={folder / 'more.jsonl'}"]) == 0
    assert "no image has an annotation" in capsys.readouterr().out


def test_changed_annotations_are_another_input(folder: Path) -> None:
    write_lines(folder / "more.jsonl", annotations(folder, "id"))
    build_split(spec(folder), workers=1)
    build_split(spec(folder), workers=1)  # the same: built already
    for changes in ({"merge_by": "image"}, {"merge_annotations": None}):
        if changes.get("merge_by"):
            write_lines(folder / "more.jsonl", annotations(folder, "image"))
        with pytest.raises(ValueError, match=r"different: input"):
            build_split(spec(folder, **changes), workers=1)
    write_lines(folder / "more.jsonl", annotations(folder, "id")[1:])
    with pytest.raises(ValueError, match=r"different: input"):
        build_split(spec(folder), workers=1)


def test_shards_are_rebuilt_after_the_annotations_changed(folder: Path, monkeypatch) -> None:
    def stop(state: build_dataset.Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_dataset, "MIN_SHARD", 6)
    write_lines(folder / "more.jsonl", [{"id": "key0", "captions": ["before"]}])
    with pytest.raises(KeyboardInterrupt):
        build_split(spec(folder), workers=1, progress=stop)
    write_lines(folder / "more.jsonl", [{"id": "key0", "captions": ["after"]}])
    build_split(spec(folder), workers=1)
    texts = [caption.text for caption in RecordSource(folder / "out", "train")[0].captions]
    assert texts == ["caption 0", "after"]


@pytest.mark.parametrize(
    ("line", "by", "message"),
    [
        ("{", "id", r"more\.jsonl:2: not JSON"),
        ('{"id": "a", "caption": "b"}', "id", r"more\.jsonl:2: .*has no 'captions'"),
        ('{"captions": ["b"]}', "id", r"more\.jsonl:2: 'id' is missing"),
        ('{"id": 3, "captions": ["b"]}', "id", r"more\.jsonl:2: 'id' must be a string"),
        ('{"id": "a", "captions": ["b"]}', "image", r"more\.jsonl:2: 'image' is missing"),
        ('{"id": "a", "captions": ["b"]}', "hash", r"more\.jsonl:2: 'sha256' must be"),
        ('{"sha256": "12", "captions": ["b"]}', "hash", r"more\.jsonl:2: 'sha256' .* got \"12\""),
        ('{"id": "a", "regions": [{"bbox": 1}]}', "id", r"more\.jsonl:2: regions\[0\]"),
    ],
)
def test_an_unreadable_line_is_refused_or_counted(folder: Path, line, by, message) -> None:
    good = annotations(folder, by)
    write_lines(folder / "more.jsonl", [good[0], line, *good[1:]])
    with pytest.raises(ValueError, match=message):
        build_split(spec(folder, merge_by=by), workers=1)
    figures = build_split(spec(folder, merge_by=by, on_error="skip"), workers=1)
    assert (figures.annotations, figures.merged_images, figures.images) == (17, 8, COUNT)
    assert any("1 annotations of" in note and "more.jsonl:2" in note for note in figures.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge_annotations": Path("nowhere")}, "--merge_annotations=nowhere does not exist"),
        ({"merge_annotations": None, "merge_by": "id"}, "--merge_by=id needs --merge_annotations"),
        ({"merge_by": "url"}, "--merge_by must be one of"),
    ],
)
def test_options_are_checked(folder: Path, changes, message) -> None:
    write_lines(folder / "more.jsonl", [{"id": "key0", "captions": ["a"]}])
    with pytest.raises(ValueError, match=message):
        build_split(spec(folder, **changes), workers=1)


def test_another_kind_of_file_is_named_as_the_option(folder: Path) -> None:
    (folder / "more.jsonl").write_bytes(b"PAR1....")
    with pytest.raises(ValueError, match=r"--merge_annotations=.*Parquet"):
        build_split(spec(folder), workers=1)
    write_lines(folder / "more.jsonl", [{"id": "key0"}])
    with pytest.raises(ValueError, match="no annotation that can be joined"):
        build_split(spec(folder), workers=1)


def test_an_image_that_is_missing_counts_as_before(folder: Path) -> None:
    write_lines(folder / "more.jsonl", annotations(folder, "hash"))
    (folder / "images/sub/0.png").unlink()
    figures = build_split(spec(folder, merge_by="hash"), workers=1)
    assert figures.dropped_images == {"missing file": 1}
    assert figures.merged_images == 7


def test_boxes_of_another_image_are_refused(folder: Path) -> None:
    region = {"bbox": [1, 1, 9, 9], "description": "x"}
    line = {"id": "key2", "regions": [region], "bbox_unit": "pixel", "width": 20, "height": 40}
    for key in ("key1", "key2"):  # with boxes of its own, and without
        write_lines(folder / "more.jsonl", [line | {"id": key}])
        with pytest.raises(ValueError, match="of another shape"):
            build_split(spec(folder), workers=1)


def test_rows_of_one_hash_are_told_apart(folder: Path, monkeypatch) -> None:
    class Digest:
        def digest(self) -> bytes:
            return b"\0" * 8

    write_lines(folder / "more.jsonl", annotations(folder, "id"))
    plain = [*map(MergedImporter.__getitem__, [opened(folder)] * COUNT, range(COUNT))]
    monkeypatch.setattr(merging.hashlib, "blake2b", lambda data, digest_size: Digest())
    assert [opened(folder)[i] for i in range(COUNT)] == plain


def opened(folder: Path) -> MergedImporter:
    importer = spec(folder).importer()
    assert isinstance(importer, MergedImporter)
    return importer


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_importer_can_be_joined(name: str, tmp_path: Path) -> None:
    (tmp_path / "collection").mkdir()
    collection = COLLECTIONS[name](tmp_path / "collection")
    values = {"options": collection.options, **collection.build}
    plain = DatasetBuildSpec(name, collection.input, collection.images, tmp_path / "a", **values)
    build_split(plain, workers=1)
    before = RecordSource(tmp_path / "a", "train")
    stored = [before[i] for i in range(len(before))]
    lines = [{"id": record.id, "captions": [f"added to {record.id}"]} for record in stored[1:]]
    more = write_lines(tmp_path / "more.jsonl", lines)
    joined = DatasetBuildSpec(
        name, collection.input, collection.images, tmp_path / "b", merge_annotations=more, **values
    )
    figures = build_split(joined, workers=1)
    assert (figures.merged_images, figures.merged_annotations) == (2, 2)
    after = RecordSource(tmp_path / "b", "train")
    for i, record in enumerate(stored):
        added = [Caption(f"added to {record.id}")] if i else []
        own = [c for c in record.captions if not added or c.source != "regions"]
        assert [*after[i].captions] == [*own, *added]
        assert (after[i].image, after[i].regions) == (record.image, record.regions)


def test_a_folder_of_annotate_is_joined(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    collection = COLLECTIONS["annotations"](tmp_path / "annotated")
    assert collection.images is not None
    names = sorted(path.name for path in collection.images.iterdir())
    lines = [{"image": name, "captions": ["own"]} for name in names]
    write_lines(tmp_path / "bare.jsonl", lines)
    alone = DatasetBuildSpec("annotations", collection.input, collection.images, tmp_path / "a")
    build_split(alone, workers=1)
    expected = RecordSource(tmp_path / "a", "train")
    for by in ("id", "image", "hash"):
        changes = {"input": tmp_path / "bare.jsonl", "images": collection.images, "merge_by": by}
        changes |= {"merge_annotations": collection.input, "out": tmp_path / by}
        figures = build_split(spec(folder, **changes), workers=1)
        found = RecordSource(tmp_path / by, "train")
        for i in range(len(expected)):
            assert found[i].captions == (Caption("own"), *expected[i].captions)
            assert found[i].regions == expected[i].regions
        assert figures.merged_images == len(expected) == figures.annotations


boxes = st.tuples(*[st.floats(0, 0.45)] * 2, *[st.floats(0.5, 1)] * 2)


@given(st.lists(st.tuples(st.sampled_from(["fraction", "file", "stored"]), boxes), max_size=4))
def test_boxes_stay_where_they_are_in_any_mixture_of_units(parts) -> None:
    items = []
    for unit, box in parts:
        sides = {"fraction": (1, 1), "file": SIZE, "stored": (400, 200)}[unit]
        scaled = tuple(v * s for v, s in zip(box, sides * 2, strict=True))
        items.append(
            ImportedImage(
                "a",
                "a",
                regions=(ImportedRegion(scaled, "x"),),
                box_unit="fraction" if unit == "fraction" else "pixel",
                size=(400, 200) if unit == "stored" else None,
            )
        )
    bare = ImportedImage("a", "a")
    joined = merged(bare, dict(enumerate(items)), lambda: SIZE)
    sides = (1, 1) if joined.box_unit == "fraction" else joined.size or SIZE
    found = [np.asarray(r.box_xyxy) / np.asarray(sides * 2) for r in joined.regions]
    assert np.allclose(found, [box for _, box in parts] or found)
    assert joined.merged_rows == tuple(range(len(parts)))


def test_a_record_that_cannot_be_read_stays_one(folder: Path) -> None:
    write_lines(folder / "more.jsonl", annotations(folder, "id"))
    text = (folder / "in.jsonl").read_text()
    (folder / "in.jsonl").write_text(text + "{\n")
    with pytest.raises(InvalidRecordError, match=rf"in\.jsonl:{COUNT + 1}"):
        opened(folder)[COUNT]
