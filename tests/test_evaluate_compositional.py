"""`evaluate compositional`: from published files to a table and records, or exit status 2."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from stored_results import stored_results
from toy_encoder import COLOURS, ToyModel, ToyTokenizer

from grain_jax import evaluate, evaluate_compositional
from grain_jax.config import DataConfig, TrainConfig
from grain_jax.data.transforms import Preprocessing
from grain_jax.evaluation.comparison import read_predictions
from grain_jax.evaluation.kept_predictions import beside
from grain_jax.models.bundle import ModelBundle


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that stands for a run of the toy, which sees the colour of an image's corner."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "7").mkdir(parents=True)
    (folder / "checkpoints" / "7" / "_CHECKPOINT_METADATA").touch()
    config = TrainConfig(data=DataConfig(caption_length=4, description_length=4))
    bundle = ModelBundle(
        model=ToyModel(),
        params={},
        config=config,
        tokenizer=ToyTokenizer(),
        preprocessing=Preprocessing(8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        templates=("{}",),
        step=7,
    )
    monkeypatch.setattr(evaluate_compositional, "read_model", lambda path, **options: bundle)
    return folder


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for colour, channel in COLOURS.items():
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[..., channel] = 255
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        (root / f"{colour}.png").write_bytes(file.getvalue())
    return root


def evaluated(run, data, images, form, *options) -> int:
    given = [f"--checkpoint={run}", f"--data={data}", f"--images={images}", f"--format={form}"]
    return evaluate.main(["compositional", *given, *options])


def crepe(image, caption, wrong):
    return {"filename": image, "caption": caption, "negative_caption": wrong}


def test_sugarcrepe_is_scored_by_category(run, images, tmp_path, capsys):
    folder = tmp_path / "crepe"
    folder.mkdir()
    add = {"0": crepe("red.png", "red", "blue"), "1": crepe("blue.png", "red", "blue")}
    swap = {"0": crepe("red.png", "red", "blue"), "1": crepe("red.png", "green", "blue")}
    (folder / "add_obj.json").write_text(json.dumps(add))
    (folder / "swap_obj.json").write_text(json.dumps(swap))
    assert evaluated(run, folder, images, "sugarcrepe") == 0
    (path,) = run.glob("evaluation_crepe_sugarcrepe_step7_*.json")
    found = stored_results(path)
    assert found["sugarcrepe/add_obj/accuracy"] == 0.5
    assert found["sugarcrepe/swap_obj/accuracy"] == 0.75  # neither green nor blue is seen: a tie
    assert found["sugarcrepe/accuracy"] == found["sugarcrepe/mean_over_groups"] == 0.625
    report = json.loads(path.read_text())
    assert report["splits"]["sugarcrepe"]["questions"] == 4
    assert report["splits"]["sugarcrepe"]["images"] == 2
    printed = capsys.readouterr().out
    assert "add_obj" in printed
    assert "62.5" in printed
    assert evaluated(run, folder, images, "sugarcrepe") == 0
    again = capsys.readouterr().out
    assert "holds these results already" in again
    assert " 2 images and 3 texts read from" in again.splitlines()[-1]
    assert again.splitlines()[-1].endswith(", 0 and 0 encoded.")
    assert evaluated(run, folder, images, "sugarcrepe", f"--output={path}") == 2
    answers = read_predictions(beside(path))
    assert [np.mean(one.correct) for one in answers.values()] == [0.625]


def test_winoground_has_its_three_scores(run, images, tmp_path):
    def line(first, second, *captions):
        pairs = {"image_0": first, "image_1": second}
        return json.dumps(pairs | dict(zip(("caption_0", "caption_1"), captions, strict=True)))

    file = tmp_path / "examples.jsonl"
    lines = [line("red", "blue", "red", "blue"), line("red", "green", "green", "red")]
    file.write_text("\n".join(lines))
    assert evaluated(run, file, images, "winoground") == 0
    assert evaluated(run, file, images, "winoground", f"--predictions={tmp_path}/all.csv") == 0
    assert len(read_predictions(tmp_path / "all.csv")) == 3  # text, image and group
    (path,) = run.glob("evaluation_*winoground*.json")
    found = stored_results(path)
    assert [found[f"winoground/{score}"] for score in ("text", "image", "group")] == [0.5] * 3
    assert found["winoground/random/group"] == pytest.approx(1 / 6)


def test_long_captions_are_retrieved_and_the_cut_is_said(run, images, tmp_path, capsys):
    file = tmp_path / "long.jsonl"
    texts = {"red.png": "red " * 9, "blue.png": "blue", "green.png": "green"}
    file.write_text("\n".join(json.dumps({"image": k, "text": v}) for k, v in texts.items()))
    assert evaluated(run, file, images, "retrieval") == 0
    (path,) = run.glob("evaluation_*retrieval*.json")
    assert stored_results(path)["long/retrieval/mean_R@1"] == 1.0
    assert json.loads(path.read_text())["truncated_texts"] == 1
    assert "1 texts were longer than the 4 tokens" in capsys.readouterr().err


def test_what_is_wrong_is_named_before_a_model_is_read(run, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_compositional, "read_model", None)
    file = tmp_path / "q.json"
    file.write_text(json.dumps({"0": crepe("none.png", "a", "b")}))
    for arguments, message in (
        ((run, file, images, "sugarcrepe"), "no image 'none.png'"),
        ((run, tmp_path / "nowhere", images, "sugarcrepe"), "There is no file"),
        ((run, file, tmp_path / "nowhere", "sugarcrepe"), "There is no folder"),
        ((run, file, images, "aro"), "should hold a list of ARO's"),
        ((run, file, images, "crepe"), "sugarcrepe"),
    ):
        assert evaluated(*arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())
