"""Grounding and compositional tests in a suite, with the toy model, whose answers are known."""

import dataclasses
import json

import pytest
from grounding_files import annotation, coco_image, save_halves, write_json
from PIL import Image
from report_files import sections_of, write_results
from toy_encoder import half, make_image, toy_encoder

from grain_jax.config import TrainConfig
from grain_jax.data.grounding.formats import load_grounding
from grain_jax.evaluation.comparison import read_predictions
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.grounding_benchmark import measure_grounding
from grain_jax.evaluation.predictions import PredictionsFile
from grain_jax.evaluation.report_page.content import all_grids
from grain_jax.evaluation.side_by_side import side_by_side
from grain_jax.evaluation.suite_file import read_suite
from grain_jax.evaluation.suite_results import evaluate_suite
from grain_jax.evaluation.suite_sets import open_suite
from grain_jax.models.learned import NOTHING

LEFT, RIGHT = half(0), half(1)
SUITE = """
include = ["other.toml"]

[[grounding]]
name = "seen"
data = "queries.jsonl"
format = "jsonl"
num_images = 2
num_texts = 4

[[grounding]]
name = "seen_given"
data = "queries.jsonl"
format = "jsonl"
boxes = "given"
feature = ["region", "crop"]

[[grounding]]
name = "second"
data = "queries.jsonl"
format = "jsonl"

[[compositional]]
name = "words"
format = "sugarcrepe"
images = "."
num_questions = 3
"""
OTHER = """
note = "Pairs."

[[compositional]]
name = "pairs"
data = "examples.jsonl"
format = "winoground"
images = "."

[[compositional]]
name = "long"
data = "long.jsonl"
format = "retrieval"
images = "."
"""


def query(text, *boxes):
    return {"text": text, "boxes": [list(box) for box in boxes]}


def lines(*entries) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


@pytest.fixture
def folder(tmp_path):
    """Regions answer "red" by the left half and "green" by the right one in both images."""
    for name, whole in (("a.png", "blue"), ("b.png", "red")):
        Image.fromarray(make_image(whole, "red", "green")).save(tmp_path / name)
    asked = lines(
        {"image": "a.png", "queries": [query("red", LEFT), query("green", LEFT, RIGHT)]},
        {"image": "b.png", "queries": [query("red", RIGHT), query("green", RIGHT)]},
    )
    (tmp_path / "queries.jsonl").write_text(asked)
    (tmp_path / "words").mkdir()
    for category, wrong in (("add", ["green", "red"]), ("swap", ["green"])):
        entries = {
            str(i): {"filename": "a.png", "caption": "blue", "negative_caption": text}
            for i, text in enumerate(wrong)
        }
        if category == "swap":  # where the wrong caption is the right one
            entries["0"] |= {"caption": "green", "negative_caption": "blue"}
        (tmp_path / "words" / f"{category}.json").write_text(json.dumps(entries))
    pair = {"image_0": "a.png", "image_1": "b.png", "caption_0": "blue", "caption_1": "red"}
    (tmp_path / "examples.jsonl").write_text(lines(pair))
    long = [{"image": "a.png", "text": "a blue thing"}, {"image": "b.png", "text": "a red thing"}]
    (tmp_path / "long.jsonl").write_text(lines(*long))
    (tmp_path / "mine.toml").write_text(SUITE)
    (tmp_path / "other.toml").write_text(OTHER)
    return tmp_path


def opened(folder, **options):
    return open_suite(read_suite(str(folder / "mine.toml")), **options)


def values(results) -> dict:
    return {(r.dataset, r.method, r.metric): r.value for r in results}


def test_tests_are_measured_as_their_commands_measure_them(folder):
    details = ResultDetails(predictions=PredictionsFile(folder / "all.jsonl"))
    encoder, suite = toy_encoder(), opened(folder)
    with details.predictions:
        results = evaluate_suite(encoder, suite, TrainConfig(), templates=(), details=details)
    found = values(results)
    data = load_grounding("jsonl", folder / "queries.jsonl")
    alone = measure_grounding(
        encoder, data, boxes="given", truth="any", features=["region", "crop"]
    )
    given = [dataclasses.replace(one, dataset="seen_given") for one in alone.results]
    assert [one for one in results if one.dataset == "seen_given"] == given
    assert found["seen", "region", "R@1"] == 3 / 4
    assert found["words", "model", "accuracy"] == pytest.approx(2 / 3)
    assert found["words", "model", "mean_over_groups"] == pytest.approx((1 + 0) / 2)
    assert found["pairs", "model", "group"] == 1
    assert found["long", "retrieval", "mean_R@1"] == 1
    # One average of predicted boxes; of given ones, and of captions, there is one set.
    means = {key: value for key, value in found.items() if key[2].startswith("average")}
    assert means == {
        ("mine/predicted_any", "region", "average"): 3 / 4,
        ("mine/predicted_any", "region", "average_expected_sets"): 2,
    }
    protocols = details.splits["seen_given"]["protocols"]
    assert protocols["crop"]["feature"] == "crop"
    assert protocols["region"]["boxes"] == "given"
    assert details.splits["seen"]["queries"] == 4
    assert details.splits["words"]["questions"] == 3
    assert details.query_usage["seen"] == {"region": [2, 2]}
    read = read_predictions(folder / "all.jsonl")
    means = {(m.dataset, m.method): sum(a.correct) / len(a.correct) for m, a in read.items()}
    assert means["words", "model"] == pytest.approx(2 / 3)
    assert means["pairs", "model/group"] == means["long", "text_to_image"] == 1
    scores = {m: mean for (name, m), mean in means.items() if name == "pairs"}
    assert scores == {
        f"model/{score}": found["pairs", "model", score] for score in ("text", "image", "group")
    }
    assert means["seen_given", "crop"] == found["seen_given", "crop", "R@1"]


def test_the_report_has_the_protocol_of_each_set(folder):
    details = ResultDetails()
    results = evaluate_suite(
        toy_encoder(), opened(folder), TrainConfig(), templates=(), details=details
    )
    stored = [dataclasses.asdict(one) for one in results]
    path = write_results(folder / "result.json", stored, splits=details.splits)
    _, sections = sections_of([path])
    titles = [section.title for section in sections]
    assert "Grounding" in titles
    grids = {grid.title.partition(":")[0]: grid for grid in all_grids(sections)}
    grid = grids["Grounding of queries by a protocol"]
    asked = {
        (row[0].text, row[2].text) for row in grid.rows if row[3].text == "region: region feature"
    }
    assert asked == {
        *(("seen", "boxes predicted, any"), ("seen_given", "boxes given, any")),
        ("second", "boxes predicted, any"),
    }
    assert "A, seen, second: " in grid.meaning
    assert "A, seen_given: " in grid.meaning
    assert "every annotated box of the image" in grid.meaning
    other = [row[2].text for row in grids["Other results"].rows] if "Other results" in grids else []
    assert not {"R@1", "pointing", "upper_bound"} & set(other)


def test_the_table_has_the_metric_of_every_test(folder):
    suite = opened(folder)
    results = evaluate_suite(toy_encoder(), suite, TrainConfig(), templates=())
    table = side_by_side({"toy": results}, metrics=suite.metrics, note=suite.note)
    rows = {row[:3]: row[3] for row in table.rows}
    assert ("seen_given", "crop: crop, encoded", "R@1 (Acc@0.5)") in rows
    assert ("seen", "random", "R@1 (Acc@0.5)") in rows
    assert rows["words", "model", "mean over groups"].startswith("50.0")
    assert ("pairs", "model", "group") in rows
    assert (
        rows["mine/predicted_any", "region: region feature", "average over 2 of 2 sets"] == "75.0"
    )
    assert suite.note == "other: Pairs."


def test_what_a_model_lacks_is_left_out_and_said(folder):
    encoder, notes = toy_encoder(), []
    encoder.learned = NOTHING
    results = evaluate_suite(
        encoder, opened(folder), TrainConfig(), templates=(), note=notes.append
    )
    found = {(one.dataset, one.method) for one in results}
    assert ("seen_given", "crop") in found
    assert not any(dataset == "seen" or method == "region" for dataset, method in found)
    said = " ".join(notes)
    assert "seen is left out: the model predicts no boxes" in said
    assert "seen_given by region is left out: the model has no trained regions" in said


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("queries.jsonl", "3 of the 6 sets(?s:.*)seen: no file .*queries.jsonl"),
        ("words", "1 of the 6 sets(?s:.*)words: no folder .*words'; did you mean .*word'"),
        ("examples.jsonl", "1 of the 6 sets(?s:.*)pairs: no file"),
    ],
)
def test_missing_tests_are_named_together(folder, gone, message):
    (folder / gone).rename(folder / ("word" if gone == "words" else "moved"))
    with pytest.raises(ValueError, match=message):
        opened(folder)
    notes = []
    suite = opened(folder, allow_missing=True, note=notes.append)
    assert "are missing and left out" in notes[0]
    assert suite.described()["missing"]


def test_a_split_without_its_file_is_missing(tmp_path):
    """Of a packaged suite, with one file of RefCOCO and no other set."""
    save_halves(tmp_path / "refcoco" / "images" / "a.png", (255, 0, 0), (0, 255, 0))
    name = "finetune_refcoco_testA.json"
    image = {**coco_image(1, "a.png"), "caption": "red", "original_id": 1}
    content = {"images": [image], "annotations": [annotation(1, 1, 1, [0, 0, 20, 20])]}
    write_json(tmp_path / "refcoco" / name, content | {"categories": [{"id": 1, "name": "x"}]})
    with pytest.raises(ValueError, match="refcoco_val: no file of split 'val' in") as found:
        open_suite(read_suite("grounding"), suite_data=tmp_path)
    assert "23 of the 25 sets" in str(found.value)
    message = "'refcoco_testA' of suite 'grounding' has 1 images, and 750 were expected"
    with pytest.raises(ValueError, match=message):
        open_suite(read_suite("grounding"), suite_data=tmp_path, allow_missing=True)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("num_texts = 4", "num_texts = 5", "'seen' of suite 'mine' has 4 texts, and 5 were"),
        ("num_images = 2", "num_images = 1", "'seen' of suite 'mine' has 2 images, and 1"),
        ("num_questions = 3", "num_questions = 9", "'words' of suite 'mine' has 3 questions"),
        ('images = "."', 'images = "none"', "words: no folder .*none' of its images"),
    ],
)
def test_another_test_than_expected_is_refused(folder, before, after, message):
    (folder / "mine.toml").write_text(SUITE.replace(before, after, 1))
    with pytest.raises(ValueError, match=message):
        opened(folder)


def test_a_damaged_file_is_named_with_its_set(folder):
    (folder / "queries.jsonl").write_text("[")
    with pytest.raises(ValueError, match="Set 'seen' of suite 'mine': "):
        opened(folder)
