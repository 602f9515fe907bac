"""Settings of runs, exports and commands made before their names and values changed."""

import copy
import dataclasses
import inspect
import json
import pickle
import typing

import pytest

from grain_jax import evaluate
from grain_jax.config import TrainConfig
from grain_jax.config.bounds import leaves
from grain_jax.config.cli import config_from_json
from grain_jax.config.migration import REASONS, REMOVED, SETTINGS, migrate, migrate_options
from grain_jax.data.synthetic_birds import __main__ as synthetic_birds
from grain_jax.train import parse_options

DEFAULTS = leaves(parse_options([]).config)
DECLARED = {path: declared for path, (_, declared) in leaves(TrainConfig()).items()}


def nested(path: str, value: object) -> dict:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


@pytest.mark.parametrize("old", SETTINGS)
def test_every_older_name_leads_to_a_setting_and_its_values_to_choices(old):
    now = SETTINGS[old]
    assert now.path in DECLARED
    assert old == now.path or old not in DECLARED
    choices = typing.get_args(DECLARED[now.path]) or (True, False, *now.values.values())
    assert set(now.values.values()) <= set(choices)
    for before, after in now.values.items():
        config = config_from_json(json.dumps(nested(old, before)))
        assert leaves(config)[now.path][0] == after


@pytest.mark.parametrize("old", SETTINGS)
def test_older_flags_are_understood(old):
    now = SETTINGS[old]
    default = DEFAULTS[now.path][0]
    # That each value leads to today's is tested above; here, that flags go the same way.
    for before, after in list(now.values.items())[:1]:
        assert leaves(parse_options([f"--config.{old}={before}"]).config)[now.path][0] == after
    for before, after in list(now.values.items())[1:2]:
        assert leaves(parse_options([f"--config.{old}", before]).config)[now.path][0] == after
    if isinstance(default, int | float) and not now.values:
        config = parse_options([f"--config.{old}={default + 1}"]).config
        assert leaves(config)[now.path][0] == default + 1


@pytest.mark.parametrize(
    ("older", "today"),
    [
        (["--region_score=descriptions"], ["--region_aggregation=max_over_queries"]),
        (["--region-score", "queries"], ["--region_aggregation", "max_over_descriptions"]),
        (["--name_ensemble=embedding"], ["--prompt_ensembling=embedding"]),
        (["--name_ensemble", "cosine", "a"], ["--prompt_ensembling", "score", "a"]),
        (["--region_score", "--best"], ["--region_aggregation", "--best"]),
        (["--region_aggregation=max_over_queries"], ["--region_aggregation=max_over_queries"]),
        (["--best", "--", "--region_score"], ["--best", "--", "--region_score"]),
    ],
)
def test_older_options_of_commands_are_understood(older, today):
    assert migrate_options(older, "evaluate") == today


def test_commands_take_older_options_with_their_values():
    given = ["--checkpoint=a", "--region_score=queries", "--name_ensemble=cosine"]
    options = evaluate.parse_options(given)
    assert options.region_aggregation == "max_over_descriptions"
    assert options.prompt_ensembling == "score"
    for value in ("easy", "hard"):
        options = synthetic_birds.parse_options(["--out=a", f"--level={value}"])
        assert options.difficulty == value


@pytest.mark.parametrize(
    ("older", "today"),
    [
        (["--by=name_and_regions", "--top", "3"], ["--method=name_and_regions", "--top_k", "3"]),
        (["a.png", "--min-cosine=0.5"], ["a.png", "--score_threshold=0.5"]),
    ],
)
def test_older_options_of_predict_are_understood(older, today):
    assert migrate_options(older, "predict") == today


def test_what_no_longer_exists_is_left_out_or_refused():
    assert set(REASONS) == set(REMOVED)
    assert migrate({"model": {"decoder": {"memory_position": "none", "depth": 2}}}) == {
        "model": {"decoder": {"depth": 2}}
    }
    assert migrate({"stop_at_step": 12, "seed": 3}) == {"seed": 3}  # where a process ended
    with pytest.raises(ValueError, match=r"memory_position.*no longer exists.*0.1.0"):
        migrate({"model": {"decoder": {"memory_position": "sincos"}}})


@pytest.mark.parametrize(
    ("labels", "empty", "variant"),
    [
        ("aligned", "zero", "corrected"),
        ("official", "nan", "official"),
        ("official", "zero", "official"),
        ("aligned", "nan", "official"),
    ],
)
def test_two_bugs_became_one_variant(labels, empty, variant):
    for names in (["region_labels", "empty_batch"], ["empty_batch", "region_labels"]):
        values = {"region_labels": labels, "empty_batch": empty}
        config = config_from_json(json.dumps({"loss": {name: values[name] for name in names}}))
        assert config.loss.variant == variant
        words = [f"--config.loss.{name}={values[name]}" for name in names]
        assert parse_options(words).config.loss.variant == variant


def test_an_older_name_beside_todays_is_refused():
    with pytest.raises(
        ValueError, match=r"optim.accumulate = 4 beside optim.grad_cache_chunks = 2"
    ):
        migrate({"optim": {"grad_cache_chunks": 2, "accumulate": 4}})


@pytest.mark.parametrize("word", ["model.decoder.memory_position=none", "stop_at_step=0"])
def test_what_asked_for_nothing_is_let_pass(word):
    assert parse_options([f"--config.{word}"]).config == parse_options([]).config


def test_todays_settings_are_not_touched():
    stored = {"model": {"type": "clip"}, "data": {"tokenizer": "somebody/world"}, "steps": 3}
    assert migrate(stored) == stored


def config_of(body: str, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from grain_jax.config import *\n"
        "from dataclasses import replace\n"
        f"def get_config(variant=''):\n    config = TrainConfig()\n    {body}\n    return config\n"
    )
    return parse_options([f"--config={file}"]).config


@pytest.mark.parametrize(
    ("body", "path", "value"),
    [
        ("config.optim.accumulate = 4", "optim.grad_cache_chunks", 4),
        ("config.checkpoint.keep = 5", "checkpoint.max_to_keep", 5),
        ("config.checkpoint.every_steps = 5", "checkpoint.save_interval_steps", 5),
        ("config.logging.every_steps = 5", "logging.log_interval_steps", 5),
        ("config.model.vision.init = 'xavier'", "model.vision.initializer", "xavier"),
        ("config.init = 'RUN'", "pretrained", "RUN"),
        ("config.data = DataConfig(source='records', directory='D')", "data.dataset", "tfds"),
        (
            "config.loss = LossConfig(duplicate_captions='negative')",
            "loss.mask_duplicate_captions",
            False,
        ),
        (
            "config.loss = LossConfig(region_labels='official', empty_batch='zero')",
            "loss.variant",
            "official",
        ),
        ("config.data = DataConfig(tokenizer='world')", "data.tokenizer", "synthetic_birds"),
        ("config.data.tokenizer = 'world'", "data.tokenizer", "synthetic_birds"),
        ("config.loss.region_labels = 'aligned'", "loss.variant", "corrected"),
        (
            "config.model.decoder = DecoderConfig(memory_position='none', depth=2)",
            "model.decoder.depth",
            2,
        ),
    ],
)
def test_config_files_may_use_older_names(body, path, value, tmp_path):
    assert leaves(config_of(body, tmp_path))[path][0] == value


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("config.optim.learning_rat = 1", "did you mean learning_rate"),
        ("config.optim = OptimConfig(learning_rat=1)", "did you mean learning_rate"),
        ("config.data.world.level = 'hard'", "'world', which is data.synthetic_birds now"),
        ("config.steps = config.data.source", "'source', which is data.dataset now"),
        (
            "config.optim = OptimConfig(accumulate=2, grad_cache_chunks=4)",
            "give grad_cache_chunks alone",
        ),
        ("config.model.decoder.memory_position = 'sincos'", "no longer exists"),
        ("config.model.text = TextConfig(memory_position='none')", "TextConfig has no setting"),
        ("config.model.text.stop_at_step = 0", "TextConfig has no setting"),
        (
            "config.loss.region_labels = 'official'; config.loss.empty_batch = 'zero'",
            "does not undo variant = 'official'; set variant = 'corrected'",
        ),
        ("config.data = replace(DataConfig(), directory='D')", "give data_dir alone"),
        ("config.model.nothing = 1", "ModelConfig has no setting 'nothing'; it has type"),
    ],
)
def test_a_config_file_with_what_does_not_exist_is_refused(body, message, tmp_path):
    with pytest.raises(ValueError, match=rf"mine\.py: .*{message}"):
        config_of(body, tmp_path)


def test_settings_are_dataclasses_as_any_other():
    @dataclasses.dataclass
    class Own(TrainConfig):
        extra: int = 1

    own = Own(steps=3, extra=2)
    own.extra = 4
    assert (own.steps, own.extra) == (3, 4)
    with pytest.raises(AttributeError, match="has no setting 'extr'"):
        own.extr = 1
    config = TrainConfig(steps=3)
    config.data.data_dir = "D"
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config.data, num_threads=5).data_dir == "D"
    assert "learning_rate" in inspect.signature(type(config.optim)).parameters
