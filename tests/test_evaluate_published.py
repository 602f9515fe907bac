"""`evaluate --published --golden`: refused early, printed beside ours, status 1 where it fails."""

import csv
import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_model import tiny_model, write_run

from grain_jax import evaluate, evaluate_published
from grain_jax.evaluate_published import PublishedOptions
from grain_jax.evaluation import published
from grain_jax.evaluation.published import PublishedSet
from grain_jax.results import Result

MODEL = "--published=ViT-B-16/openai"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data=imagenet", "--golden"], "--golden goes with --published"),
        (["--data=imagenet", "--tolerance=0.1"], "--tolerance goes with --published"),
        (["--data=imagenet", MODEL, "--tolerance=0.1"], "--tolerance goes with --golden"),
        (["--data=imagenet", MODEL, "--golden", "--tolerance=x"], "percentage points from 0"),
        (["--data=imagenet", "--published=ViT-B-16/opnai"], "the nearest: ViT-B-16/openai"),
        (["--data=val", MODEL, "--golden"], "what is measured is called val"),
        (["--suite=retrieval", MODEL, "--golden"], "is called coco, flickr30k"),
        (["--data=imagenet", MODEL, "--golden", "--methods=description"], "add name to --methods"),
        (["--data=imagenet", MODEL, "--golden", "--templates=single"], "give --templates=imagenet"),
        (["--checkpoint=b", "--data=imagenet", MODEL], "of one model"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_read(words, message, capsys):
    assert evaluate.main(["--checkpoint=a", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def shown(options: PublishedOptions, top1: float) -> tuple[int, str, list[str]]:
    results = [
        Result("imagenet", "name", None, "top1", top1, n=50_000),
        Result("imagenet", "dataset", None, "images", 50_000.0),
        Result("birds", "name", None, "top1", 0.5),
        Result("some suite", "name", None, "average", 0.5),
    ]
    notes: list[str] = []
    console = Console(record=True, width=200, file=io.StringIO())
    status = evaluate_published.show(options, results, console, console, notes.append)
    return status, console.export_text(), notes


def test_figures_stand_beside_published_ones_and_other_sets_are_noted():
    status, printed, notes = shown(PublishedOptions("ViT-B-16/openai"), 0.5)
    assert status == 0
    assert all(cell in printed for cell in ("50.00", "68.34", "-18.34"))
    assert len(notes) == 1
    assert "no published results of ViT-B-16/openai are of birds;" in notes[0]
    assert shown(PublishedOptions(), 0.5) == (0, "", [])


@pytest.mark.parametrize(
    ("top1", "tolerance", "status"),
    [(0.6834, None, 0), (0.6820, None, 0), (0.6810, None, 1), (0.6810, 0.3, 0), (0.69, 0.3, 1)],
)
def test_golden_ends_with_status_1_beyond_its_tolerance(top1, tolerance, status):
    options = PublishedOptions("ViT-B-16/openai", golden=True, tolerance=tolerance)
    found, printed, _ = shown(options, top1)
    assert found == status
    assert ("Golden: ImageNet's accuracy is the published one" in printed) is (status == 0)
    assert ("68.34" in printed.partition("Error: --golden")[2]) is (status == 1)


@pytest.mark.slow
def test_a_model_is_evaluated_beside_a_table_of_ones_own(tmp_path, monkeypatch, capsys):
    write_run(tiny_model(), tmp_path / "run")
    rng = np.random.default_rng(0)
    for name in ("red", "blue", "tail"):
        (tmp_path / "imagenet" / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "imagenet" / name / f"{i}.png")
    measured = PublishedSet("ImageNet 1k", "top1", 15, 3)
    monkeypatch.setitem(published.SETS, "imagenet", measured)
    monkeypatch.chdir(tmp_path)
    words = [f"--checkpoint={tmp_path / 'run'}", "--data=imagenet", "--methods=name"]
    words += [f"--cache={tmp_path / 'cache'}", "--published=table.csv#Tiny/random", "--golden"]

    def run(accuracy: float) -> int:
        with open("table.csv", "w", newline="") as file:
            csv.writer(file).writerows(
                [("name", "pretrained", "ImageNet 1k"), ("Tiny", "random", accuracy)]
            )
        return evaluate.main(words)

    assert run(0.99) == 1
    printed = capsys.readouterr()
    assert "99.00" in printed.out
    assert "points are more than the 0.2 allowed" in printed.err
    predicted = float(printed.err.split("has ")[1].split(" %")[0]) / 100
    assert run(round(predicted, 4)) == 0
    assert "Golden: ImageNet's accuracy is the published one" in capsys.readouterr().out
