"""The training step: micro-batches, skipped steps, averaging, and no look at the result."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TinyRun, random_batch, tiny_config

from grain_jax.config import MeshConfig
from grain_jax.config.validation import problems
from grain_jax.parallel.sharding import put_batch, use_mesh
from grain_jax.training.step import batch_loss, text_use


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(tree), jax.device_get(other))


def with_nan_boxes(batch):
    return batch.replace(boxes=np.full_like(batch.boxes, np.nan))


@pytest.fixture(scope="module")
def eventful():
    """Good, bad, bad, good. With averaging, dropout and every optional loss on."""
    config = tiny_config()
    config.model.decoder.depth, config.model.decoder.dropout = 2, 0.3
    config.loss.image_description_weight = 1.0
    config.loss.auxiliary_box_weight = 1.0
    config.optim.ema_decay = 0.5
    run = TinyRun(config)
    states, history = [jax.device_get(run.state)], []
    good, bad = random_batch(), with_nan_boxes(random_batch())
    for batch in (good, bad, bad, good):
        history += run.train([batch])
        states.append(jax.device_get(run.state))
    return run, states, history


@pytest.mark.slow
@pytest.mark.parametrize(("k", "shape"), [(4, (1, 1, 1)), (2, (4, 2, 1))])
def test_micro_batches_on_any_mesh_change_neither_loss_nor_gradient(eventful, k, shape):
    """Not those of dropout either."""
    whole, states, history = eventful
    config, start, gradient = whole.config, states[0], states[1].opt_state[1].mu
    optim = dataclasses.replace(config.optim, grad_cache_chunks=k)
    run = TinyRun(
        dataclasses.replace(config, optim=optim),
        mesh=MeshConfig(*shape),
        devices=math.prod(shape),
        start=start,
    )
    found = run.train([random_batch()])
    for name, value in history[0].items():
        assert found[0][name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    for expected, leaf in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(run.state.opt_state[1].mu), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-6)


def short_texts(batch, *, longest: int):
    """`batch` with texts of 3 to `longest` tokens, their last id first at their end."""
    rng = np.random.default_rng(5)

    def cut(tokens):
        length = tokens.shape[-1]
        ends = rng.integers(3, min(longest, length) + 1, tokens.shape[:-1])[..., None] - 1
        place = np.arange(length)
        kept = np.where(place < ends, tokens, np.where(place == ends, 63, 0))
        return (kept * (tokens != 0).any(-1, keepdims=True)).astype(np.int32)

    return batch.replace(captions=cut(batch.captions), descriptions=cut(batch.descriptions))


def end_to_end(config, *, k):
    """`config` with the texts of `k` micro-batches in streams of 20 tokens an image."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, text_tokens_per_image=20.0),
        optim=dataclasses.replace(config.optim, grad_cache_chunks=k),
    )


def with_sigmoid(config):
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, region_logit_scale="own"),
        loss=dataclasses.replace(config.loss, image_caption="sigmoid"),
    )


@pytest.mark.parametrize(
    ("k", "shape", "image_caption"),
    [
        (1, (1, 1, 1), "softmax"),
        (1, (2, 2, 2), "softmax"),
        (2, (4, 2, 1), "softmax"),
        (2, (4, 2, 1), "sigmoid"),
    ],
)
@pytest.mark.slow
def test_texts_end_to_end_change_neither_loss_nor_gradient(eventful, k, shape, image_caption):
    whole, states, _ = eventful
    batch = short_texts(random_batch(), longest=7)
    sigmoid = image_caption == "sigmoid"
    padded = with_sigmoid(whole.config) if sigmoid else whole.config
    rows = TinyRun(padded, start=None if sigmoid else states[0])
    start = jax.device_get(rows.state)
    (expected,) = rows.train([batch])
    config = end_to_end(padded, k=k)
    run = TinyRun(config, mesh=MeshConfig(*shape), devices=math.prod(shape), start=start)
    (found,) = run.train([batch])
    tokens = (batch.captions != 0).sum() + (batch.descriptions != 0).sum()
    assert found.pop("text_tokens_per_image") == pytest.approx(tokens / 16)
    assert found.pop("texts_cut_per_image") == 0
    missing = {"caption_positions_used", "description_positions_used", "descriptions_used"}
    assert set(expected) - set(found) == missing
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
    for one, other in zip(
        jax.tree.leaves(rows.state.opt_state[1].mu),
        jax.tree.leaves(run.state.opt_state[1].mu),
        strict=True,
    ):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_the_sigmoid_loss_is_traced_with_texts_end_to_end(k):
    config = end_to_end(with_sigmoid(tiny_config()), k=k)
    assert problems(config) == []
    run = TinyRun(config)
    with use_mesh(run.mesh):
        _, metrics = jax.eval_shape(
            lambda params, batch: batch_loss(
                run.model, params, batch, config, rng=jax.random.key(0)
            ),
            run.state.params,
            random_batch(),
        )
    assert {"contrastive", "texts_cut_per_image"} <= set(metrics)


def test_the_text_that_is_padding_is_measured(eventful):
    _, _, history = eventful
    batch = random_batch()
    assert history[0]["caption_positions_used"] == 1.0
    assert "region_logit_scale" not in history[0]  # shared: there is one
    assert history[0]["description_positions_used"] == pytest.approx(1.0)
    assert history[0]["descriptions_used"] == pytest.approx(batch.region_mask.mean())
    half = batch.replace(captions=np.where(np.arange(8) < 2, batch.captions, 0))
    total, weight = text_use(jax.tree.map(jnp.asarray, half))["caption_positions_used"]
    assert float(total) / float(weight) == 0.25


def test_a_bad_step_changes_nothing_but_is_counted(eventful):
    _, states, history = eventful
    for before, after in ((states[1], states[2]), (states[2], states[3])):
        same(before.params, after.params)
        same(before.opt_state, after.opt_state)
        same(before.ema_params, after.ema_params)
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4]
    assert [int(state.nonfinite_steps) for state in states] == [0, 0, 1, 2, 2]
    assert [int(state.consecutive_nonfinite) for state in states] == [0, 0, 1, 2, 0]
    assert [metrics["nonfinite_steps"] for metrics in history] == [0, 1, 1, 0]
    assert all(math.isfinite(value) for metrics in history for value in metrics.values())
    assert history[1]["loss"] == 0  # and a weight of 0, so that it is in no mean


def test_a_good_step_moves_every_parameter(eventful):
    """Even the first norm of the decoder, whose input starts at zero, has a bias that learns."""
    _, states, _ = eventful
    moved = jax.tree_util.tree_map_with_path(
        lambda path, old, new: (
            not np.array_equal(old, new) or jax.tree_util.keystr(path).endswith("['scale']")
        ),
        states[3].params,
        states[4].params,
    )
    assert all(jax.tree.leaves(moved))


def test_average_follows_the_weights(eventful):
    _, states, _ = eventful
    same(states[0].ema_params, states[0].params)
    decay = min(0.5, 1 / 10)  # of the first step
    expected = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, states[0].params, states[1].params
    )
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7),
        states[1].ema_params,
        expected,
    )


def test_dropout_depends_on_the_step_alone(eventful):
    """The same state and batch give the same bits again; another step, other dropout."""
    run, states, history = eventful
    run.set_state(states[0])
    again = run.train([random_batch()])[0]
    assert again == history[0]
    same(run.state, states[1])
    later = dataclasses.replace(states[0], step=np.int32(7))
    run.set_state(later)
    assert run.train([random_batch()])[0]["loss"] != history[0]["loss"]


def test_the_step_moves_nothing_between_host_and_device(eventful):
    run, states, _ = eventful
    run.set_state(states[0])
    with use_mesh(run.mesh):
        batch = put_batch(random_batch(), run.mesh, batch_size=16)
        with jax.transfer_guard("disallow"):
            run.state, _ = run.step(run.state, batch)


def test_the_logit_scale_is_clamped_after_the_step(eventful):
    run, states, _ = eventful
    params = dict(states[0].params) | {"logit_scale": np.float32(7.0)}
    high = dataclasses.replace(states[0], params=params)
    run.set_state(high)
    run.train([random_batch()])
    assert float(run.state.params["logit_scale"]) == pytest.approx(math.log(100))


@pytest.mark.slow
def test_a_step_in_bfloat16_with_scanned_recomputed_layers_on_a_mesh():
    """The settings of a large run together: parameters and optimizer stay float32."""
    config = tiny_config()
    config.model.dtype, config.model.scan_layers, config.model.remat = "bfloat16", True, "dots"
    config.model.vision.depth = 2
    config.model.region_logit_scale = "own"
    config.optim.grad_cache_chunks = 2
    config.optim.clip_grad_norm = 1.0
    run = TinyRun(config, mesh=MeshConfig(2, 2, 2), devices=8)
    # JAX's own attention promotes, and recomputing traces it again outside of our exception for it.
    with jax.numpy_dtype_promotion("standard"):
        history = run.train([random_batch(0), random_batch(1)])
    assert all(metrics["nonfinite_steps"] == 0 for metrics in history)
    assert all(math.isfinite(metrics["loss"]) for metrics in history)
    # The scale that regions learn by themselves is logged, each step's own.
    scales = [metrics["region_logit_scale"] for metrics in history]
    assert scales[0] != scales[1]
    learned = float(np.exp(jax.device_get(run.state.params["region_logit_scale"])))
    assert scales[1] != pytest.approx(history[1]["logit_scale"], rel=1e-6)
    assert scales[1] == pytest.approx(learned, rel=1e-2)  # of before its step
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(run.state.params)}
    assert kinds == {"float32"}
