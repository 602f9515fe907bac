"""`evaluate vocabulary_free`: from labelled images and captions to free answers."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plain_text import plain
from stored_results import stored_results
from toy_encoder import COLOURS, ToyModel, ToyTokenizer

from grain_jax import evaluate, evaluate_vocabulary_free
from grain_jax.config import DataConfig, TrainConfig
from grain_jax.data.records import Caption, Record
from grain_jax.data.tfds_records import encode_record, shard_path, write_metadata, write_shard
from grain_jax.data.transforms import Preprocessing
from grain_jax.evaluation.kept_predictions import beside
from grain_jax.models.bundle import ModelBundle


def png(colour: str, seed: int) -> bytes:
    """Its first pixel, which is all that the toy looks at, has the colour."""
    pixels = np.random.default_rng(seed).integers(0, 60, size=(4, 4, 3), dtype=np.uint8)
    pixels[0, 0, COLOURS[colour]] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def run(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "7").mkdir(parents=True)
    (folder / "checkpoints" / "7" / "_CHECKPOINT_METADATA").touch()
    bundle = ModelBundle(
        model=ToyModel(),
        params={"logit_scale": np.log(np.float32(10.0))},
        config=TrainConfig(data=DataConfig(caption_length=8, description_length=4, num_threads=2)),
        tokenizer=ToyTokenizer(),
        preprocessing=Preprocessing(4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        templates=("{}",),
        step=7,
    )
    monkeypatch.setattr(evaluate_vocabulary_free, "read_model", lambda path, **options: bundle)
    return folder


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "colours"
    for number, colour in enumerate(COLOURS):
        (root / f"{colour} thing").mkdir(parents=True)
        for i in range(2):
            (root / f"{colour} thing" / f"{i}.png").write_bytes(png(colour, 10 * number + i))
    return root


def records(root: Path, *own: Record) -> Path:
    root.mkdir()
    path = shard_path(root, "train", 0, 1)
    write_metadata(root, {"train": write_shard(path, [encode_record(one) for one in own])})
    return root


@pytest.fixture
def bank(tmp_path):
    texts = [f"a {colour} kite over a {colour} roof" for colour in COLOURS for _ in range(3)]
    return records(
        tmp_path / "records",
        *(
            Record(id=f"{i}", image=png("red", 100 + i), captions=(Caption(text),))
            for i, text in enumerate(texts)
        ),
    )


def answered(run: Path, images: Path, bank: Path, *options: str) -> int:
    given = [f"--checkpoint={run}", f"--data={images}", f"--bank={bank}"]
    return evaluate.main(["vocabulary_free", *given, "--num_captions=3", *options])


def test_answers_are_words_of_captions(run, images, bank, tmp_path, capsys):
    predictions = tmp_path / "answers.jsonl"
    assert answered(run, images, bank, f"--predictions={predictions}") == 0
    (path,) = run.glob("evaluation_colours_vocabulary_free_step7_*.json")
    report = json.loads(path.read_text())
    results = {(r["method"], r["metric"]): r["value"] for r in report["results"]}
    assert results["cased", "cluster_accuracy"] == 1.0
    assert results["cased", "semantic_iou"] == 0.5  # "red" of "red thing"
    assert results["cased", "own_encoder_similarity"] == pytest.approx(1.0, abs=1e-5)
    assert stored_results(path)["colours/cased/semantic_iou"] == 0.5
    assert report["bank"]["captions"] == 9
    assert report["settings"]["num_captions"] == 3
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(lines) == 3 * 6  # of each method
    for line in lines[:6]:
        assert line["predicted"] == line["label"].split()[0]
        assert line["correct"] == 0.5
        assert line["top5"][0][0] == line["predicted"]
    printed = plain(capsys.readouterr().out)
    assert "red thing" in printed
    assert "a red kite over a red roof" in printed
    assert "own text encoder" in printed
    assert evaluate.main(["compare", str(predictions), "--against=cased_image"]) == 0
    assert not beside(path).exists()
    assert answered(run, images, bank) == 0
    assert evaluate.main(["compare", str(path), "--against=cased_image"]) == 0
    assert "semantic IoU of free answers" in plain(capsys.readouterr().out)


def test_only_tested_images_are_encoded_and_only_once(run, images, bank, tmp_path, capsys):
    cache = f"--cache={tmp_path / 'kept'}"
    assert answered(run, images, bank, cache) == 0
    first = plain(capsys.readouterr().out)
    assert "Embeddings: 0 images and " in first
    assert ", 6 and " in first  # none of the nine of the bank
    assert not list((tmp_path / "kept").rglob("images-*"))  # which would have the regions too
    assert answered(run, images, bank, cache) == 0
    assert "Embeddings: 6 images and " in (again := plain(capsys.readouterr().out))
    assert ", 0 and 0 encoded." in again
    assert answered(run, images, bank, "--cache=none") == 0
    assert "Embeddings: none were cached." in plain(capsys.readouterr().out)
    assert answered(run, images, bank, "--cache=none", "--cache_gib=1") == 2
    assert "--cache=none keeps none" in plain(capsys.readouterr().err)


def test_options_are_part_of_the_inputs(run, images, bank):
    for options in ((), ("--candidates=phrases",), ("--caption_weight=0.5",), ("--prompt=a {}",)):
        assert answered(run, images, bank, *options) == 0
    reports = [json.loads(path.read_text()) for path in run.glob("*.json")]
    assert len({report["inputs_sha256"] for report in reports}) == 4
    phrases = next(one for one in reports if one["settings"]["candidates"] == "phrases")
    found = {(r["method"], r["metric"]): r["value"] for r in phrases["results"]}
    assert found["cased", "semantic_iou"] == pytest.approx(1 / 3)  # "red kite" of "red thing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt=a photo",), "needs exactly one"),
        (("--caption_weight=2",), "0 to 1"),
        (("--candidates=verbs",), "words"),
        (("--bank_split=dev",), "dev"),
        (("--predictions=a.txt",), ".jsonl or .csv"),
    ],
)
def test_mistakes_are_said(run, images, bank, options, message, capsys):
    assert answered(run, images, bank, *options) == 2
    assert message in plain(capsys.readouterr().err)


def test_tested_images_in_the_bank_are_refused(run, images, tmp_path, capsys):
    own = Record(id="x", image=png("red", 0), captions=(Caption("a red kite"),))
    assert answered(run, images, records(tmp_path / "shared", own)) == 2
    assert "byte for byte" in plain(capsys.readouterr().err)
