"""`python -m grain_jax.evaluate grounding`, with a model whose answers can be read off the image.

The toy's two queries are the halves of an image; their embeddings are two pixels of its left half,
that of an image is its first pixel.
"""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from grounding_files import annotation, coco_image, save_halves, write_json
from PIL import Image
from toy_encoder import ToyModel, ToyTokenizer, half, make_image, toy_encoder

from grain_jax import evaluate, evaluate_grounding
from grain_jax.config import DataConfig, EvaluationConfig, TrainConfig
from grain_jax.data.grounding.formats import load_grounding
from grain_jax.data.transforms import Preprocessing
from grain_jax.evaluation.box_features import boxes_of_images
from grain_jax.evaluation.grounding_benchmark import measure_grounding
from grain_jax.models.bundle import ModelBundle

LEFT, RIGHT = half(0), half(1)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def write_lines(folder, lines):
    path = folder / "queries.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def query(text, *boxes, **more):
    return {"text": text, "boxes": [list(box) for box in boxes], **more}


@pytest.fixture
def queries(tmp_path):
    """Regions answer "red" by the left half and "green" by the right one in both images."""
    for name, whole in (("a.png", "blue"), ("b.png", "red")):
        Image.fromarray(make_image(whole, "red", "green")).save(tmp_path / name)
    return write_lines(
        tmp_path,
        [
            {"image": "a.png", "queries": [query("red", LEFT), query("green", LEFT, RIGHT)]},
            {"image": "b.png", "queries": [query("red", RIGHT), query("green", RIGHT)],
             "boxes": [LEFT]},
        ],
    )  # fmt: skip


def measured(path, **options):
    data = load_grounding("jsonl", path)
    settings = {"boxes": "predicted", "truth": "any", "features": ["region"]} | options
    found = measure_grounding(toy_encoder(), data, **settings)
    return found, {(r.method, r.metric): r.value for r in found.results}


def test_regions_choose_among_predicted_boxes(queries):
    found, values = measured(queries)
    assert values["region", "R@1"] == 3 / 4  # "red" in b.png is on the right
    assert values["region", "R@5"] == values["decoder", "upper_bound"] == 1
    assert values["random", "R@1"] == (1 / 2 + 1 + 1 / 2 + 1 / 2) / 4
    # All right, the whole image has an IoU of exactly 0.5 with a half; its centre is on their edge.
    assert values["whole_image", "R@1"] == values["whole_image", "pointing"] == 1
    assert values["decoder", "box_recall"] == 1
    assert values["decoder", "box_overlap"] == 0
    assert values["decoder", "region_cosine"] == pytest.approx(0)
    assert found.usage["region"].counts.tolist() == [2, 2]
    assert (values["region", "queries_used"], values["region", "query_entropy"]) == (2, 1)


def test_the_merged_box_is_the_rectangle_around_all(queries):
    _, values = measured(queries, truth="merged")
    assert values["region", "R@1"] == 3 / 4  # a half still has an IoU of 0.5 with the whole


def test_given_boxes_have_the_region_of_the_query_on_them(queries):
    found, values = measured(queries, boxes="given")
    assert values["region", "R@1"] == 3 / 4
    assert found.protocols["region"].candidates == "every annotated box of the image"
    assert values["random", "R@1"] == (1 / 2 + 1 + 1 / 2 + 1 / 2) / 4


def test_crops_are_encoded_as_images(tmp_path):
    for name, colours in (("a.png", (RED, GREEN)), ("b.png", (BLUE, RED))):
        save_halves(tmp_path / name, *colours)
    path = write_lines(
        tmp_path,
        [
            {"image": "a.png", "queries": [query("red", LEFT), query("green", RIGHT)]},
            {"image": "b.png", "queries": [query("red", RIGHT), query("blue", LEFT)]},
        ],
    )
    for boxes in ("given", "predicted"):
        found, values = measured(path, boxes=boxes, features=["region", "crop"])
        assert values["crop", "R@1"] == values["crop", "pointing"] == 1
        assert values["random", "R@1"] == 1 / 2
        assert list(found.protocols) == ["region", "crop"]
    _, values = measured(path, features=["crop"], prompt="green {}")
    assert values["crop", "R@1"] == (1 / 2 + 1 + 1 + 1) / 4  # "green red" on red and on green


def test_wrong_captions_are_told_from_the_true_one(tmp_path):
    save_halves(tmp_path / "a.png", RED, GREEN)
    path = write_lines(
        tmp_path,
        [
            {
                "image": "a.png",
                "queries": [
                    query("red", LEFT, negatives=["green", "blue"]),
                    query("red", RIGHT, negatives=["green", "blue"]),
                    query("blue", RIGHT, negatives=["red"]),
                ],
            }
        ],
    )
    _, values = measured(path, boxes="given", features=["crop"])
    # The third is as unlike its own caption as the wrong one.
    assert values["crop", "caption_top1"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert values["crop", "caption_rank"] == (1 + 3 + 2) / 3  # of equals the last place
    assert values["crop", "caption_random_top1"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)


def test_predicted_boxes_are_of_the_whole_image():
    box = np.array([[[0.5, 0.5, 1.2, 0.5]]], np.float32)
    squashed, cut = (Preprocessing(4, resize) for resize in ("squash", "crop"))
    np.testing.assert_allclose(boxes_of_images(box, [(20, 40)], squashed)[0, 0], [0, 0.25, 1, 0.75])
    np.testing.assert_allclose(  # the model sees the middle half of the width
        boxes_of_images(box, [(20, 40)], cut)[0, 0], [0.2, 0.25, 0.8, 0.75]
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that stands for a run of the toy model; `size` of its images may be changed."""
    folder = tmp_path / "run"
    folder.mkdir()
    state = SimpleNamespace(folder=folder, size=4, regions=True)
    config = TrainConfig(
        data=DataConfig(caption_length=8, description_length=4),
        evaluation=EvaluationConfig(batch_size=8),
    )

    def load(path, *, step=None, best=False, mesh=None):
        return ModelBundle(
            model=ToyModel(regions=state.regions),
            params={},
            config=config,
            tokenizer=ToyTokenizer(),
            preprocessing=Preprocessing(state.size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
            templates=("{}",),
            step=7,
        )

    monkeypatch.setattr(evaluate_grounding, "read_model", load)
    monkeypatch.chdir(tmp_path)
    return state


def command(run, queries, *more):
    return evaluate.main(
        ["grounding", f"--checkpoint={run.folder}", "--format=jsonl", f"--data={queries}", *more]
    )


def test_the_protocol_is_printed_and_kept(run, queries, capsys):
    more = ("--boxes=given", "--feature=region,crop", "--out=a.json", "--predictions=a.jsonl")
    assert command(run, queries, *more) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Acc@0.5, % of 4 queries" in printed
    assert "Protocol: boxes given (every annotated box of the image)" in printed
    assert "images of 4 pixels, squash, bicubic" in printed
    with open("a.json", encoding="utf-8") as file:
        report = json.load(file)
    assert set(report["settings"]["protocols"]) == {"region", "crop"}
    assert report["settings"]["protocols"]["crop"]["boxes"] == "given"
    split = report["splits"]["queries"]
    assert (split["images"], split["queries"], split["boxes"]) == (2, 4, 4)
    assert report["query_usage"] == {"region": [2, 2]}
    values = {(r["method"], r["metric"]): r for r in report["results"]}
    with open("a.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert len(lines) == 8
    for method in ("region", "crop"):
        own = [line for line in lines if line["method"] == method]
        right = sum(line["correct"] for line in own) / len(own)
        assert values[method, "R@1"]["value"] == pytest.approx(right)
        assert {f"feature={method}" in line["protocol"] for line in own} == {True}


def test_compare_refuses_unlike_protocols(run, queries, capsys):
    assert command(run, queries, "--out=a.json", "--predictions=a.csv") == 0
    assert command(run, queries, "--out=b.json", "--predictions=b.jsonl", "--protocol=merged") == 0
    assert command(run, queries, "--out=c.json") == 0
    run.size = 8
    assert command(run, queries, "--out=d.json", "--predictions=d.jsonl") == 0
    capsys.readouterr()
    assert evaluate.main(["compare", "a.csv", "c.json"]) == 0  # kept beside, not asked for
    assert evaluate.main(["compare", "a.csv", "b.jsonl"]) == 2
    assert "unlike protocols of grounding" in capsys.readouterr().err
    assert evaluate.main(["compare", "a.csv", "d.jsonl"]) == 2
    assert "image_size: 4 or 8" in capsys.readouterr().err
    with open("a.csv", encoding="utf-8") as file:
        assert all("truth=any" in row["protocol"] for row in csv.DictReader(file))


def test_region_and_crop_of_one_file_are_compared(run, queries, capsys):
    more = ("--feature=region,crop", "--out=a.json", "--predictions=a.jsonl")
    assert command(run, queries, *more) == 0
    assert evaluate.main(["compare", "a.jsonl", "--against=crop"]) == 0
    assert "4 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--prompt=a photo",), "has no '{}' and needs exactly one"),
        (("--negatives=3",), "counts wrong captions of fg_ovd"),
        (("--split_file=ids.txt",), "lists images of Flickr30k Entities"),
        (("--images=none",), "is not a folder"),
        (("--predictions=a.txt",), "should end in .jsonl or .csv"),
        (("--feature=region,box",), "'box' should be region, crop"),
        (("--out=a.json", "--predictions=a.json"), "should end in"),
    ],
)
def test_a_mistake_is_named_before_the_model_is_read(run, queries, capsys, more, message):
    assert command(run, queries, *more) == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.err + printed.out).replace("│", " ").split())


def test_a_model_without_regions_takes_given_boxes_and_crops(run, queries, capsys):
    run.regions = False
    assert command(run, queries, "--out=a.json") == 2
    assert "--boxes=given --feature=crop" in capsys.readouterr().err
    assert command(run, queries, "--out=a.json", "--boxes=given") == 2
    assert "no trained regions" in capsys.readouterr().err
    assert command(run, queries, "--out=a.json", "--boxes=given", "--feature=crop") == 0
    assert "The decoder's queries" not in capsys.readouterr().out


def test_coco_boxes_by_class_name(run, tmp_path):
    save_halves(tmp_path / "val" / "a.png", RED, GREEN)
    instances = {
        "images": [coco_image(1, "a.png")],
        "annotations": [annotation(1, 1, 1, [0, 0, 20, 20]), annotation(2, 1, 2, [20, 0, 20, 20])],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}],
    }
    path = write_json(tmp_path / "annotations" / "instances_val.json", instances)
    arguments = (f"--checkpoint={run.folder}", "--format=coco", f"--data={path}", "--boxes=given")
    assert evaluate.main(["grounding", *arguments, "--feature=crop", "--out=a.json"]) == 0
    with open("a.json", encoding="utf-8") as file:
        report = json.load(file)
    values = {(r["method"], r["metric"]): r["value"] for r in report["results"]}
    assert (values["crop", "R@1"], values["random", "R@1"]) == (1.0, 0.5)


def test_embeddings_of_images_crops_and_texts_are_kept(run, queries, monkeypatch, capsys):
    more = ("--boxes=given", "--feature=region,crop", "--cache=kept")
    assert command(run, queries, *more, "--out=a.json") == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "Embeddings: 0 images and 0 texts read from kept, 6 and 2 encoded."

    def called(*arguments, **options):
        raise AssertionError("the model was called")

    monkeypatch.setattr(ToyModel, "encode_images", called)
    monkeypatch.setattr(ToyModel, "encode_texts", called)
    assert command(run, queries, *more, "--out=b.json") == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "Embeddings: 6 images and 2 texts read from kept, 0 and 0 encoded."
    results = []
    for name in ("a.json", "b.json"):
        with open(name, encoding="utf-8") as file:
            results.append(json.load(file)["results"])
    assert results[0] == results[1]
    assert command(run, queries, "--cache=none", "--cache_gib=1", "--out=c.json") == 2
    assert "--cache=none keeps none" in capsys.readouterr().err
