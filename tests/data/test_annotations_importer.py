"""`prepare --from=annotations`: what `annotate` wrote, as records."""

import io
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("pyarrow")

from grain_jax import prepare
from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.data.annotation_rows import Provenance, Row, content_hash
from grain_jax.data.importers import Importer
from grain_jax.data.importers.annotations import AnnotationRows
from grain_jax.data.importers.held_out import is_held_out
from grain_jax.data.records import Caption, Region
from grain_jax.data.tfds_records import RecordSource


def image_bytes(color: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return out.getvalue()


BOX = (0.25, 0.0, 0.5, 1.0)
ORIGIN = Provenance("m")
PNG = image_bytes("black")


def described(image: str, caption: str) -> Row:
    outputs = {"captions": [caption], "primary_subject": "bird", "descriptions": ["a crest"]}
    return Row(image, content_hash(PNG), ORIGIN, outputs)


def write(folder: Path, stage: str, *rows: Row) -> None:
    with AnnotationWriter(folder, stage) as writer:
        for row in rows:
            writer.append(row)


@pytest.fixture
def annotated(tmp_path):
    """(images, annotations): a with a region, b without, c whose answer could not be used."""
    images, folder = tmp_path / "images", tmp_path / "ann"
    images.mkdir()
    for name in "abc":
        (images / f"{name}.png").write_bytes(PNG)
    failed = Row("c.png", content_hash(PNG), ORIGIN, error="refusal: 'no'")
    write(folder, "describe", described("b.png", "b"), failed, described("a.png", "a"))
    region = {"box_xyxy": list(BOX), "description": "a crest", "score": 0.5}
    write(folder, "ground", Row("a.png", content_hash(PNG), ORIGIN, {"regions": [region]}))
    return images, folder


def build(images: Path, folder: Path, out: Path) -> int:
    places = [f"--input={folder}", f"--images={images}", f"--output={out}"]
    return prepare.main(["--from=annotations", *places, "--workers=1"])


def test_annotations_become_a_data_set(annotated, tmp_path, capsys):
    images, folder = annotated
    write(folder, "describe", described("../escape.png", "of another folder"))
    assert build(images, folder, tmp_path / "out") == 0
    records = RecordSource(tmp_path / "out", "train")
    assert [record.id for record in (records[i] for i in range(len(records)))] == ["a.png", "b.png"]
    assert records[0].captions == (Caption("a", "synthetic"),)
    assert records[0].regions == (Region(BOX, "a crest", 0.5),)
    assert records[1].captions == (Caption("b", "synthetic"),)
    assert records[1].regions == ()
    printed = capsys.readouterr().out
    assert "images dropped: no caption" in printed
    assert "images dropped: path outside the images folder" in printed


@pytest.mark.parametrize("stages", [("describe",), ("ground",), ("describe", "ground")])
def test_a_replaced_image_does_not_get_the_texts_of_the_earlier_one(
    annotated, tmp_path, capsys, stages
):
    """a.png is another image by now, and the stages but `stages` have not seen it."""
    images, folder = annotated
    new = image_bytes("red")
    (images / "a.png").write_bytes(new)
    region = {"box_xyxy": list(BOX), "description": "a red crest", "score": 0.5}
    outputs = {
        "describe": {"captions": ["red"], "descriptions": ["a red crest"]},
        "ground": {"regions": [region]},
    }
    for stage in stages:
        write(folder, stage, Row("a.png", content_hash(new), ORIGIN, outputs[stage]))
    assert build(images, folder, tmp_path / "out") == 0
    records = RecordSource(tmp_path / "out", "train")
    kept = {records[i].id for i in range(len(records))}
    counted = "image changed since it was annotated" in capsys.readouterr().out
    both = len(stages) == 2
    assert (kept, counted) == ({"a.png", "b.png"} if both else {"b.png"}, not both)


def test_only_what_changed_has_another_checksum(annotated):
    _, folder = annotated
    before = AnnotationRows(folder)
    assert isinstance(before, Importer)
    write(folder, "describe", described("b.png", "again"))
    after = AnnotationRows(folder)
    assert [before.checksum(i, i + 1) == after.checksum(i, i + 1) for i in range(3)] == [
        True,
        False,
        True,
    ]
    assert before.fingerprint() != after.fingerprint()
    assert after.fingerprint() == AnnotationRows(folder).fingerprint()
    assert after[1].captions == (Caption("again", "synthetic"),)


def test_rows_in_a_journal_have_a_checksum_of_their_own(tmp_path):
    with AnnotationWriter(tmp_path, "describe") as writer:
        writer.append(described("a.png", "a"))
        first = AnnotationRows(tmp_path).checksum(0, 1)
        writer.append(described("a.png", "b"))
        assert AnnotationRows(tmp_path).checksum(0, 1) != first


def test_another_folder_is_a_mistake(annotated, tmp_path, capsys):
    images, _ = annotated
    assert build(images, images, tmp_path / "out") == 2
    assert "has no annotations.json" in capsys.readouterr().err
    assert build(images, images / "a.png", tmp_path / "out") == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_holdout_is_the_same_images_as_of_class_folders(tmp_path):
    """Two disjoint splits, each with what is its own, checked and fingerprinted apart."""
    images, folder = tmp_path / "images", tmp_path / "ann"
    images.mkdir()
    names = [f"{number}.png" for number in range(20)]
    for name in names:
        (images / name).write_bytes(image_bytes("black"))
    write(folder, "describe", *(described(name, f"caption of {name}") for name in names))
    places = [f"--input={folder}", f"--images={images}", f"--output={tmp_path / 'out'}"]
    assert prepare.main(["--from=annotations", *places, "--workers=1", "--holdout=0.3"]) == 0
    ids = {}
    for split in ("train", "validation"):
        source = RecordSource(tmp_path / "out", split)
        records = [source[i] for i in range(len(source))]
        assert all(record.captions[0].text == f"caption of {record.id}" for record in records)
        ids[split] = {record.id for record in records}
    assert ids["train"] | ids["validation"] == set(names)
    assert not ids["train"] & ids["validation"]
    assert ids["validation"] == {name for name in names if is_held_out(name, 0.3)}
    train, held_out = (AnnotationRows(folder, holdout=0.3, held_out=part) for part in (False, True))
    assert train.fingerprint() != held_out.fingerprint()
    assert train.fingerprint() != AnnotationRows(folder).fingerprint()
