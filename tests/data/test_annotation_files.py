"""Rows of all stages, merged by image; what is damaged is named."""

import json
import pickle
import zlib
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.data.annotation_files import read_annotations
from grain_jax.data.annotation_rows import (
    STAGES,
    Provenance,
    Row,
    journal_line,
    row_of,
    row_values,
    values_of_line,
)

BOX = (0.1, 0.2, 0.5, 1.0)


def described(image: str, caption: str = "a bird", model: str = "m") -> Row:
    outputs = {"captions": [caption], "primary_subject": "bird", "descriptions": ["a red crest"]}
    return Row(image, "1" * 64, Provenance(model, "p"), outputs)


def failed(image: str, error: str = "no answer") -> Row:
    return Row(image, None, Provenance("m", "p"), error=error)


def grounded(image: str) -> Row:
    region = {"box_xyxy": list(BOX), "description": "a red crest", "score": 0.25}
    outputs = {
        "regions": [region],
        "phrases": ["a red crest", "a tail"],
        "best_scores": [0.25, 0.1],
    }
    return Row(image, "2" * 64, Provenance("owl"), outputs, input_hash="3" * 64)


def write(folder: Path, stage: str, rows: list[Row], rows_per_part: int = 2) -> None:
    with AnnotationWriter(folder, stage, rows_per_part=rows_per_part) as writer:
        for row in rows:
            writer.append(row)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "describe", [described("b.png"), described("a.png"), failed("c.png")])
    write(tmp_path, "ground", [grounded("b.png")])
    return tmp_path


def test_stages_are_merged_by_image(folder):
    found = read_annotations(folder)
    assert [each.image for each in found] == ["a.png", "b.png", "c.png"]
    assert found[0].captions == ("a bird",)
    assert found[0].regions == ()
    assert found[1].primary_subject == "bird"
    assert found[1].descriptions == ("a red crest",)
    assert found[1].regions[0].box_xyxy == BOX
    assert (found[1].regions[0].description, found[1].regions[0].score) == ("a red crest", 0.25)
    assert found[2].errors == {"describe": "no answer"}
    assert found[2].image_hash is None
    assert pickle.loads(pickle.dumps(found))[1] == found[1]


def test_rows_come_back_as_they_were_written(folder):
    rows = read_annotations(folder).rows(1)
    assert rows["ground"].outputs["best_scores"] == [0.25, 0.1]
    assert rows["ground"].input_hash == "3" * 64
    assert rows["describe"].provenance.settings == ("m", "p", "{}")
    assert rows["describe"].provenance.time.utcoffset().total_seconds() == 0
    assert "grain_jax " in rows["describe"].provenance.software


def test_the_later_row_counts_unless_it_is_an_error(tmp_path):
    write(tmp_path, "describe", [described("a.png", "old"), failed("b.png"), failed("c.png", "1")])
    write(
        tmp_path, "describe", [described("a.png", "new"), described("b.png"), failed("c.png", "2")]
    )
    write(tmp_path, "describe", [failed("a.png")])
    found = read_annotations(tmp_path)
    assert found[0].captions == ("new",)
    assert [each.errors for each in found] == [{}, {}, {"describe": "2"}]
    attempts = found.attempts("describe")
    assert {image: each.failed for image, each in attempts.items()} == {
        "a.png": True,
        "b.png": False,
        "c.png": True,
    }
    assert found.attempts("ground") == {}


actions = st.lists(
    st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 9)), min_size=1, max_size=12
)


@settings(max_examples=15, deadline=None)
@given(runs=st.lists(actions, min_size=1, max_size=3), rows_per_part=st.integers(1, 4))
def test_merging_agrees_with_a_dictionary(tmp_path_factory, runs, rows_per_part):
    folder, expected = tmp_path_factory.mktemp("ann"), {}
    for run in runs:
        rows = []
        for image, good, number in run:
            rows.append(described(image, str(number)) if good else failed(image, str(number)))
            if good or expected.get(image, ("", False))[1] is False:
                expected[image] = (str(number), good)
        write(folder, "describe", rows, rows_per_part)
    found = {
        each.image: (each.errors.get("describe", *each.captions), not each.errors)
        for each in read_annotations(folder)
    }
    assert found == expected


def test_texts_that_are_not_utf8_are_stored_with_marks(tmp_path):
    write(tmp_path, "describe", [described("a.png", "half \ud800 of a pair, and a \0 byte")])
    assert read_annotations(tmp_path)[0].captions == ("half ? of a pair, and a \0 byte",)


@settings(deadline=None)
@given(text=st.text(), number=st.integers(0, 2**40), cut=st.floats(0, 0.999))
def test_a_journal_line_is_read_back_or_refused(text, number, cut):
    row = Row("a.png", None, Provenance(text), {"captions": [text], "prompt_tokens": number})
    line = journal_line(row_values(row))
    assert line.count(b"\n") == 1
    assert row_of(values_of_line(line)) == row
    assert values_of_line(line[: int(cut * len(line))]) is None
    assert values_of_line(line.replace(b'"image"', b'"imago"')) is None


def test_columns_that_an_older_file_lacks_are_none(folder):
    import pyarrow.parquet

    path = next((folder / "ground").glob("part-*"))
    table = pyarrow.parquet.read_table(path).drop_columns(["best_scores"])
    pyarrow.parquet.write_table(table, path)
    manifest = next((folder / "ground").glob("manifest-*"))
    parts = json.loads(manifest.read_text())
    data = path.read_bytes()
    parts["parts"][path.name] |= {"bytes": len(data), "crc32": zlib.crc32(data)}
    manifest.write_text(json.dumps(parts))
    row = read_annotations(folder).rows(1)["ground"]
    assert set(row.outputs) == set(STAGES["ground"])
    assert row.outputs["best_scores"] is None


def part(folder: Path) -> Path:
    return min((folder / "describe").glob("part-*"))


def test_a_part_that_is_cut_or_missing_is_named(folder):
    path = part(folder)
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=rf"{path}.*not whole.*{len(data) - 10} bytes"):
        read_annotations(folder)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path}.*missing.*Restore"):
        read_annotations(folder)


def test_every_damaged_byte_is_noticed(folder):
    path = part(folder)
    data = path.read_bytes()
    for position in range(0, len(data), 97):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :])
        with pytest.raises(ValueError, match=rf"{path} is damaged.*checksum"):
            read_annotations(folder)


def test_a_part_that_no_manifest_lists_is_not_taken_for_complete(folder):
    path = part(folder)
    path.rename(path.with_name("part-00000009-0-of-7.parquet"))
    path.write_bytes(path.with_name("part-00000009-0-of-7.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"part-00000009-0-of-7\.parquet is in no manifest"):
        read_annotations(folder)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "does not name the format"),
        ('{"format": "grain_jax annotations", "version": 2}', "version 2"),
    ],
)
def test_a_marker_of_something_else_is_refused(folder, text, named):
    (folder / "annotations.json").write_text(text)
    with pytest.raises(ValueError, match=named):
        read_annotations(folder)


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no annotations\.json"):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    "parts",
    [
        '{"../../etc/passwd": {"rows": 1, "bytes": 1, "crc32": 1}}',
        '{"part-00000001-0-of-1.parquet": {"rows": "1", "bytes": 1, "crc32": 1}}',
        "[]",
        "3",
    ],
)
def test_a_manifest_of_something_else_is_refused(folder, parts):
    manifest = next((folder / "describe").glob("manifest-*"))
    manifest.write_text(f'{{"parts": {parts}}}')
    with pytest.raises(ValueError, match=rf"{manifest} is not a manifest"):
        read_annotations(folder)
