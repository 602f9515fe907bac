"""`python -m grain_jax.annotate ground`, as it is typed."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plain_text import plain
from tiny_detectors import write_detector

pytest.importorskip("pyarrow")

from grain_jax import prepare
from grain_jax.annotate import main
from grain_jax.annotate.ground import GroundCommand, Options
from grain_jax.annotation.run import Selection, StageReport
from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.command_line import ExitStatus
from grain_jax.data.annotation_files import read_annotations
from grain_jax.data.annotation_rows import Provenance, Row
from grain_jax.data.records import Caption, Record
from grain_jax.data.tfds_records import RecordSource

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("detectors") / "owlv2", "owlv2")


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("detectors") / "dino", "grounding-dino")


@pytest.fixture
def folder(tmp_path) -> Path:
    """images/birds with two images, one of them damaged, and descriptions.json."""
    (tmp_path / "images" / "birds").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "images/birds/one.png")
    (tmp_path / "images/birds/two.png").write_bytes(b"nothing")
    (tmp_path / "descriptions.json").write_text(json.dumps({"birds": ["a beak", "red wings"]}))
    return tmp_path


def ground(folder: Path, detector: Path, *options: str) -> int:
    return main(
        [
            "ground",
            f"--images={folder / 'images'}",
            f"--annotations={folder / 'annotations'}",
            f"--detector={detector}",
            "--device=cpu",
            *options,
        ]
    )


def test_class_folders_and_a_detector_are_enough(folder, owl, capsys):
    descriptions = f"--class_descriptions={folder / 'descriptions.json'}"
    assert ground(folder, owl, descriptions, "--threshold=0") == ExitStatus.DONE
    said = plain(capsys.readouterr().out)
    assert re.search(r"done now\D+1\b", said)
    assert re.search(r"failed now: corrupt image\D+1\b", said)
    assert re.search(r"boxes\D+2\b", said)
    assert re.search(r"images a second, detector alone\D+[\d.]+", said)
    found = read_annotations(folder / "annotations")
    assert [region.description for region in found[0].regions] in (
        ["a beak", "red wings"],
        ["red wings", "a beak"],
    )
    assert "two.png" in found[1].errors["ground"]
    assert ground(folder, owl, descriptions, "--threshold=0") == ExitStatus.DONE
    assert re.search(r"done before\D+2\b", plain(capsys.readouterr().out))


def test_a_worker_does_not_repeat_what_the_command_said_of_the_texts(folder, owl):
    texts = folder / "other.json"
    texts.write_text(json.dumps({"birds": ["a beak"], "fish": ["fins"]}))
    options = Options(
        images=folder / "images",
        annotations=folder / "annotations",
        detector=str(owl),
        device="cpu",
        class_descriptions=texts,
    )
    notes: list[str] = []
    of_workers = GroundCommand().for_workers(options, notes.append)
    assert len(notes) == 1
    sent = pickle.dumps(of_workers.open_stage)
    (folder / "images").rename(folder / "elsewhere")  # it is not listed again
    stage = pickle.loads(sent)(notes.append)
    (folder / "elsewhere").rename(folder / "images")
    assert [row.outputs["phrases"] for row in stage.rows(iter(["birds/one.png"]))] == [["a beak"]]
    assert len(notes) == 1


@pytest.mark.parametrize(("detectors", "said"), [(1, "images a second, "), (3, "of each worker, ")])
def test_the_speed_of_detectors_is_of_each(detectors, said):
    measured = {"detectors": detectors, "detector images": 60, "detector seconds": 30}
    options = Options(images=Path("images"), annotations=Path("ann"), detector="owl")
    lines = GroundCommand().done(
        options, StageReport(Selection()), measured | {"detector wall seconds": 40}
    )
    found = {name: value for name, value in lines if "detector alone" in name}
    assert list(found.values()) == ["2.0"]
    assert said in next(iter(found))


def prepared(folder: Path, *options: str) -> list[Record]:
    """The records that `prepare` makes of the annotations."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    places = (f"--input={folder / 'annotations'}", f"--images={folder / 'images'}")
    command = ["--from=annotations", *places, f"--output={folder / 'data'}", "--workers=1"]
    assert prepare.main([*command, *options]) == ExitStatus.DONE
    records = RecordSource(folder / "data", "train")
    return [records[index] for index in range(len(records))]


def test_class_folders_become_records_with_their_class(folder, owl):
    descriptions = f"--class_descriptions={folder / 'descriptions.json'}"
    classes = folder / "classes.json"
    classes.write_text(json.dumps({"birds": "red_winged blackbird"}))
    assert ground(folder, owl, descriptions, f"--classes={classes}", "--threshold=0") == 0
    (record,) = prepared(folder)
    assert record.label == "red winged blackbird"
    assert record.captions == (Caption("a photo of a red winged blackbird."),)
    assert {region.description for region in record.regions} == {"a beak", "red wings"}
    (record,) = prepared(folder, "--template=a {}, a type of bird.")
    assert record.captions == (Caption("a red winged blackbird, a type of bird."),)


def test_what_prepare_keeps_of_class_descriptions_is_read_with_the_same_classes(folder, owl):
    """`prepare --from=imagefolder` keys its file by the names, not by the folders."""
    (folder / "images/birds/two.png").unlink()
    (folder / "classes.json").write_text(json.dumps({"birds": "tench"}))
    files = [f"--{name}={folder / name}.json" for name in ("classes", "descriptions")]
    command = ["--from=imagefolder", f"--input={folder / 'images'}", "--workers=1", *files]
    assert prepare.main([*command, f"--output={folder / 'data'}"]) == ExitStatus.DONE
    kept = folder / "data" / "class_descriptions-train.json"
    options = (f"--class_descriptions={kept}", f"--classes={folder / 'classes.json'}")
    assert ground(folder, owl, *options) == ExitStatus.DONE
    row = read_annotations(folder / "annotations").rows(0)["ground"]
    assert row.outputs["phrases"] == ["a beak", "red wings"]


def test_given_captions_become_captions_with_their_source(folder, owl):
    lines = [
        {"image": "birds/one.png", "captions": ["A red bird on a branch ."]},
        {"image": "birds/two.png", "captions": ["It is ."]},
    ]
    shutil.copy(folder / "images/birds/one.png", folder / "images/birds/two.png")
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = ("--queries=phrases", f"--captions={folder / 'captions.jsonl'}")
    assert ground(folder, owl, *given, "--threshold=0") == ExitStatus.DONE
    first, second = prepared(folder)
    assert first.captions == (Caption("A red bird on a branch ."),)
    assert {region.description for region in first.regions} == {"A red bird", "a branch"}
    assert (second.captions, second.regions) == ((Caption("It is ."),), ())
    with AnnotationWriter(folder / "annotations", "describe") as writer:
        outputs = {"captions": ["a bird"], "descriptions": ["wings"]}
        writer.append(Row("birds/one.png", None, Provenance("m"), outputs))
    assert prepared(folder)[0].captions == (*first.captions, Caption("a bird", "synthetic"))


def test_a_dry_run_counts_and_writes_nothing(folder, owl, capsys):
    descriptions = f"--class_descriptions={folder / 'descriptions.json'}"
    assert ground(folder, owl, descriptions, "--dry_run") == ExitStatus.DONE
    said = plain(capsys.readouterr().out)
    assert re.search(r"images to ground\D+2\b", said)
    assert re.search(r"texts to look for\D+4\b", said)
    assert not (folder / "annotations").exists()
    assert ground(folder, owl, "--dry_run") == ExitStatus.MISTAKE
    assert "annotations.json" in plain(capsys.readouterr().err)


def test_the_defaults_are_those_of_the_detector_and_of_the_selection(folder, owl, dino):
    for detector, options, expected in (
        (owl, (), {"threshold": 0.3, "boxes_per_text": 1, "nms_iou": 1.0}),
        (dino, ("--selection=all",), {"threshold": 0.25, "boxes_per_text": None, "nms_iou": 0.5}),
        (owl, ("--selection=official",), {"threshold": 0.3, "one_text_per_box": True}),
        (
            owl,
            ("--threshold=0.2", "--nms=0.4", "--class_agnostic_nms", "--max_boxes=3"),
            {"threshold": 0.2, "nms_iou": 0.4, "nms_across_texts": True, "max_boxes": 3},
        ),
        (owl, ("--dtype=bfloat16", "--batch_size=3", "--threads=1"), {"dtype": "bfloat16"}),
    ):
        descriptions = f"--class_descriptions={folder / 'descriptions.json'}"
        assert ground(folder, detector, descriptions, "--redo_changed", *options) == 0
        annotations = read_annotations(folder / "annotations")
        sampling = json.loads(annotations.rows(0)["ground"].provenance.sampling)
        assert expected.items() <= sampling.items()


def test_captions_of_a_file_and_example_images(folder, owl):
    captions = folder / "captions.jsonl"
    captions.write_text('{"image": "birds/one.png", "captions": ["A red bird on a branch ."]}\n')
    assert ground(folder, owl, "--queries=phrases", f"--captions={captions}") == ExitStatus.DONE
    row = read_annotations(folder / "annotations").rows(0)["ground"]
    assert row.outputs["phrases"] == ["A red bird", "a branch"]
    (folder / "examples").mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "examples" / "red_square.png")
    examples = f"--example_images={folder / 'examples'}"
    assert ground(folder, owl, examples, "--redo_changed") == ExitStatus.DONE
    row = read_annotations(folder / "annotations").rows(0)["ground"]
    assert row.outputs["phrases"] == ["red square"]
    assert json.loads(row.provenance.sampling)["threshold"] == 0.6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--class_descriptions=none.json",), "none.json"),
        ((), "annotations.json"),  # no descriptions in a folder that does not exist
        ((), "or --class_descriptions=FILE"),
        (("--queries=phrases",), "Without --class_descriptions, --captions or --example_images"),
        (("--queries=phrases", "--captions=none.jsonl"), "none.jsonl"),
        (("--captions=none.jsonl",), "--queries=phrases"),
        (
            ("--queries=phrases", "--class_descriptions=a.json"),
            "--class_descriptions and --queries=phrases",
        ),
        (("--classes=a.json",), "--class_descriptions"),
        (("--phrase_finder=spacy",), "--queries=phrases"),
        (("--nms=0.5", "--class_descriptions=descriptions.json"), "--selection=all"),
        (("--queries=phrases", "--captions=a", "--captions_format=webdataset"), "webdataset"),
        (("--queries=phrases", "--captions=.", "--captions_format=coco"), "--captions=."),
        (("--captions_format=flickr30k_entities",), "without --captions"),
        (("--class_agnostic_nms",), "--nms=0.5"),
        (("--example_images=none",), "none is not a folder"),
        (("--example_images=none", "--selection=official"), "--selection=official"),
        (("--threshold=2",), "0 to 1"),
        (("--device=nowhere",), "nowhere"),
    ],
)
def test_a_mistake_is_named(folder, owl, capsys, monkeypatch, options, said):
    monkeypatch.chdir(folder)
    if options == ("--device=nowhere",):
        options = (*options, "--class_descriptions=descriptions.json")
    assert ground(folder, owl, *options) == ExitStatus.MISTAKE
    assert said in " ".join(plain(capsys.readouterr().err).split())


def test_the_official_selection_wants_an_owlv2(folder, dino, capsys):
    descriptions = f"--class_descriptions={folder / 'descriptions.json'}"
    assert ground(folder, dino, descriptions, "--selection=official") == ExitStatus.MISTAKE
    assert "give an OWLv2" in " ".join(capsys.readouterr().err.split())
    assert ground(folder, dino, "--example_images=examples") == ExitStatus.MISTAKE
    assert "finds texts only" in " ".join(capsys.readouterr().err.split())
