"""What may decide keep_best is known before the first step, whatever the data and the model."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from toy_encoder import ToySource, record, toy_encoder

from grain_jax.config import DataConfig, EvaluationConfig, SyntheticBirdsConfig, TrainConfig
from grain_jax.data.synthetic_birds.data_source import interval_set
from grain_jax.data.tfds_data_source import TfdsDataSource
from grain_jax.evaluation import suite
from grain_jax.evaluation.best_metric import check_best_metric, measured_during_training
from grain_jax.models.learned import Learned
from grain_jax.results import logged

FULL = (record("0", "red", "green", "blue"), record("1", "green", "red"), record("2", "blue"))
SOURCES = {
    "captions and boxes": FULL,
    "captions": tuple(dataclasses.replace(one, regions=()) for one in FULL),
    "boxes": tuple(dataclasses.replace(one, captions=()) for one in FULL),
    "one caption": (FULL[0], dataclasses.replace(FULL[1], captions=())),
    "nothing": tuple(dataclasses.replace(one, captions=(), regions=()) for one in FULL),
}


@pytest.fixture(autouse=True)
def _nothing_kept():
    interval_set.cache_clear()
    suite.interval_folder.cache_clear()


@pytest.fixture
def folders(tmp_path):
    """Labelled images with descriptions, and without."""
    paths = []
    for name, described in (("pets", {"cat": ["green part"]}), ("toys/val", {})):
        root = tmp_path / name
        for label in ("cat", "dog"):
            (root / label).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / label / "1.png")
        if described:
            (root / "descriptions.json").write_text(json.dumps(described))
        paths.append(str(root))
    return tuple(paths)


def make_config(source: str, kind: str = "grain", **evaluation) -> TrainConfig:
    data = DataConfig(synthetic_birds=SyntheticBirdsConfig(num_train_images=16, num_eval_images=25))
    if source != "synthetic_birds":
        data = DataConfig(dataset="tfds", data_dir="somewhere", eval_split="dev")
    config = TrainConfig(
        data=data, evaluation=EvaluationConfig(eval_interval_steps=1, max_images=5, **evaluation)
    )
    config.model.type, config.model.image_size = kind, 32
    config.model.decoder.num_queries = 2
    return config


def use_records(monkeypatch, source: str) -> None:
    if source != "synthetic_birds":
        own = ToySource(*SOURCES[source])
        monkeypatch.setattr(TfdsDataSource, "records", lambda self, split: own)


@pytest.mark.parametrize("kind", ["grain", "clip"])
@pytest.mark.parametrize("source", ["synthetic_birds", *SOURCES])
def test_the_names_are_those_of_what_is_measured(source, kind, folders, monkeypatch):
    use_records(monkeypatch, source)
    alphas = (1.0, 0.3) if kind == "grain" else EvaluationConfig().alphas
    config = make_config(source, kind, alphas=alphas, zero_shot_during_training=folders)
    encoder = toy_encoder(regions=kind == "grain", image_size=32)
    measured = logged(suite.evaluate(encoder, config, final=False))
    assert measured_during_training(config) == list(measured)
    assert {"pets/name", "pets/description/alpha1", "val/name"} <= measured.keys()
    assert ("pets/name_and_regions/alpha0.3" in measured) == (kind == "grain")
    assert "val/description/alpha1" not in measured


@pytest.mark.parametrize(
    "learned", [Learned(regions=False, boxes=True), Learned(regions=False, boxes=False)]
)
def test_the_names_follow_what_the_decoder_learns(learned, folders):
    config = make_config("synthetic_birds", zero_shot_during_training=folders)
    encoder = toy_encoder(image_size=32)
    encoder.learned = learned
    measured = logged(suite.evaluate(encoder, config, final=False))
    assert measured_during_training(config, learned=learned) == list(measured)
    assert ("validation/box_iou" in measured) == learned.boxes
    assert "validation/phrase_accuracy" not in measured


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "validation/recal",
            r"Did you mean 'validation/box_recall'\? Measured during training: va",
        ),
        ("pets/description/alpha0.3", "Did you mean 'pets/description/alpha"),
        ("pets/random", "is decided by the data, not by the model"),
        ("validation/box_recall_upper_bound", "is decided by the data"),
        ("val/name", "name '.*toys/val' in evaluation.zero_shot_during_training too"),
        ("xyz", "not measured during training. Measured during"),
        (
            "imagenet/name",
            "of a set 'imagenet' that this run does not have: name its folder in evaluation."
            "zero_shot_during_training. Did you mean 'pets/name'",
        ),
    ],
)
def test_a_metric_that_cannot_exist_is_refused_with_the_nearest(metric, message, folders):
    config = make_config("synthetic_birds", best_metric=metric)
    config.evaluation.zero_shot_during_training, config.evaluation.zero_shot = (
        folders[:1],
        folders[1:],
    )
    with pytest.raises(ValueError, match=message):
        check_best_metric(config)


def test_keep_best_by_a_test_set_is_allowed_and_said(folders):
    config = make_config(
        "synthetic_birds", zero_shot_during_training=folders, best_metric="pets/name"
    )
    (said,) = check_best_metric(config)
    assert "metrics of 'pets' flatter the checkpoint" in said
    config.evaluation.best_metric = ""
    assert check_best_metric(config) == []


def test_a_default_that_the_data_does_not_have_is_refused_too(monkeypatch):
    use_records(monkeypatch, "boxes")
    config = make_config("boxes")
    with pytest.raises(ValueError, match=r"'dev/retrieval/mean_R@1' .* to one of dev/box_iou"):
        check_best_metric(config)
    config.checkpoint.keep_best = False
    assert check_best_metric(config) == []


def test_without_held_out_data_a_test_set_can_be_chosen(folders):
    config = make_config("tfds", zero_shot_during_training=folders)
    config.data.eval_split = ""
    (said,) = check_best_metric(config)
    assert "evaluation.best_metric may, as one of pets/name" in said


def test_sets_are_told_apart_where_folders_have_one_name(tmp_path):
    given = tuple(str(tmp_path / name) for name in ("a/val", "b/val", "birds", "dev", "b/dev/.."))
    config = make_config("tfds", zero_shot=given[:4], zero_shot_during_training=given[2:3])
    above = tmp_path.name
    assert list(suite.named_folders(config, final=True)) == [
        "a-val",
        "b-val",
        "birds",
        f"{above}-dev",
    ]
    assert list(suite.named_folders(config, final=False)) == ["birds"]
    config.evaluation.zero_shot = (given[0], given[0] + "/")
    with pytest.raises(ValueError, match=r"names the folder '.*a/val' twice"):
        suite.named_folders(config, final=True)
    config = make_config("synthetic_birds", zero_shot=(str(tmp_path / "seen"),))
    assert list(suite.named_folders(config, final=True)) == [f"{above}-seen"]


def test_an_empty_split_is_found_out_at_the_start(monkeypatch):
    monkeypatch.setattr(TfdsDataSource, "records", lambda self, split: ToySource())
    with pytest.raises(ValueError, match="'dev' holds no image to evaluate on"):
        suite.check_inputs(make_config("tfds"))
