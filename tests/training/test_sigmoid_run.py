"""`loss.image_caption="sigmoid"` from settings to the trained state, and in and out of weights."""

import dataclasses
import json
import math
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import pytest
from tiny_run import TinyRun, bundle_of, random_batch, tiny_config

from grain_jax.benchmarking.flops import padded_positions, step_flops
from grain_jax.config import MeshConfig, TrainConfig
from grain_jax.config.cli import config_to_json
from grain_jax.loading.initialize import LoadReport, inherit_settings, start_from
from grain_jax.models.image_text import abstract_params
from grain_jax.parallel.sharding import make_mesh
from grain_jax.training.logits import logits_form, num_logits
from grain_jax.training.optimizer import decay_mask, make_optimizer
from grain_jax.training.resume import changed_settings
from grain_jax.training.state import TrainState, abstract_state, new_state
from grain_jax.training.trainable import split_frozen


def sigmoid_config(**loss: Any) -> TrainConfig:
    config = tiny_config()
    config.loss = dataclasses.replace(config.loss, image_caption="sigmoid", **loss)
    config.model.region_logit_scale = "own"
    return config


def names(params: Any) -> set[str]:
    return set(flax.traverse_util.flatten_dict(params, sep="/"))


@pytest.fixture(scope="module")
def trained():
    """Two steps, one device, dense: state before and after, and the metrics."""
    run = TinyRun(sigmoid_config(image_description_weight=1.0))
    start = jax.device_get(run.state)
    history = run.train([random_batch(0), random_batch(1)])
    return run, start, jax.device_get(run.state), history


@pytest.mark.slow
def test_scale_and_bias_learn_and_are_logged(trained):
    _, start, end, history = trained
    for name in ("logit_scale", "logit_bias", "region_logit_scale"):
        assert start.params[name] != end.params[name]
    assert history[0]["logit_bias"] == pytest.approx(float(start.params["logit_bias"]))
    assert history[1]["logit_bias"] != history[0]["logit_bias"]
    assert history[0]["logit_scale"] == pytest.approx(math.exp(start.params["logit_scale"]))
    # It is the sum over the pairs of an image: more than InfoNCE could be of a batch of 16.
    assert history[0]["contrastive"] > math.log(16)


@pytest.mark.slow
def test_the_bias_is_a_parameter_of_this_loss_alone_and_starts_as_siglip():
    config = sigmoid_config()
    with_bias, without = (
        names(abstract_params(config.model, sigmoid=sigmoid)) for sigmoid in (True, False)
    )
    assert with_bias - without == {"logit_bias"}
    assert without < with_bias
    start = new_state_of(config).params
    assert float(start["logit_bias"]) == -10
    np.testing.assert_allclose(np.exp(start["logit_scale"]), 10, rtol=1e-6)
    np.testing.assert_allclose(np.exp(start["region_logit_scale"]), 1 / 0.07, rtol=1e-6)


def new_state_of(config: TrainConfig) -> TrainState:
    run = TinyRun(config)
    return jax.device_get(new_state(run.model, run.optimizer, config, run.abstract))


@pytest.mark.parametrize("groups", ["matrices", "official"])
def test_neither_scale_nor_bias_decays(groups):
    mask = decay_mask(abstract_params(sigmoid_config().model, sigmoid=True), groups)
    assert not any(mask[name] for name in ("logit_scale", "logit_bias", "region_logit_scale"))
    assert mask["text"]["token"]


def test_a_multiplier_of_0_freezes_the_bias():
    config = sigmoid_config()
    config.optim.lr_multipliers = ("logit_bias=0",)
    model = TinyRun(config).model
    abstract = abstract_state(model, make_optimizer(config.optim), config, make_mesh(MeshConfig()))
    assert names(split_frozen(abstract.params, config.optim)[1]) == {"logit_bias"}
    assert "logit_bias" not in abstract.opt_state[1].mu


@pytest.mark.slow
@pytest.mark.parametrize(("k", "shape"), [(2, (4, 2, 1)), (1, (2, 2, 2))])
@pytest.mark.parametrize("logits", ["dense", "tiled"])
def test_micro_batches_mesh_and_tiles_change_nothing(trained, k, shape, logits):
    whole, start, _, history = trained
    config = dataclasses.replace(
        whole.config,
        optim=dataclasses.replace(whole.config.optim, grad_cache_chunks=k),
        loss=dataclasses.replace(whole.config.loss, logits=logits),
    )
    run = TinyRun(config, mesh=MeshConfig(*shape), devices=8, start=start)
    found = run.train([random_batch(0)])[0]
    for name, value in history[0].items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    once = TinyRun(whole.config, start=start)
    once.train([random_batch(0)])
    for expected, leaf in zip(
        jax.tree.leaves(once.state.opt_state[1].mu),
        jax.tree.leaves(run.state.opt_state[1].mu),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-6)


def test_auto_and_the_plan_count_its_pairs_as_those_of_the_softmax():
    """The same products: one forward, two backward, one more in tiles."""
    config = sigmoid_config()
    softmax = dataclasses.replace(
        config, loss=dataclasses.replace(config.loss, image_caption="softmax")
    )
    assert num_logits(config) == num_logits(softmax)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for size, tiled in ((16, False), (32_768, True)):
        large = dataclasses.replace(config, batch_size=size)
        assert logits_form(large, mesh).tiled == tiled
    flops = (
        step_flops(one, padded_positions(one), with_descriptions=True) for one in (config, softmax)
    )
    assert len(set(flops)) == 1


OTHER = np.float32(0.7)


def start_report(trained: TrainConfig, config: TrainConfig) -> tuple[LoadReport, Any, Any]:
    """What is loaded, the weights, and the parameters started from them, scales `OTHER` before."""
    weights = bundle_of(TinyRun(trained))
    run = TinyRun(config)
    other = {
        name: np.full_like(value, OTHER)
        for name, value in jax.device_get(run.state.params).items()
        if name.startswith("logit_") or name == "region_logit_scale"
    }
    run.set_state(dataclasses.replace(run.state, params=run.state.params | other))
    state, report = start_from(weights, run.state, config)
    return report, weights.params, jax.device_get(state.params)


@pytest.mark.slow
def test_scale_and_bias_come_with_weights_of_the_same_loss(trained):
    config = sigmoid_config(image_description_weight=1.0)
    report, given, params = start_report(config, config)
    assert {"logit_scale", "logit_bias"} <= set(report.loaded)
    assert report.unexpected == report.missing == ()
    assert params["logit_bias"] == given["logit_bias"]


def test_a_softmax_run_says_that_it_ignores_the_bias():
    softmax = tiny_config()
    softmax.model.region_logit_scale = "own"
    report, given, params = start_report(sigmoid_config(), softmax)
    assert report.unexpected == ("logit_bias", "logit_scale")
    assert "logit_bias" not in params
    lines = report.sentences("RUN")
    assert "2 unexpected in the weights, ignored: logit_bias, logit_scale" in lines
    # Scale 10 with bias -10 is not a temperature; that of regions is.
    assert report.missing == ("logit_scale",)
    assert params["logit_scale"] == OTHER
    assert params["region_logit_scale"] == given["region_logit_scale"]
    assert any(line.startswith("logit_scale starts anew: that of RUN") for line in lines)


def test_the_scale_of_a_softmax_is_not_taken_for_that_of_the_sigmoid():
    """100 cosine - 10 would take every pair for a positive."""
    softmax = tiny_config()
    softmax.model.region_logit_scale = "own"
    report, _, _ = start_report(softmax, sigmoid_config())
    assert report.missing == ("logit_bias", "logit_scale")
    assert report.unexpected == ("logit_scale",)
    assert "region_logit_scale" in report.loaded
    assert report.copied == {}


@pytest.mark.parametrize("image_caption", ["sigmoid", "softmax"])
def test_regions_start_from_the_scale_that_the_weights_share(image_caption):
    """A region loss of the softmax goes on where it was, whatever images and captions have."""
    config = sigmoid_config()
    config.loss.image_caption = image_caption
    report, given, params = start_report(tiny_config(), config)
    assert params["region_logit_scale"] == given["logit_scale"] != OTHER
    assert "region_logit_scale" in report.loaded
    assert report.unexpected == ()
    lines = report.sentences("RUN")
    assert "region_logit_scale starts from logit_scale of RUN" in lines
    sigmoid = image_caption == "sigmoid"
    assert report.missing == (("logit_bias", "logit_scale") if sigmoid else ())
    assert (params["logit_scale"] == OTHER) == sigmoid
    assert any(line.startswith("logit_scale starts anew") for line in lines) == sigmoid


def test_regions_that_the_weights_lack_have_a_scale_of_their_own():
    """That of a CLIP belongs to images without regions; a sigmoid's is not one of regions."""
    clip = tiny_config()
    clip.model.type = "clip"
    report, _, params = start_report(clip, sigmoid_config())
    assert params["region_logit_scale"] == OTHER
    assert report.copied == {}


def test_sigmoid_runs_may_start_from_weights_with_a_shared_scale():
    """They need region_logit_scale="own", which the weights have not."""
    config, _ = inherit_settings(sigmoid_config(), tiny_config())
    assert config.model.region_logit_scale == "own"


def test_a_run_does_not_resume_with_the_other_loss(tmp_path):
    saved = json.loads(config_to_json(sigmoid_config()))
    softmax = sigmoid_config()
    softmax.loss.image_caption = "softmax"
    with pytest.raises(ValueError, match=r"loss\.image_caption: sigmoid -> softmax"):
        changed_settings(saved, softmax, tmp_path)
    assert changed_settings(saved, sigmoid_config(), tmp_path) == []
