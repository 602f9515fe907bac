import dataclasses

import pytest
from toy_encoder import ToySource, bird_set, half, make_image, record, toy_encoder

from grain_jax.config import DataConfig, EvaluationConfig, SyntheticBirdsConfig, TrainConfig
from grain_jax.data.records import EvaluationSet, Record, Region
from grain_jax.data.synthetic_birds import data_source
from grain_jax.data.synthetic_birds.data_source import SyntheticBirds
from grain_jax.data.tfds_data_source import TfdsDataSource
from grain_jax.evaluation import suite
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.results import Result, logged


def world_config(kind: str = "grain") -> TrainConfig:
    config = TrainConfig(
        data=DataConfig(
            synthetic_birds=SyntheticBirdsConfig(num_train_images=30, num_eval_images=50)
        ),
        evaluation=EvaluationConfig(alphas=(1.0, 0.5, 0.0), max_images=25),
    )
    config.model.type = kind
    config.model.decoder.num_queries = 2
    return config


def test_intervals_look_at_validation_species_only():
    results = logged(suite.evaluate(toy_encoder(image_size=32), world_config(), final=False))
    assert {key.partition("/")[0] for key in results} == {"validation"}
    assert "validation/name" not in results  # never heard: nothing to learn from it
    assert results["validation/random"] == 1 / 25
    assert results["validation/retrieval/images"] == 25
    assert not [key for key in results if key.endswith(("/low", "/high"))]  # those are of the end
    assert suite.best_metric_name(world_config()) in results


def test_images_of_the_world_are_drawn_once_a_run():
    data_source.interval_set.cache_clear()
    encoder, config = toy_encoder(image_size=32), world_config()
    first = suite.evaluate(encoder, config, final=False)
    assert suite.evaluate(encoder, config, final=False) == first
    assert data_source.interval_set.cache_info().misses == 1


def test_more_images_than_memory_allows_are_drawn_when_needed(monkeypatch):
    encoder, config = toy_encoder(image_size=32), world_config()
    kept = suite.evaluate(encoder, config, final=False)
    data_source.interval_set.cache_clear()
    monkeypatch.setattr(data_source, "MAX_DRAWN_BYTES", 25 * 32 * 32 * 3 - 1)
    assert suite.evaluate(encoder, config, final=False) == kept
    data_source.interval_set.cache_clear()


def test_the_end_measures_everything_with_baselines_and_intervals(monkeypatch):
    opened: list[str] = []

    def spy(self, split):
        opened.append(split)
        return open_split(self, split)

    open_split = SyntheticBirds.records
    monkeypatch.setattr(SyntheticBirds, "records", spy)
    results = logged(suite.evaluate(toy_encoder(image_size=32), world_config(), final=True))
    assert opened == ["train"]  # what the constant boxes are fitted to
    for key in (
        "seen/name",
        "seen/description/alpha0",
        "seen/name_and_regions/alpha0.5",
        "unseen/name",
        "unseen/description/alpha0.5/low",
        "unseen/box_recall",
        "unseen/constant_box_recall",
        "unseen/part_phrase_accuracy",
        "seen/retrieval/text_to_image/R@5",
        "seen/retrieval/text_to_image/R@5/low",
        "unseen/retrieval/mean_R@1/high",
        "headline/unseen_by_description",
    ):
        assert 0 <= results[key] <= 1, key
    assert results["seen/classes"] == 200
    assert results["unseen/classes"] == 50
    assert results["unseen/images"] == 50


def test_the_baseline_model_has_no_regions_and_one_alpha():
    encoder = toy_encoder(regions=False, image_size=32)
    results = logged(suite.evaluate(encoder, world_config("clip"), final=False))
    assert "validation/description/alpha1" in results
    assert not any("box" in key or "alpha0" in key for key in results)
    assert suite.best_metric_name(world_config("clip")) in results


def test_the_headline_alpha_is_chosen_on_validation_species():
    results = [
        Result("validation", "description", 1.0, "top1", 0.2),
        Result("validation", "description", 0.0, "top1", 0.6),
        Result("unseen", "description", 1.0, "top1", 0.9),
        Result("unseen", "description", 0.0, "top1", 0.5),
        Result("unseen", "random", None, "top1", 0.02),
    ]
    birds = SyntheticBirds(DataConfig(), 32)
    chosen = birds.summary(results, (1.0, 0.0))
    assert logged(chosen) == {"headline/alpha": 0.0, "headline/unseen_by_description": 0.5}
    sentence = birds.headline([*results, *chosen])
    assert sentence.startswith("Unseen species by description: 50.0 % at alpha = 0, ")
    assert "(random 2.0 %)" in sentence
    assert birds.summary([], (1.0, 0.0)) == []
    assert birds.headline([]) == ""
    assert birds.headline(chosen) == ""  # without the random baseline
    assert birds.headline([Result("headline", "name", None, "top1", 0.5)]) == ""  # a folder


def records_config(split: str = "dev") -> TrainConfig:
    return TrainConfig(
        data=DataConfig(dataset="tfds", data_dir="somewhere", eval_split=split),
        evaluation=EvaluationConfig(max_images=3),
    )


@pytest.fixture
def records(monkeypatch):
    """Two splits of records; the whole image tells the caption, the queries the regions."""
    opened: list[str] = []
    splits = {
        "dev": ToySource(
            record("0", "red", "green", "blue"),
            record("1", "green", "red", "blue"),
            record("2", "blue", "green", "red"),
            record("3", "red", "blue"),
        ),
        "train": ToySource(record("4", "red", "green", "blue"), record("5", "blue")),
    }

    def open_split(self, split):
        opened.append(split)
        return splits[split]

    monkeypatch.setattr(TfdsDataSource, "records", open_split)
    return opened


def test_records_are_scored_on_the_evaluation_split(records):
    results = logged(suite.evaluate(toy_encoder(), records_config(), final=False))
    assert records == ["dev"]
    assert results["dev/retrieval/mean_R@1"] == 1.0
    assert results["dev/retrieval/images"] == 3
    assert results["dev/phrase_accuracy"] == 1.0
    assert not [key for key in results if key.endswith(("/low", "/high"))]
    assert results["dev/box_recall"] == 1.0
    assert "dev/constant_box_recall" not in results
    assert suite.best_metric_name(records_config()) in results


def test_records_at_the_end_use_all_images_and_training_boxes(records):
    results = logged(suite.evaluate(toy_encoder(), records_config(), final=True))
    assert records == ["dev", "train"]
    assert results["dev/retrieval/images"] == 4
    for of in ("box_iou", "box_recall", "phrase_accuracy"):
        for name in (f"dev/{of}", f"dev/constant_{of}"):
            assert results[f"{name}/low"] <= results[name] <= results[f"{name}/high"]
    assert results["dev/box_recall/low"] < 1  # all are found, which is not certain of others
    assert results["dev/constant_box_recall"] == 1.0  # the toy's boxes never move
    assert results["dev/constant_phrase_accuracy"] < 1.0


def evaluate_dev(encoder, source, *, training=None):
    held_out = EvaluationSet("dev", "Split 'dev'", source)
    boxes = None if training is None else suite.TrainingBoxes(lambda: training, encoder)
    results = suite.evaluate_set(encoder, held_out, records_config(), final=True, training=boxes)
    return logged(results)


def test_constant_boxes_are_fitted_to_training_boxes_only():
    def with_boxes_at(query: int) -> ToySource:
        image = make_image("red", "green", "green")
        region = Region(half(query), "green part")
        return ToySource(*(Record(str(i), image, regions=(region,)) for i in range(4)))

    left, right = with_boxes_at(0), with_boxes_at(1)
    for training, found in ((left, 1.0), (right, 0.0)):
        results = evaluate_dev(toy_encoder(), left, training=training)
        assert results["dev/box_recall"] == 1.0
        assert results["dev/constant_box_recall"] == found
        assert results["dev/constant_phrase_accuracy"] == found


def test_an_image_that_cannot_be_decoded_is_named_with_its_split():
    damaged = ToySource(
        record("0", "red", "green", "blue"),
        Record("1", b"no image", regions=(Region(half(0), "green part"),)),
    )
    with pytest.raises(ValueError, match=r"^Split 'dev': Image '1' .*Take it out of the set"):
        evaluate_dev(toy_encoder(), damaged)
    cropping = toy_encoder()
    cropping.preprocessing = dataclasses.replace(cropping.preprocessing, resize="crop")
    good = ToySource(*damaged.records[:1])
    for source, training, name in (
        (damaged, None, "Split 'dev'"),
        (good, damaged, "Training images"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: .*image '1' .*Take it out of the set"):
            evaluate_dev(cropping, source, training=training)


def test_no_evaluation_split_means_nothing_to_keep_best_by(records):
    assert suite.evaluate(toy_encoder(), records_config(""), final=True) == []
    assert suite.best_metric_name(records_config("")) == ""
    config = records_config()
    config.evaluation.best_metric = "dev/box_recall"
    assert suite.best_metric_name(config) == "dev/box_recall"


def test_zero_shot_folders_come_at_the_end(records, monkeypatch, tmp_path):
    config = records_config()
    config.evaluation.zero_shot = (str(tmp_path / "birds"),)
    asked = []

    def load(folder, note, name):
        asked.append(folder)
        return bird_set()

    monkeypatch.setattr(suite, "load_zero_shot", load)
    assert not any(
        result.dataset == "birds" for result in suite.evaluate(toy_encoder(), config, final=False)
    )
    results = logged(suite.evaluate(toy_encoder(), config, final=True))
    assert asked == [str(tmp_path / "birds")]
    alone = evaluate_zero_shot(toy_encoder(), bird_set(), alphas=config.evaluation.alphas)
    for result in alone:
        assert results[result.key] == pytest.approx(result.value)


def test_what_the_end_needs_is_looked_for_at_the_start(records):
    config = records_config()
    suite.check_inputs(config)
    assert records == ["dev"]
    config.evaluation.zero_shot = ("nowhere",)
    with pytest.raises(ValueError, match="no folder 'nowhere'"):
        suite.check_inputs(config)
