"""The stage `ground` with real detectors of random weights, on images and annotations on disk."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_detectors import OWL_SIDE, write_detector

pytest.importorskip("pyarrow")

from grain_jax.annotation.backends.detectors import open_detector
from grain_jax.annotation.backends.placement import PreparedImage
from grain_jax.annotation.detection import SELECTIONS, Selection
from grain_jax.annotation.examples import read_examples
from grain_jax.annotation.ground import Ground, GroundSettings
from grain_jax.annotation.phrases import RulePhrases
from grain_jax.annotation.queries import (
    CaptionPhraseQueries,
    ClassDescriptionQueries,
    DescriptionQueries,
    annotated_captions,
    imported_captions,
)
from grain_jax.annotation.run import StageSpec, run_stage
from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.data.annotation_files import read_annotations
from grain_jax.data.annotation_rows import Provenance, Row, content_hash, texts_hash
from grain_jax.data.image_files import SkippedSample

pytestmark = pytest.mark.torch
SIZES = {"birds/wide.png": (40, 120), "birds/tall.png": (130, 50), "dogs/square.png": (96, 96)}
DESCRIPTIONS = {
    "birds/wide.png": ["a red bird", "small black wings", "A red  bird"],
    "birds/tall.png": ["a small bird"],
    "dogs/square.png": ["a dog", "a ball", "a bus stop"],
}


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors") / "owlv2"
    return open_detector(str(write_detector(folder, "owlv2")), device="cpu")


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / name)
    return folder


@pytest.fixture
def annotations(tmp_path) -> Path:
    folder = tmp_path / "annotations"
    describe(folder, DESCRIPTIONS)
    return folder


def describe(folder: Path, descriptions: dict[str, list[str]]) -> None:
    with AnnotationWriter(folder, "describe") as writer:
        for image, texts in descriptions.items():
            outputs = {"descriptions": texts, "captions": [f"{texts[0]} sits on a wooden bench ."]}
            writer.append(Row(image, None, Provenance("by hand"), outputs))


def ground(images, annotations, detector, queries, **settings):
    """The report, and {image: row} of the stage."""
    stage = Ground(images, detector, queries, GroundSettings(threads=2, **settings))
    report = run_stage(stage, StageSpec(images, annotations))
    found = read_annotations(annotations)
    rows = {image: found.rows(place).get("ground") for place, image in enumerate(found.images)}
    return report, {image: row for image, row in rows.items() if row is not None}


def pixels(images: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(images / name))


def test_each_description_gets_its_best_box_in_fractions_of_the_image(images, annotations, owl):
    report, rows = ground(
        images,
        annotations,
        owl,
        DescriptionQueries(annotations),
        selection=SELECTIONS["best_per_text"].replace(threshold=0.0),
        batch_size=2,
    )
    assert (report.rows, report.examples) == (3, [])
    for name, row in rows.items():
        texts = list(dict.fromkeys(" ".join(t.lower().split()) for t in DESCRIPTIONS[name]))
        assert row.outputs["phrases"] == [t for t in DESCRIPTIONS[name] if "A red" not in t]
        assert row.image_hash == content_hash((images / name).read_bytes())
        assert row.input_hash == texts_hash(row.outputs["phrases"])
        (scored,) = owl.detect([owl.prepare(pixels(images, name))], [texts])
        regions = {each["description"]: each for each in row.outputs["regions"]}
        assert list(regions) == sorted(regions, key=lambda text: -regions[text]["score"])
        assert set(regions) == set(texts)
        for column, text in enumerate(texts):
            inside = np.clip(scored.boxes_xyxy, 0, 1)
            real = ((inside[:, 2:] - inside[:, :2]) > 0).all(axis=1)
            best = max(np.nonzero(real)[0], key=lambda i: scored.scores[i, column])
            np.testing.assert_allclose(regions[text]["box_xyxy"], inside[best], atol=1e-4)
            assert regions[text]["score"] == pytest.approx(scored.scores[best, column], abs=1e-4)
        np.testing.assert_allclose(row.outputs["best_scores"], scored.scores.max(axis=0), atol=1e-4)


def test_what_is_measured_is_of_all_sessions(images, annotations, owl):
    stage = Ground(images, owl, DescriptionQueries(annotations), GroundSettings(threads=1))
    assert stage.measured()["detectors"] == 0
    measured = []
    for session in (["birds/wide.png"], ["birds/tall.png", "dogs/square.png"], []):
        assert len(list(stage.rows(iter(session)))) == len(session)
        measured.append(stage.measured())
    assert [each["detector images"] for each in measured] == [1, 3, 3]
    assert [each["detectors"] for each in measured] == [1, 1, 1]
    for name in ("detector seconds", "detector wall seconds"):
        first, second, last = (each[name] for each in measured)
        assert 0 < first < second == last
    assert measured[-1]["detector seconds"] <= measured[-1]["detector wall seconds"]


def test_a_second_run_looks_only_for_what_has_changed(images, annotations, owl):
    first, _ = ground(images, annotations, owl, DescriptionQueries(annotations))
    assert first.rows == 3
    second, _ = ground(images, annotations, owl, DescriptionQueries(annotations))
    assert (second.rows, second.selection.done) == (0, 3)
    describe(annotations, {"dogs/square.png": ["a red ball"]})
    third, rows = ground(images, annotations, owl, DescriptionQueries(annotations))
    assert third.rows == 1
    assert rows["dogs/square.png"].outputs["phrases"] == ["a red ball"]
    other = Selection(threshold=0.5)
    changed, _ = ground(images, annotations, owl, DescriptionQueries(annotations), selection=other)
    assert (changed.rows, changed.selection.changed) == (0, 3)


def test_rows_of_other_queries_are_kept_until_asked(images, annotations, tmp_path, owl):
    _, before = ground(images, annotations, owl, DescriptionQueries(annotations))
    (tmp_path / "classes.json").write_text(json.dumps({"birds": ["a beak"], "dogs": ["a tail"]}))
    (tmp_path / "captions.jsonl").write_text(
        "\n".join(json.dumps({"image": name, "captions": ["a hat"]}) for name in SIZES)
    )
    finder = RulePhrases()
    described = CaptionPhraseQueries(annotated_captions(annotations), finder)
    captions = imported_captions("jsonl", tmp_path / "captions.jsonl")
    given = CaptionPhraseQueries(captions, finder, keep_captions=True)
    classes = ClassDescriptionQueries(tmp_path / "classes.json", images, print)
    for queries in (described, given, classes):
        report, rows = ground(images, annotations, owl, queries)
        assert (report.rows, report.selection.changed) == (0, 3)
        assert rows == before
    stage = Ground(images, owl, classes, GroundSettings(threads=2))
    assert run_stage(stage, StageSpec(images, annotations, redo_changed=True)).rows == 3
    report, _ = ground(images, annotations, owl, classes)
    assert (report.rows, report.selection.changed) == (0, 0)
    report, _ = ground(images, annotations, owl, given)
    assert (report.rows, report.selection.changed) == (0, 3)


def test_a_bad_image_is_a_row_with_an_error_and_the_others_are_done(images, annotations, owl):
    whole = (images / "birds/tall.png").read_bytes()
    (images / "birds/tall.png").write_bytes(whole[: len(whole) // 2])
    (images / "dogs/empty.jpg").touch()
    describe(annotations, {**DESCRIPTIONS, "dogs/empty.jpg": ["a dog"]})
    report, rows = ground(images, annotations, owl, DescriptionQueries(annotations))
    assert report.failed == {"corrupt image": 2}
    assert "birds/tall.png" in rows["birds/tall.png"].error
    assert "0 bytes" in rows["dogs/empty.jpg"].error
    assert rows["dogs/square.png"].error is None
    assert rows["dogs/square.png"].outputs["best_scores"]


def test_an_image_without_a_description_is_left_for_later(images, annotations, owl):
    Image.new("RGB", (30, 30)).save(images / "later.png")
    describe(annotations, {"dogs/square.png": [" "]})
    report, rows = ground(images, annotations, owl, DescriptionQueries(annotations))
    assert report.selection.skipped == {"not described yet": 1, "no description": 1}
    assert set(rows) == {"birds/wide.png", "birds/tall.png"}


def test_the_official_behaviour_has_a_name(images, annotations, tmp_path):
    """Ten texts with padding, squashed images, no NMS, a location for its best text only."""
    folder = write_detector(tmp_path / "owl", "owlv2")
    detector = open_detector(str(folder), device="cpu", official_images=True)
    many = ["- a red bird", *(f"bird {number}" for number in range(11))]
    describe(annotations, {"birds/wide.png": many, "birds/tall.png": ["* a small bird"]})
    _, rows = ground(
        images,
        annotations,
        detector,
        DescriptionQueries(annotations),
        selection=SELECTIONS["official"],
        official_images=True,
    )
    for name, texts in (("birds/wide.png", many), ("birds/tall.png", ["* a small bird"])):
        asked = [text.lstrip("-* ") for text in texts[:10]]
        padded = asked + ["<pad>"] * (10 - len(asked))
        # The image as that code makes it, by Pillow alone.
        image = Image.open(images / name).resize((224, 224), Image.Resampling.BICUBIC)
        canvas = np.asarray(image.resize((OWL_SIDE, OWL_SIDE), Image.Resampling.BILINEAR))
        (scored,) = detector.detect([PreparedImage(canvas)], [padded])
        expected = sorted(
            (float(row.max()), padded[row.argmax()])
            for row, box in zip(scored.scores, np.clip(scored.boxes_xyxy, 0, 1), strict=True)
            if row.max() > 0.3 and (box[2:] > box[:2]).all() and padded[row.argmax()] != "<pad>"
        )
        found = sorted((r["score"], r["description"]) for r in rows[name].outputs["regions"])
        assert [text for _, text in found] == [text for _, text in expected]
        np.testing.assert_allclose(
            [score for score, _ in found], [score for score, _ in expected], atol=1e-4
        )
        assert len(found) > 1
        assert len(rows[name].outputs["best_scores"]) == len(texts)
    assert json.loads(rows["birds/wide.png"].provenance.sampling)["official_images"] is True


def test_class_descriptions_are_looked_for_in_the_images_of_the_class(images, tmp_path, owl):
    path = tmp_path / "descriptions.json"
    path.write_text(json.dumps({"Birds": ["a beak", "wings"], "cats": ["whiskers"]}))
    Image.new("RGB", (30, 30)).save(images / "loose.png")
    notes = []
    queries = ClassDescriptionQueries(path, images, notes.append)
    report, rows = ground(images, tmp_path / "new", owl, queries)
    assert {name: row.outputs["phrases"] for name, row in rows.items()} == {
        "birds/tall.png": ["a beak", "wings"],
        "birds/wide.png": ["a beak", "wings"],
    }
    assert report.selection.skipped == {
        "not in a class folder": 1,
        "no description of its class": 1,
    }
    assert any(note.endswith("('dogs'), and their images are left out.") for note in notes)
    path.write_text(json.dumps({"cats": ["whiskers"]}))
    with pytest.raises(ValueError, match=r"descriptions\.json.*'cats'"):
        ClassDescriptionQueries(path, images, notes.append)


def test_phrases_of_captions_are_looked_for(images, annotations, tmp_path, owl):
    queries = CaptionPhraseQueries(annotated_captions(annotations), RulePhrases())
    _, rows = ground(images, annotations, owl, queries)
    assert rows["birds/tall.png"].outputs["phrases"] == ["a small bird", "a wooden bench"]
    assert json.loads(rows["birds/tall.png"].provenance.sampling)["queries"] == (
        "noun phrases: rules"
    )
    path = tmp_path / "captions.jsonl"
    lines = [
        {"image": "birds/tall.png", "captions": ["A boy with a red ball", "The boy runs ."]},
        {"image": "birds/wide.png", "captions": ["..."]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnot JSON\n")
    queries = CaptionPhraseQueries(imported_captions("jsonl", path), RulePhrases())
    report, rows = ground(images, tmp_path / "new", owl, queries)
    assert rows["birds/tall.png"].outputs["phrases"] == ["A boy", "a red ball"]
    assert rows["birds/tall.png"].input_hash == texts_hash(lines[0]["captions"])
    assert rows["birds/wide.png"].error.startswith("no noun phrase in its captions")
    assert set(rows) == {"birds/tall.png", "birds/wide.png"}
    assert report.selection.skipped == {"no caption": 1}
    again, _ = ground(images, tmp_path / "new", owl, queries)
    assert (again.rows, again.selection.done) == (0, 2)


def test_lines_of_one_image_are_read_together(tmp_path):
    path = tmp_path / "captions.jsonl"
    lines = [
        {"image": "a.png", "captions": ["one", "two"]},
        {"image": "b.png", "captions": ["b"]},
        {"image": "a.png", "captions": ["three", "one"]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    captions = imported_captions("jsonl", path)
    assert [caption.text for caption in captions("a.png")] == ["one", "two", "three"]


def test_captions_of_images_without_paths_are_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = {"bytes": b"an image", "path": "a.png"}
    table = pyarrow.table({"image": [image], "caption": ["one"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"--captions=.*a\.parquet has images and not their paths"):
        imported_captions("parquet", tmp_path / "a.parquet")


def test_an_image_that_its_collection_skips_has_no_captions(tmp_path):
    """A tar with a sample without an image, which `WebDataset` skips."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("000.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"one"))
    captions = imported_captions("webdataset", tmp_path / "a.tar")
    with pytest.raises(SkippedSample, match=r"000"):
        captions("000.jpg")


def test_example_images_are_looked_for_by_name(images, tmp_path, owl):
    examples = tmp_path / "examples"
    (examples / "red_ball").mkdir(parents=True)
    for number, name in enumerate(("red_ball/1.png", "red_ball/2.png", "bus stop.png")):
        noise = np.random.default_rng(number).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(examples / name)
    queries = read_examples(examples, owl)
    assert queries.names == ("bus stop", "red ball")
    each = owl.embed_examples(
        [owl.prepare(pixels(examples, f"red_ball/{number}.png")) for number in (1, 2)]
    )
    mean = each.mean(axis=0)
    np.testing.assert_allclose(queries.embeddings[1], mean / np.linalg.norm(mean), atol=1e-5)
    _, rows = ground(
        images,
        tmp_path / "new",
        owl,
        queries,
        selection=SELECTIONS["best_per_text"].replace(threshold=0.0),
    )
    assert len(rows) == 3
    for name, row in rows.items():
        (scored,) = owl.detect_embeddings([owl.prepare(pixels(images, name))], queries.embeddings)
        assert {r["description"] for r in row.outputs["regions"]} == {"bus stop", "red ball"}
        np.testing.assert_allclose(row.outputs["best_scores"], scored.scores.max(0), atol=1e-4)
        assert row.provenance.prompt_hash == queries.hash
    (examples / "bus stop.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"--example_images=.*bus stop\.png"):
        read_examples(examples, owl)


def test_grounding_dino_does_the_same_stage(images, annotations, tmp_path):
    folder = write_detector(tmp_path / "dino", "grounding-dino")
    detector = open_detector(str(folder), device="cpu")
    report, rows = ground(
        images,
        annotations,
        detector,
        DescriptionQueries(annotations),
        selection=SELECTIONS["all"].replace(threshold=0.01, max_boxes=5),
    )
    assert report.examples == []
    for name, row in rows.items():
        assert {r["description"] for r in row.outputs["regions"]} <= set(DESCRIPTIONS[name])
        assert 0 < len(row.outputs["regions"]) <= 5
        for region in row.outputs["regions"]:
            x0, y0, x1, y1 = region["box_xyxy"]
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            assert region["score"] > 0.01
    assert rows["birds/wide.png"].provenance.model == str(folder)
