"""The formats that prepare reads, parsed from handwritten and published samples."""

import hashlib
import json
import pickle
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from places import SHARED

from grain_jax.data.build_dataset import build_split
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.importers import InvalidRecordError
from grain_jax.data.importers.flickr30k_entities import (
    Flickr30kEntities,
    parse_annotation,
    parse_sentences,
)
from grain_jax.data.importers.jsonl import JsonLines, parse_line
from grain_jax.data.records import Caption
from grain_jax.data.tfds_records import RecordSource

SAMPLE = SHARED / "data" / "flickr30k_entities_sample.zip"

# JSONL


def line(**entry) -> bytes:
    return json.dumps({"image": "a.jpg", **entry}).encode()


def test_a_whole_line() -> None:
    item = parse_line(
        line(
            id="7",
            captions=["one", {"text": "two", "source": "synthetic"}],
            regions=[{"bbox": [1, 2, 3.5, 4], "description": "crest", "score": 0.5}],
            label="wren",
            bbox_unit="pixel",
            width=20,
            height=10,
            licence="none",
        )
    )
    assert (item.id, item.image, item.label) == ("7", "a.jpg", "wren")
    assert item.captions == (Caption("one"), Caption("two", "synthetic"))
    assert item.regions[0].box_xyxy == (1.0, 2.0, 3.5, 4.0)
    assert (item.regions[0].description, item.regions[0].score) == ("crest", 0.5)
    assert (item.box_unit, item.size, item.ignored) == ("pixel", (20, 10), ("licence",))


def test_the_shortest_line() -> None:
    item = parse_line(line())
    assert (item.id, item.captions, item.regions, item.label) == ("a.jpg", (), (), None)
    assert (item.box_unit, item.size) == ("fraction", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not JSON: .* column 2"),
        (b"\xff{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"image": "a", "x": ' + b"9" * 5000 + b"}", "not JSON that can be read: .*digits"),
        (b"3", "expected an object"),
        (b"{}", "'image' is missing"),
        (b'{"image": ""}', "'image' is missing"),
        (line(image=3), "'image' must be a string"),
        (line(id=3), "'id' must be a string"),
        (line(captions="x"), "'captions' must be a list"),
        (line(captions=[3]), r"captions\[0\] must be a string or"),
        (line(captions=["x", {"text": "x", "source": "blip"}]), r"captions\[1\]: 'source' must"),
        (line(regions=[3]), r"regions\[0\] must be an object"),
        (line(regions=[{"bbox": [0, 0, 1], "description": "x"}]), r"x0, y0, x1, y1"),
        (line(regions=[{"bbox": [0, 0, 1, "1"], "description": "x"}]), r"x0, y0, x1, y1"),
        (line(regions=[{"bbox": [0, 0, 1, True], "description": "x"}]), r"x0, y0, x1, y1"),
        (line(regions=[{"bbox": [0, 0, 1, 1], "description": ["x"]}]), "one region for each"),
        (line(regions=[{"bbox": [0, 0, 1, 1]}]), "'description' must be a string"),
        (line(regions=[{"bbox": [0, 0, 1, 1], "description": "x", "score": "1"}]), "'score'"),
        (line(bbox_unit="cm"), "'bbox_unit' must be one of"),
        (line(bbox_unit="pixel", width=10), "'width' and 'height' must be positive"),
        (line(bbox_unit="pixel", width=10, height=-1), "'width' and 'height' must be positive"),
        (line(bbox_unit="pixel", width=10, height=0), "'width' and 'height' must be positive"),
        (line(bbox_unit="pixel", width=10, height=10**400), "whole numbers up to 1000000"),
        (line(label=3), "'label' must be a string"),
    ],
)
def test_an_invalid_line_is_explained(text: bytes, message: str) -> None:
    with pytest.raises(InvalidRecordError, match=message):
        parse_line(text)


def test_numbers_too_large_for_floats_reach_the_checks() -> None:
    bbox = f'{{"image": "a", "regions": [{{"bbox": [0, 0, 1, {10**400}], "description": "x"}}]}}'
    assert parse_line(bbox.encode()).regions[0].box_xyxy[3] == float("inf")


def test_lines_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"image": "1"}\r\n\n  \n{"image": "2"}\n{"image": 3}')
    items = JsonLines(path)
    assert len(items) == 3
    assert [items[i].image for i in range(2)] == ["1", "2"]
    with pytest.raises(InvalidRecordError, match=r"a\.jsonl:5: 'image' must be a string"):
        items[2]


def test_a_number_that_python_does_not_read_is_located(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"image": "1"}\n{"image": "2", "width": ' + "9" * 5000 + "}\n")
    with pytest.raises(InvalidRecordError, match=r"a\.jsonl:2: not JSON that can be read"):
        JsonLines(path)[1]


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grain_jax.data.importers.jsonl.MAX_LINE_BYTES", 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"image": "' + b"x" * 30 + b'"}\n{"image": "2"}\n')
    items = JsonLines(path)
    with pytest.raises(InvalidRecordError, match=r"a\.jsonl:1: the line is longer than 20 bytes"):
        items[0]
    assert items[1].image == "2"


def test_lines_are_found_in_any_order_though_few_places_are_kept(tmp_path: Path) -> None:
    draw, path = random.Random(0), tmp_path / "a.jsonl"
    lines, numbers = [], []
    for number in range(1, 2_001):
        blank = draw.random() < 0.3
        lines.append(draw.choice(["", " \t"]) if blank else json.dumps({"image": str(number)}))
        if draw.random() < 0.02:
            lines[-1] += " " * 2**17  # some are far longer, so that bytes decide what is kept
        numbers += [] if blank else [number]
    path.write_text("\n".join(lines))
    items = JsonLines(path)
    assert len(items) == len(numbers)
    order = [*range(len(items)), *draw.sample(range(len(items)), 500)]
    for one in (items, pickle.loads(pickle.dumps(items))):
        for index in order:
            assert one[index].image == str(numbers[index])
            assert one.where(index) == f"{path}:{numbers[index]}"
    whole = hashlib.sha256(b"".join(_bytes_from(path, numbers[7], numbers[300])))
    assert items.checksum(7, 300) == whole.hexdigest()
    assert len(pickle.dumps(items)) < 3 * len(items)  # one place a line would be 16 bytes
    with pytest.raises(IndexError, match=f"which has {len(items)}"):
        items.line(len(items))


def _bytes_from(path: Path, first: int, stop: int) -> list[bytes]:
    """Lines `first` to `stop` - 1 of a file."""
    return path.read_bytes().splitlines(keepends=True)[first - 1 : stop - 1]


def test_threads_read_different_lines_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"image": "{i}"}}\n' for i in range(1_000)))
    items = JsonLines(path)
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda i: items[i].image, range(0, 1_000, 3)))
    assert images == [str(i) for i in range(0, 1_000, 3)]


# Flickr30k Entities

SENTENCES = """\
[/EN#1/people A girl] plays with [/EN#2/other paint] on [/EN#0/notvisual it] .
[/EN#1/people A very young girl] sits in [/EN#3/scene the grass] on [/EN#4/bodyparts/other feet] .
"""
ANNOTATION = """\
<annotation><filename>7.jpg</filename><size><width>100</width><height>50</height><depth>3</depth></size>
<object><name>2</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>100</xmax><ymax>25</ymax></bndbox></object>
<object><name>2</name><name>1</name>
<bndbox><xmin>51</xmin><ymin>11</ymin><xmax>75</xmax><ymax>50</ymax></bndbox></object>
<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>
</annotation>
"""


def test_sentences() -> None:
    captions, phrases = parse_sentences(SENTENCES)
    assert captions == [
        "A girl plays with paint on it .",
        "A very young girl sits in the grass on feet .",
    ]
    assert phrases == {
        "1": ["A girl", "A very young girl"],
        "2": ["paint"],
        "3": ["the grass"],
        "4": ["feet"],
    }


def test_annotation_counts_pixels_from_one_and_includes_the_last() -> None:
    size, boxes = parse_annotation(ANNOTATION)
    assert size == (100, 50)
    assert boxes == {
        "2": [(0.0, 0.0, 100.0, 25.0), (50.0, 10.0, 75.0, 50.0)],
        "1": [(50.0, 10.0, 75.0, 50.0)],
    }


@pytest.fixture
def entities(tmp_path: Path) -> Path:
    for name in ("Annotations", "Sentences"):
        (tmp_path / name).mkdir()
    for name in ("7", "8"):
        (tmp_path / "Annotations" / f"{name}.xml").write_text(ANNOTATION)
        (tmp_path / "Sentences" / f"{name}.txt").write_text(SENTENCES)
    (tmp_path / "val.txt").write_text("8\n")
    return tmp_path


def test_each_box_of_each_chain_is_a_region(entities: Path) -> None:
    items = Flickr30kEntities(entities)
    assert [items[i].id for i in range(len(items))] == ["7", "8"]
    item = items[0]
    assert (item.image, item.box_unit, item.size) == ("7.jpg", "pixel", (100, 50))
    assert [(r.description, r.box_xyxy) for r in item.regions] == [
        ("A very young girl", (50.0, 10.0, 75.0, 50.0)),
        ("paint", (0.0, 0.0, 100.0, 25.0)),
        ("paint", (50.0, 10.0, 75.0, 50.0)),
    ]


def test_a_list_of_ids_chooses(entities: Path) -> None:
    items = Flickr30kEntities(entities / "val.txt")
    assert [items[i].id for i in range(len(items))] == ["8"]


def test_missing_and_damaged_files_are_named(entities: Path) -> None:
    items = Flickr30kEntities(entities)
    (entities / "Annotations" / "7.xml").write_text("<annotation><size/></annotation>")
    with pytest.raises(InvalidRecordError, match=r"7\.xml: not an annotation .*no <size/width>"):
        items[0]
    for wrong, message in (
        (("<width>100<", "<width>0<"), "<size> of 0 x 50 pixels"),
        (("<height>50<", "<height>-1<"), "<size> of 100 x -1 pixels"),
        (("<xmax>100<", f"<xmax>{10**400}<"), "<xmax> beyond 1000000 pixels"),
        (("<xmax>100<", f"<xmax>{'9' * 5000}<"), "digits"),
    ):
        (entities / "Annotations" / "7.xml").write_text(ANNOTATION.replace(*wrong))
        with pytest.raises(InvalidRecordError, match=rf"7\.xml: not an annotation .*{message}"):
            items[0]
    (entities / "Annotations" / "7.xml").write_text("<annotation>")
    with pytest.raises(InvalidRecordError, match=r"7\.xml: not an annotation"):
        items[0]
    (entities / "Sentences" / "8.txt").unlink()
    with pytest.raises(InvalidRecordError, match=r"8\.txt: No such file"):
        items[1]
    with pytest.raises(ValueError, match="Annotations/"):
        Flickr30kEntities(entities / "Sentences")


@pytest.mark.skipif(
    not SAMPLE.exists(), reason="needs ../shared/data/flickr30k_entities_sample.zip"
)
def test_the_published_sample(tmp_path: Path) -> None:
    with zipfile.ZipFile(SAMPLE) as archive:
        archive.extractall(tmp_path)
    root = tmp_path / "flickr30k_entities_sample"
    statistics = build_split(
        DatasetBuildSpec(
            "flickr30k_entities", root, root / "images", tmp_path / "out", split="dev"
        ),
        workers=1,
    )
    assert statistics.images == 24
    assert statistics.captions == 120
    assert not statistics.dropped_images
    assert not statistics.dropped_regions
    source = RecordSource(tmp_path / "out", "dev")
    assert len(source) == 24
    assert sum(len(source[i].regions) for i in range(24)) == statistics.regions > 100
    record = next(source[i] for i in range(24) if source[i].id == "1002674143")
    assert record.captions[4].text == ("Young girl with pigtails painting outside in the grass .")
    girl = record.regions[0]
    assert girl.description == "A little girl"
    assert girl.box_xyxy == pytest.approx((67 / 500, 233 / 400, 221 / 500, 366 / 400))
