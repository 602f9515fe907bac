"""The contract of every data set that a run can train on."""

from typing import get_args

import numpy as np
import pytest

from grain_jax.config import DataConfig, SyntheticBirdsConfig, TrainConfig
from grain_jax.config.schema import Dataset
from grain_jax.data.importers import IMPORTERS
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.source import (
    DATA_SOURCES,
    DataSource,
    data_source,
    open_source,
    open_training_source,
)
from grain_jax.data.tfds_records import (
    SplitShards,
    encode_record,
    shard_path,
    write_metadata,
    write_shard,
)

SIZE = 32


@pytest.fixture(params=DATA_SOURCES)
def config(request, tmp_path) -> DataConfig:
    birds = SyntheticBirdsConfig(num_train_images=4, num_eval_images=25)
    if request.param == "synthetic_birds":
        return DataConfig(dataset="synthetic_birds", synthetic_birds=birds)
    if request.param != "tfds":
        pytest.fail(f"there is no small data set of {request.param!r} here; add one")
    region = Region((0.0, 0.0, 0.5, 1.0), "a red crest")
    records = [
        Record(str(i), b"image", (Caption(f"bird {i}"),), (region,), label="wren") for i in range(3)
    ]
    sizes = {}
    for split in ("train", "dev"):
        path = shard_path(tmp_path, split, 0, 1)
        sizes[split] = SplitShards((3,), write_shard(path, map(encode_record, records)).num_bytes)
    write_metadata(tmp_path, sizes)
    return DataConfig(
        dataset="tfds", data_dir=str(tmp_path), eval_split="dev", synthetic_birds=birds
    )


def test_a_data_source_implements_the_protocol(config):
    data = data_source(config, image_size=SIZE)
    assert isinstance(data, DataSource)
    assert all(template.count("{}") == 1 for template in data.templates)
    assert len(set(data.example_texts.labels)) == 2
    for text in (data.training_data(), data.origin(num_images="3", length="for 2 steps")):
        assert text
    assert all(limit.endswith(".") for limit in data.limits())
    assert data.held_out_split in data.reserved_names
    words = data.vocabulary()
    assert words is None or "a" in words


def test_splits_hold_records(config):
    data = data_source(config, image_size=SIZE)
    for split in ("train", data.held_out_split, data.shown_split):
        source = data.records(split)
        assert len(source) > 0
        assert open_source(config, split, image_size=SIZE)[0].id == source[0].id
        for region in source[0].regions:
            x0, y0, x1, y1 = region.box_xyxy
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
    training = data.training_records()
    assert training[0].id == open_training_source(config, image_size=SIZE)[0].id
    assert len(training) == len(data.records("train"))
    with pytest.raises(ValueError, match="split"):
        data.records("elsewhere")


def test_evaluation_sets_have_distinct_names_and_the_requested_size(config):
    data = data_source(config, image_size=SIZE)
    whole = list(data.evaluation_sets(limit=None))
    assert {held_out.name for held_out in whole} <= set(data.reserved_names)
    assert len({held_out.name for held_out in whole}) == len(whole)
    (steering,) = data.evaluation_sets(limit=2)
    assert steering.name == data.held_out_split
    assert len(steering.source) == 2
    for held_out in (*whole, steering):
        assert (held_out.zero_shot is None) == (held_out.methods == ())
        if held_out.zero_shot is not None:
            assert held_out.zero_shot.source is held_out.source


def test_the_default_metric_is_of_a_set_evaluated_at_intervals(config):
    data = data_source(config, image_size=SIZE)
    metric = data.default_metric(TrainConfig(data=config))
    assert metric.startswith(f"{data.held_out_split}/")
    assert data.summary([], (1.0, 0.0)) == []
    assert data.headline([]) == ""


def test_every_data_source_is_a_choice_of_the_setting():
    assert set(get_args(Dataset)) == set(DATA_SOURCES)


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    config = DataConfig()
    config.dataset = "webdataset"
    known = "choose 'synthetic_birds' or 'tfds'"
    with pytest.raises(ValueError, match=rf"Unknown data\.dataset 'webdataset'; {known}"):
        data_source(config, image_size=SIZE)


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_importer_implements_the_protocol(name):
    for method in ("__len__", "__getitem__", "fingerprint", "checksum"):
        assert callable(getattr(IMPORTERS[name], method, None)), method
    assert (IMPORTERS[name].__doc__ or "").strip()


def test_drawn_images_have_the_requested_size():
    birds = DataConfig(synthetic_birds=SyntheticBirdsConfig(num_train_images=1, num_eval_images=25))
    image = data_source(birds, image_size=SIZE).records("train")[0].image
    assert isinstance(image, np.ndarray)
    assert image.shape == (SIZE, SIZE, 3)
