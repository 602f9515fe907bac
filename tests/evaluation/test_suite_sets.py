"""A suite on folders of the toy model's images."""

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from labelled_tars import write_webdataset
from PIL import Image
from tiny_tfds import build
from toy_encoder import half, make_image, toy_encoder

from grain_jax.config import EvaluationConfig, TrainConfig
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.tfds_records import encode_record, shard_path, write_metadata, write_shard
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.ranking import wilson_interval
from grain_jax.evaluation.suite_file import read_suite, shown_metric
from grain_jax.evaluation.suite_results import averages, evaluate_suite
from grain_jax.evaluation.suite_sets import open_suite
from grain_jax.results import Result

SUITE = """
[[images]]
name = "right"
num_classes = 3
num_images = 3

[[images]]
name = "wrong"
metric = "per_class"
templates = "templates.txt"

[[images]]
name = "apart"
in_average = false

[[records]]
name = "photographs"
split = "dev"
num_images = 2
"""
CONFIG = TrainConfig(evaluation=EvaluationConfig(alphas=(1.0, 0.5)))


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(make_image(colour, "blue", "green")).save(file, "PNG")
    return file.getvalue()


def write_records(folder: Path) -> None:
    folder.mkdir()
    own = [
        Record(f"dev{i}", png(colour), (Caption(f"a {colour} thing"),), (Region(half(0), "blue"),))
        for i, colour in enumerate(("red", "green"))
    ]
    shard = write_shard(shard_path(folder, "dev", 0, 1), [encode_record(one) for one in own])
    write_metadata(folder, {"dev": shard})


@pytest.fixture
def folder(tmp_path):
    """Images of "wrong" show another colour than their label says, but for red ones."""
    other = {"red": "red", "green": "blue", "blue": "green"}
    for name in ("right", "wrong", "apart"):
        for colour, shown in other.items():
            (tmp_path / name / colour).mkdir(parents=True)
            image = png(shown if name == "wrong" else colour)
            (tmp_path / name / colour / "1.png").write_bytes(image)
    write_records(tmp_path / "photographs")
    (tmp_path / "templates.txt").write_text("one {}\n", encoding="utf-8")
    (tmp_path / "mine.toml").write_text(SUITE, encoding="utf-8")
    return tmp_path


def values(results, dataset: str) -> dict:
    return {(r.method, r.alpha, r.metric): r.value for r in results if r.dataset == dataset}


def test_every_set_is_measured_and_averaged_by_its_own_metric(folder):
    opened = open_suite(read_suite(str(folder / "mine.toml")))
    details = ResultDetails()
    results = evaluate_suite(
        toy_encoder(), opened, CONFIG, templates=("a {} thing",), details=details
    )
    assert values(results, "right")["name", None, "top1"] == 1.0
    assert values(results, "wrong")["name", None, "per_class"] == pytest.approx(1 / 3)
    assert values(results, "photographs")["retrieval", None, "mean_R@1"] == 1.0
    assert "phrase_accuracy" in {metric for *_, metric in values(results, "photographs")}
    mine = values(results, "mine")
    assert mine["name", None, "average"] == pytest.approx((1 + 1 / 3) / 2)
    assert mine["name", None, "average_expected_sets"] == 2
    assert {key[0] for key in mine} == {"name"}  # of records there is one set: no average
    texts = {name: each["templates"]["texts"] for name, each in details.zero_shot_sets.items()}
    assert texts == {"right": ["a {} thing"], "wrong": ["one {}"], "apart": ["a {} thing"]}
    assert opened.metrics["wrong"] == "per_class"


def test_missing_sets_are_all_named_before_anything_is_read(folder):
    suite = read_suite(str(folder / "mine.toml"))
    with pytest.raises(ValueError, match=r"4 of the 4 sets(?s:.*)right: no(?s:.*)photographs: no"):
        open_suite(suite, suite_data=folder / "nowhere", allow_missing=True)
    (folder / "wrong").rename(folder / "gone")
    with pytest.raises(ValueError, match=r"1 of the 4 sets(?s:.*)wrong: no folder"):
        open_suite(suite)
    noted = []
    opened = open_suite(suite, allow_missing=True, note=noted.append)
    assert noted == ["1 of the 4 sets of suite 'mine' are missing and left out: wrong."]
    assert opened.described()["missing"] == ["wrong"]
    results = evaluate_suite(toy_encoder(), opened, CONFIG, templates=("{}",))
    average = next(r for r in results if r.metric == "average")
    assert (average.value, average.n) == (1.0, 1)
    expected = next(r for r in results if r.metric == "average_expected_sets")
    assert expected.value == 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("num_classes = 3", "num_classes = 4", "has 3 classes, and 4 were expected"),
        ("num_images = 3", "num_images = 5000", "has 3 images, and 5,000 were expected"),
        ("num_images = 2", "num_images = 1", "'photographs'.* has 2 images, and 1 were"),
        (
            "num_images = 2",
            "captions_per_image = 2",
            "'photographs'.*'dev0' there are 1 captions, and 2 or more were expected",
        ),
        ('split = "dev"', 'split = "test"', "'photographs' of suite 'mine'.*has no split 'test'"),
        ('name = "apart"', 'name = "apart"\ndata = "photographs"', "list it under"),
    ],
)
def test_another_set_than_expected_is_refused(folder, before, after, message):
    path = folder / "mine.toml"
    path.write_text(SUITE.replace(before, after), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        open_suite(read_suite(str(path)), note=lambda text: None)


def test_a_method_is_averaged_over_the_sets_that_have_it(folder):
    opened = open_suite(read_suite(str(folder / "mine.toml")))
    results = [
        Result("right", "name", None, "top1", 0.5),
        Result("right", "random", None, "top1", 0.3),
        Result("right", "description", 0.5, "top1", 0.8),
        Result("wrong", "name", None, "per_class", 0.7),
        Result("wrong", "name", None, "top1", 0.1),  # another metric is this set's
        Result("apart", "name", None, "top1", 0.0),
    ]
    found = {r.identity[1:]: (r.value, r.n) for r in averages(opened, results)}
    assert found["name", None, "average"] == (pytest.approx(0.6), 2)
    assert found["description", 0.5, "average"] == (pytest.approx(0.8), 1)
    assert found["description", 0.5, "average_expected_sets"] == (2.0, None)
    assert len(found) == 4


def test_an_average_has_an_interval_where_all_of_its_sets_have_one(folder):
    opened = open_suite(read_suite(str(folder / "mine.toml")))

    def average(*results: Result) -> Result:
        return next(r for r in averages(opened, results) if r.metric == "average")

    first = Result("right", "name", None, "top1", 0.5, 0.42, 0.56, 100)
    second = Result("wrong", "name", None, "per_class", 0.7, 0.64, 0.78, 100)
    found = average(first, second)
    assert (found.low, found.high) == pytest.approx((0.6 - 0.05, 0.6 + 0.05))  # 3, 4, 5
    bare = dataclasses.replace(second, low=None, high=None)
    assert (average(first, bare).low, average(first, bare).high) == (None, None)
    alone = average(second)
    assert (alone.low, alone.high) == pytest.approx((0.64, 0.78))


@pytest.mark.parametrize("name", ["compositional", "grounding"])
def test_an_average_of_sets_with_the_same_images_has_no_interval(name):
    suite = read_suite(name)
    results = [
        Result(one.name, "model", None, shown_metric(one), 0.6, 0.59, 0.61, 100)
        for one in suite.sets
        if one.in_average
    ]
    means = [r for r in averages(SimpleNamespace(suite=suite), results) if r.metric == "average"]
    assert means
    assert {(mean.low, mean.high) for mean in means} == {(None, None)}


def test_95_of_100_averages_hold_the_true_one(folder):
    opened = open_suite(read_suite(str(folder / "mine.toml")))
    generator, held = np.random.default_rng(0), 0
    for _ in range(400):
        rates = generator.binomial((40, 400), (0.95, 0.6)) / (40, 400)
        each = [
            Result(name, "name", None, metric, rate, *wilson_interval(rate, count), count)
            for name, metric, rate, count in zip(
                ("right", "wrong"), ("top1", "per_class"), rates.tolist(), (40, 400), strict=True
            )
        ]
        found = next(r for r in averages(opened, each) if r.metric == "average")
        assert found.low <= found.value <= found.high <= 1
        held += found.low <= 0.775 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_methods_of_a_set_go_before_those_of_the_suite(folder):
    path = folder / "mine.toml"
    text = 'methods = ["description"]\n' + SUITE.replace(
        'name = "right"', 'name = "right"\nmethods = ["name"]'
    )
    path.write_text(text, encoding="utf-8")
    opened = open_suite(read_suite(str(path)))
    encoder = toy_encoder()
    results = evaluate_suite(encoder, opened, CONFIG, templates=("{}",))
    assert {key[0] for key in values(results, "right")} == {"random", "dataset", "name"}
    assert {key[0] for key in values(results, "apart")} == {"random", "dataset"}


def test_a_set_has_crops_of_its_own_and_options_go_before_them(folder):
    path = folder / "mine.toml"
    own = "crops = 3\ncrop_sizes = [0.7, 0.9]"
    before = read_suite(str(path)).sha256
    text = 'methods = ["wca"]\n' + SUITE.replace('name = "right"', f'name = "right"\n{own}')
    described = 'descriptions = "described.json"\n'
    text = text.replace("[[images]]\n", "[[images]]\n" + described)
    parts = {"red": ["red part"], "green": ["green part"], "blue": ["blue part"]}
    (folder / "described.json").write_text(json.dumps(parts), encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    suite = read_suite(str(path))
    assert suite.sha256 != before
    opened, passes = open_suite(suite), {}
    for crops in ({}, {"number": 5}):
        details = ResultDetails()
        found = evaluate_suite(
            toy_encoder(), opened, CONFIG, templates=("{}",), details=details, crops=crops
        )
        passes[len(crops)] = [
            values(found, name)["wca", None, "passes"] for name in ("right", "wrong")
        ]
        smallest = [
            details.zero_shot_sets[name]["random_crops"]["smallest"] for name in ("right", "wrong")
        ]
        assert smallest == [0.7, 0.5]
    assert passes == {0: [4, 61], 1: [6, 6]}


@pytest.mark.parametrize("packaged", [False, True])
def test_crops_that_no_method_looks_at_are_noted_of_own_suites(folder, packaged):
    path = folder / "mine.toml"
    own = SUITE.replace('name = "right"', 'name = "right"\ncrop_sizes = [0.7, 0.9]')
    path.write_text(own, encoding="utf-8")
    suite = dataclasses.replace(read_suite(str(path)), packaged=packaged)
    opened, notes = open_suite(suite, suite_data=folder), []
    details = ResultDetails()
    evaluate_suite(
        toy_encoder(), opened, CONFIG, templates=("{}",), note=notes.append, details=details
    )
    said = [note for note in notes if "none of the methods looks at random crops" in note]
    assert len(said) == (0 if packaged else 1)
    assert "random_crops" not in details.zero_shot_sets["right"]


def test_templates_of_a_suite_are_of_the_sets_that_give_none(folder):
    path = folder / "mine.toml"
    before = read_suite(str(path)).sha256
    (folder / "inner.txt").write_text("two {}\n", encoding="utf-8")
    path.write_text('templates = "inner.txt"\n' + SUITE, encoding="utf-8")
    suite = read_suite(str(path))
    assert suite.sha256 != before
    (folder / "outer").mkdir()
    outer = folder / "outer" / "all.toml"
    outer.write_text('templates = "own.txt"\ninclude = ["../mine.toml"]\n', encoding="utf-8")
    (folder / "outer" / "own.txt").write_text("three {}\n", encoding="utf-8")

    def used(opened):
        images = (*opened.images, *(one for part in opened.included for one in part.images))
        return {one.name: dataset.templates for one, dataset in images}

    own = {"wrong": ("one {}",)}
    every = ("right", "wrong", "apart")
    assert used(open_suite(suite)) == dict.fromkeys(every, ("two {}",)) | own
    around = read_suite(str(outer))
    assert used(open_suite(around)) == dict.fromkeys(every, ("three {}",)) | own
    assert around.included[0].sha256 == suite.sha256
    found = used(open_suite(around, templates="official"))
    assert {name: len(texts) for name, texts in found.items()} == dict.fromkeys(every, 46)


def test_a_set_has_texts_that_some_methods_take(folder):
    path = folder / "mine.toml"
    texts = {"red": ["a red thing"], "green": ["a green thing"], "blue": ["a blue thing"]}
    (folder / "cupl.json").write_text(json.dumps(texts), encoding="utf-8")
    own = 'methods = ["cupl"]\ntexts = {cupl = "cupl.json"}'
    path.write_text(f'[[images]]\nname = "right"\n{own}\n', encoding="utf-8")
    opened = open_suite(read_suite(str(path)))
    results = evaluate_suite(toy_encoder(), opened, CONFIG, templates=("{}",))
    assert values(results, "right")["cupl", None, "top1"] == 1.0


STORED = """
[[images]]
name = "land"
data = "tfds:land/rgb:1.0.0"
num_classes = 3
num_images = 2

[[images]]
name = "tables"
data = "tables.parquet"
image_column = "image"
label_column = "label"
num_classes = 2

[[images]]
name = "tars"
split = "dev"
num_classes = 3
"""


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Two images each: red and green, as TFDS prepares them, in a table and in tars."""
    label = tfds.features.ClassLabel(names=["red", "green", "blue"])
    features = {"image": tfds.features.Image(encoding_format="png"), "label": label}
    rows = [{"image": io.BytesIO(png(name)), "label": name} for name in ("red", "green")]
    version = build(tmp_path / "build", features, {"test": rows})
    (tmp_path / "prepared" / "land").mkdir(parents=True)
    version.parent.rename(tmp_path / "prepared" / "land" / "rgb")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    images = [png(name) for name in ("red", "green")]
    table = pyarrow.table({"image": images, "other": images, "label": ["red", "green"]})
    pyarrow.parquet.write_table(table, tmp_path / "tables.parquet")
    members = {"0.png": images[0], "0.cls": b"0", "1.png": images[1], "1.cls": b"1"}
    write_webdataset(tmp_path / "tars", [members], ["red", "green", "blue"])
    (tmp_path / "tars" / "test").rename(tmp_path / "tars" / "dev")
    members = {"0.png": images[0], "0.cls": b"2"}
    write_webdataset(tmp_path / "tars", [members], ["red", "green", "blue"])
    (tmp_path / "stored.toml").write_text(STORED, encoding="utf-8")
    return tmp_path


def test_a_set_may_be_of_tfds_a_table_or_tars(stored):
    opened = open_suite(read_suite(str(stored / "stored.toml")))
    results = evaluate_suite(toy_encoder(), opened, CONFIG, templates=("a {} thing",))
    for name in ("land", "tables", "tars"):
        assert values(results, name)["name", None, "top1"] == 1.0
        assert values(results, name)["dataset", None, "images"] == 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("rgb:1.0.0", "rgb:2.0.0", "land: no prepared data set 'tfds:land/rgb:2.0.0'"),
        ("rgb:1.0.0", "rgb:1", "'land' is of TFDS; give its version"),
        ("num_classes = 3", "num_classes = 10", "'land' .* has 3 classes, and 10 were expected"),
        ("num_classes = 2", "num_classes = 3", "'tables' .* has 2 classes, and 3 were expected"),
        ("tables.parquet", "table.parquet", "tables: no file .*did you mean .*tables.parquet'"),
        ('image_column = "image"', "", "choose with --image_column"),
        ('split = "dev"', 'split = "train"', "has no split 'train'; it has dev, test"),
    ],
)
def test_another_version_or_table_is_refused(stored, before, after, message):
    (stored / "stored.toml").write_text(STORED.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        open_suite(read_suite(str(stored / "stored.toml")))


def test_a_method_that_no_set_has_texts_for_ends_it_before_an_image_is_encoded(folder):
    suite = open_suite(read_suite(str(folder / "mine.toml")))
    encoder, noted = toy_encoder(), []
    encoder.images = None  # called for nothing
    with pytest.raises(ValueError, match=r"On 'right': cupl needs .* On 'wrong': cupl needs"):
        evaluate_suite(
            encoder, suite, CONFIG, templates=("{}",), note=noted.append, methods=["cupl"]
        )
    assert not any("left out" in sentence for sentence in noted)
