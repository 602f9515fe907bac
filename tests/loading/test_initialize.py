"""Runs that start from trained weights: settings inherited, tensors loaded, parameters frozen."""

import copy
import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_world
from few_devices import devices_of_config
from tiny_run import TinyRun, bundle_of, random_batch, tiny_config

import grain_jax.train
from grain_jax.config import TrainConfig, validate
from grain_jax.config.cli import config_to_json
from grain_jax.config.validation import problems
from grain_jax.data.tokenizer import WordTokenizer, build_tokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.loading import initialize
from grain_jax.loading.initialize import (
    inherit_settings,
    resize_positions,
    restore_inherited,
    start_from,
)
from grain_jax.loading.load import read_model
from grain_jax.loading.run import write_run
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.image_text import build_model
from grain_jax.training import checkpoint, run_folder
from grain_jax.training.state import TrainState


def tiny_clip() -> TrainConfig:
    config = tiny_config()
    config.model.type = "clip"
    return config


@pytest.fixture(scope="module")
def clip():
    return bundle_of(TinyRun(tiny_clip()))


def started(clip: ModelBundle, config: TrainConfig, devices: int = 1):
    """A run of `config` whose state is zeros, so that loaded tensors can be recognized."""
    run = TinyRun(config, devices=devices)
    zeros: TrainState = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.abstract)
    run.set_state(zeros)
    run.state, report = start_from(clip, run.state, config)
    return run, report


def test_towers_are_loaded_and_the_decoder_is_missing(clip):
    run, report = started(clip, tiny_config(), devices=4)
    for tower in ("vision", "text"):
        jax.tree.map(np.testing.assert_array_equal, run.state.params[tower], clip.params[tower])
    assert not any(leaf.any() for leaf in jax.tree.leaves(run.state.params["decoder"]))
    assert report.unexpected == ("image_projection",)
    assert {name.partition("/")[0] for name in report.missing} == {"decoder"}
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract.params)
    assert jax.tree.map(lambda leaf: leaf.sharding, run.state.params) == shardings
    lines = "\n".join(report.sentences("RUN"))
    assert f"{len(report.loaded)} tensors of RUN loaded" in lines
    assert f"missing from the weights, newly initialized: decoder ({len(report.missing)})" in lines
    assert "unexpected in the weights, ignored: image_projection" in lines


def test_stacked_layers_and_the_average_start_from_the_same_weights(clip):
    config = tiny_config()
    config.model.scan_layers, config.optim.ema_decay = True, 0.9
    run, _ = started(clip, config)
    stacked = run.state.params["vision"]["layers"]["norm1"]["scale"]
    np.testing.assert_array_equal(stacked[0], clip.params["vision"]["layer_0"]["norm1"]["scale"])
    jax.tree.map(np.testing.assert_array_equal, run.state.params, run.state.ema_params)


def test_positions_are_resized_for_another_image_size(clip):
    config = tiny_config()
    config.model.image_size = 32
    run, report = started(clip, config)
    table = clip.params["vision"]["position"]
    found = np.asarray(run.state.params["vision"]["position"])
    assert report.resized == ("vision/position",)
    assert found.shape == (17, 16)
    np.testing.assert_array_equal(found[0], table[0])  # of the class token
    np.testing.assert_allclose(found[1:].mean(0), table[1:].mean(0), atol=1e-5)


@pytest.mark.parametrize("num_cls", [0, 1])
def test_resized_positions_follow_the_image(num_cls):
    """A plane over the grid stays one: its middle keeps its value, its slope halves."""
    y, x = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    plane = np.stack([y, x], axis=-1).reshape(64, 2).astype(np.float32)
    table = np.concatenate([np.full((num_cls, 2), 7.0, np.float32), plane])
    found = resize_positions(table, 16 * 16 + num_cls)
    np.testing.assert_array_equal(found[:num_cls], table[:num_cls])
    grid = found[num_cls:].reshape(16, 16, 2)[4:12, 4:12]
    steps_y, steps_x = np.diff(grid[..., 0], axis=0), np.diff(grid[..., 1], axis=1)
    np.testing.assert_allclose(steps_y, 0.5, atol=0.02)
    np.testing.assert_allclose(steps_x, 0.5, atol=0.02)
    with pytest.raises(ValueError, match="not both a square grid"):
        resize_positions(table, 16 * 16 + 1 - num_cls)


def test_weights_of_another_shape_are_refused_by_name(clip):
    config = tiny_config()
    config.model.text.vocab_size = 65
    with pytest.raises(ValueError, match=r"text/token: \(64, 16\), expected \(65, 16\)"):
        started(clip, config)


def test_settings_at_their_defaults_are_inherited_from_the_weights():
    trained, config = tiny_clip(), TrainConfig(pretrained="RUN")
    trained.data.mean, trained.model.text.activation = (0.5, 0.5, 0.5), "gelu"
    trained.model.vision.initializer = "xavier"
    inherited, notes = inherit_settings(config, trained)
    assert inherited.model.vision == dataclasses.replace(trained.model.vision, initializer="torch")
    assert (inherited.model.text, inherited.data.mean) == (trained.model.text, (0.5, 0.5, 0.5))
    assert inherited.model.decoder == config.model.decoder
    assert inherited.model.image_size == config.model.image_size
    assert inherited.data.caption_length == trained.model.text.context_length
    assert "model.text.activation = 'gelu', inherited from the weights" in notes.values()
    assert config == TrainConfig(pretrained="RUN")  # the argument is not modified


def test_settings_that_contradict_the_weights_are_refused():
    config = TrainConfig(pretrained="RUN")
    config.model.vision.depth, config.data.mean = 3, (0.1, 0.1, 0.1)
    with pytest.raises(ValueError, match=r"(?s)depth: given 3, the weights have 1.*data.mean"):
        inherit_settings(config, tiny_clip())


def test_interpolation_is_inherited_and_a_crop_is_noted(tmp_path, monkeypatch):
    trained = tiny_clip()
    trained.data.interpolation, trained.data.resize = "bilinear", "crop"
    config = TrainConfig(pretrained="RUN")
    weights = ModelBundle(
        model=build_model(trained.model),
        params={},
        config=trained,
        tokenizer=WordTokenizer(["a"]),
        preprocessing=Preprocessing(resize="crop"),
        templates=("{}",),
        step=0,
    )
    monkeypatch.setattr(initialize, "read_model", lambda name: weights)
    found = initialize.pretrained(config, tmp_path)
    assert found.config.data.interpolation == "bilinear"
    assert found.config.data.resize == "squash"
    (note,) = [note for note in found.notes if "data.resize" in note]
    assert "data.resize = 'squash', and the weights were trained with 'crop'" in note
    config.data.resize = "crop"
    assert not [note for note in initialize.pretrained(config, tmp_path).notes if "resize" in note]
    trained.data.interpolation, config.data.interpolation = "bicubic", "bilinear"
    assert inherit_settings(config, trained)[0].data.interpolation == "bilinear"  # as it was set


@pytest.mark.parametrize("pooling", ["end", "last"])
@pytest.mark.parametrize("lengths", [(77, 77), (5, 4), (100, 4)])
def test_the_same_command_inherits_the_same_settings_again(pooling, lengths):
    """Texts of a SigLIP are as long as its positions, at any requested length."""
    trained, config = tiny_clip(), TrainConfig(pretrained="RUN")
    trained.model.text.pooling = pooling
    config.data.caption_length, config.data.description_length = lengths
    first, notes = inherit_settings(config, trained)
    assert restore_inherited(config, first, tuple(notes)) == first
    config.data.description_length = 3  # set since: kept, so that the check on resuming sees it
    again = restore_inherited(config, first, tuple(notes))
    expected = trained.model.text.context_length if pooling == "last" else 3
    assert again.data.description_length == expected


@pytest.mark.parametrize("key", ["inherited_settings", "adopted"])
def test_inherited_settings_of_older_runs_are_read(tmp_path, monkeypatch, key):
    """Runs made before version 0.2 store them under "adopted"."""
    first, notes = inherit_settings(TrainConfig(pretrained="RUN"), tiny_clip())
    saved = {
        "config": json.loads(config_to_json(first)),
        "tokenizer": WordTokenizer(["a"]).spec(),
        key: list(notes),
    }
    monkeypatch.setattr(run_folder, "complete_steps", lambda folder: [1])
    monkeypatch.setattr(run_folder, "read_metadata", lambda folder, step: saved)
    found = initialize.pretrained(TrainConfig(pretrained="RUN"), tmp_path)
    assert notes
    assert found.inherited == list(notes)
    assert found.config == first


def test_the_bound_of_the_logit_scale_may_differ_from_that_of_the_weights():
    trained = tiny_clip()
    trained.model.max_logit_scale = 112.0
    assert inherit_settings(TrainConfig(pretrained="RUN"), trained)[0].model.max_logit_scale == 112
    config = TrainConfig(pretrained="RUN")
    config.model.max_logit_scale = 50.0
    assert inherit_settings(config, trained)[0].model.max_logit_scale == 50


def test_settings_are_checked_together_once_the_weights_are_known():
    """280 pixels fit patches of 14, which only the weights say."""
    config, trained = TrainConfig(pretrained="RUN"), tiny_clip()
    config.model.image_size, trained.model.vision.patch_size = 280, 14
    validate(config, complete=False)
    with pytest.raises(ValueError, match="not a multiple of"):
        validate(config)
    assert not [p for p in problems(inherit_settings(config, trained)[0]) if "multiple" in p]
    config.model.image_size = -1
    with pytest.raises(ValueError, match="image_size"):
        validate(config, complete=False)


def test_a_decoder_is_inherited_from_grain_only():
    trained = tiny_config()
    inherited, _ = inherit_settings(TrainConfig(pretrained="RUN"), trained)
    assert inherited.model.decoder.num_queries == trained.model.decoder.num_queries


@pytest.mark.slow
def test_rates_are_scaled_and_frozen_by_name():
    """A factor of 0.5 halves the first update, of 0 takes it away, decay included."""
    config = tiny_clip()  # compiles in a third of the time
    config.optim.weight_decay = 0.5
    start = jax.device_get(TinyRun(config).state)
    updates = []
    for factors in ((), ("vision/*=0", "text/layer_0/*=0.5", "logit_scale=0", "text/*=1")):
        changed = copy.deepcopy(config)
        changed.optim.lr_multipliers = factors
        run = TinyRun(changed)  # the same weights; optimizer state of what is trained alone
        run.train([random_batch()])
        updates.append(
            jax.tree.map(lambda new, old: np.asarray(new) - old, run.state.params, start.params)
        )
    plain, scaled = updates
    assert any(leaf.any() for leaf in jax.tree.leaves(plain["vision"]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(scaled["vision"]))
    assert scaled["logit_scale"] == 0 != plain["logit_scale"]
    for name in ("text", "image_projection"):
        half = jax.tree.map(lambda leaf: leaf, plain[name])
        if name == "text":
            half["layer_0"] = jax.tree.map(lambda leaf: 0.5 * leaf, half["layer_0"])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), scaled[name], half
        )


@pytest.mark.slow
def test_a_run_starts_from_another_and_resumes_without_it(tmp_path, capsys, monkeypatch):
    """From a run folder, with frozen towers; resuming does not read the weights again."""
    monkeypatch.setattr(grain_jax.train, "finish", lambda run, screen, signals: None)
    config = tiny_world.get_config("clip")
    model = TinyRun(config)
    source = bundle_of(model)
    words = build_tokenizer(config.data).words
    source = dataclasses.replace(
        source, tokenizer=WordTokenizer(words[5:])
    )  # of other synthetic birds
    write_run(source, tmp_path / "clip")
    arguments = [
        f"--config={tiny_world.__file__}",
        f"--workdir={tmp_path / 'run'}",
        f"--pretrained={tmp_path / 'clip'}",
        '--optim.lr_multipliers=("vision/*=0",)',
        "--checkpoint.save_interval_steps=2",
    ]
    with devices_of_config():
        assert grain_jax.train.main([*arguments, "--max_steps_this_run=2"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "newly initialized: decoder" in printed
    assert "the vocabulary is that of the weights" in printed
    (tmp_path / "clip").rename(tmp_path / "gone")
    with devices_of_config():
        assert grain_jax.train.main([*arguments, "--max_steps_this_run=1"]) == 0
    assert "resumed at step 2" in " ".join(capsys.readouterr().out.split())
    trained = read_model(tmp_path / "run")
    assert trained.step == 3
    assert trained.tokenizer.spec() == source.tokenizer.spec()
    jax.tree.map(np.testing.assert_array_equal, trained.params["vision"], source.params["vision"])
    assert checkpoint.complete_steps(tmp_path / "run" / "checkpoints")[-1] == 3
    assert grain_jax.train.main([*arguments, "--model.decoder.num_queries=7"]) == 2
    assert "holds a run with other settings (model.decoder.num_queries" in capsys.readouterr().err
    assert grain_jax.train.main([*arguments, "--evaluation.best_metric=unseen/x"]) == 2
    assert "evaluation.best_metric" in capsys.readouterr().err


def test_a_run_of_averaged_weights_on_many_devices_is_written_for_one(clip, tmp_path):
    """`params` of a loaded model are the average already, and evaluation needs no mesh."""
    config = copy.deepcopy(clip.config)
    config.optim.ema_decay, config.mesh.fsdp = 0.9, 2
    write_run(dataclasses.replace(clip, config=config), tmp_path / "run")
    again = read_model(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again.params, clip.params)
    assert config.mesh.fsdp == 2


def test_a_run_folder_holds_the_model_that_was_written(clip, tmp_path):
    write_run(clip, tmp_path / "run")
    again = read_model(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again.params, clip.params)
    assert (again.step, again.templates) == (0, ("{}",))
    assert again.preprocessing == clip.preprocessing
