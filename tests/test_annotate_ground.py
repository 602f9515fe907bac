"""`python -m grain_jax.annotate ground`, as it is typed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plain_text import plain
from tiny_detectors import write_detector

pytest.importorskip("pyarrow")

from grain_jax.annotate import main
from grain_jax.command_line import ExitStatus
from grain_jax.data.annotation_files import read_annotations

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
    descriptions = f"--descriptions={folder / 'descriptions.json'}"
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


def test_a_dry_run_counts_and_writes_nothing(folder, owl, capsys):
    descriptions = f"--descriptions={folder / 'descriptions.json'}"
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
            ("--threshold=0.2", "--nms=0.4", "--nms_across_texts", "--max_boxes=3"),
            {"threshold": 0.2, "nms_iou": 0.4, "nms_across_texts": True, "max_boxes": 3},
        ),
        (owl, ("--dtype=bfloat16", "--batch_size=3", "--threads=1"), {"dtype": "bfloat16"}),
    ):
        descriptions = f"--descriptions={folder / 'descriptions.json'}"
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
        (("--descriptions=none.json",), "none.json"),
        ((), "annotations.json"),  # no descriptions in a folder that does not exist
        (("--queries=phrases", "--captions=none.jsonl"), "none.jsonl"),
        (("--captions=none.jsonl",), "--queries=phrases"),
        (("--queries=phrases", "--descriptions=a.json"), "--descriptions and --queries=phrases"),
        (("--phrases=spacy",), "--queries=phrases"),
        (("--captions_format=flickr30k_entities",), "without --captions"),
        (("--nms_across_texts",), "--nms=0.5"),
        (("--example_images=none",), "none is not a folder"),
        (("--example_images=none", "--selection=official"), "--selection=official"),
        (("--threshold=2",), "0 to 1"),
        (("--device=nowhere",), "nowhere"),
    ],
)
def test_a_mistake_is_named(folder, owl, capsys, monkeypatch, options, said):
    monkeypatch.chdir(folder)
    if options == ("--device=nowhere",):
        options = (*options, "--descriptions=descriptions.json")
    assert ground(folder, owl, *options) == ExitStatus.MISTAKE
    assert said in " ".join(plain(capsys.readouterr().err).split())


def test_the_official_selection_wants_an_owlv2(folder, dino, capsys):
    descriptions = f"--descriptions={folder / 'descriptions.json'}"
    assert ground(folder, dino, descriptions, "--selection=official") == ExitStatus.MISTAKE
    assert "give an OWLv2" in " ".join(capsys.readouterr().err.split())
    assert ground(folder, dino, "--example_images=examples") == ExitStatus.MISTAKE
    assert "finds texts only" in " ".join(capsys.readouterr().err.split())
