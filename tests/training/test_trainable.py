"""Frozen parameters: which they are, that nothing is kept for them, and what the others do."""

import copy
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import TinyRun, averaged_config, random_batch, tiny_config

from grain_jax.config import CheckpointConfig, MeshConfig, OptimConfig, TrainConfig, validate
from grain_jax.data.synthetic_birds.language import PROMPT_TEMPLATES
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.models.bundle import make_metadata
from grain_jax.models.image_text import abstract_params
from grain_jax.parallel import sharding
from grain_jax.training.checkpoint import Checkpoints
from grain_jax.training.optimizer import decay_mask, make_schedule
from grain_jax.training.progress import what_trains
from grain_jax.training.step import batch_loss
from grain_jax.training.trainable import (
    join,
    lr_multipliers,
    patterns_of_frozen,
    split_frozen,
)


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


def frozen_names(params, **settings):
    return {
        name
        for name, factor in flat(lr_multipliers(params, OptimConfig(**settings))).items()
        if not factor
    }


def deep_config():
    """Towers of three layers, small; averaging, clipping and decay on; the last layers trained."""
    config = averaged_config()
    config.model.vision.depth, config.model.text.depth = 3, 2
    config.optim.weight_decay, config.optim.clip_grad_norm = 0.5, 0.1
    config.optim.trained_vision_layers, config.optim.trained_text_layers = 1, 0
    config.optim.lr_multipliers = ("decoder/query=0", "vision/*=0.5")
    return config


@pytest.fixture(scope="module")
def last_layers():
    """The settings, the model, and the state on the host before and after two steps."""
    config = deep_config()
    run = TinyRun(config)
    start = jax.device_get(run.state)
    run.train([random_batch(0), random_batch(1)])
    return config, run.model, start, jax.device_get(run.state)


@pytest.fixture(scope="module")
def published():
    """Shapes of GRAIN ViT-B/16."""
    return abstract_params(TrainConfig().model)


@pytest.fixture(scope="module")
def scanned():
    """The same with scanned layers."""
    return abstract_params(TrainConfig().model, scan_layers=True)


def test_the_last_layers_are_those_and_what_follows_them(published):
    expected = {
        name
        for name in flat(published)
        if name.startswith("vision/")
        and not name.startswith(("vision/layer_10/", "vision/layer_11/", "vision/norm/"))
    }
    assert {"vision/cls", "vision/position", "vision/patch/kernel"} < expected
    assert frozen_names(published, trained_vision_layers=2) == expected
    whole = {name for name in flat(published) if name.startswith("text/")}
    assert frozen_names(published, trained_text_layers=0) == whole
    embeddings = {"text/token", "text/position"}
    assert frozen_names(published, trained_text_layers=12) == embeddings
    assert frozen_names(published) == set()


def test_the_projection_of_a_clip_belongs_to_its_frozen_tower():
    config = TrainConfig().model
    config.type = "clip"
    params = abstract_params(config)
    assert "image_projection" in frozen_names(params, trained_vision_layers=0)
    assert "image_projection" not in frozen_names(params, trained_vision_layers=1)


@pytest.mark.parametrize(
    ("settings", "scan", "message"),
    [
        ({"trained_vision_layers": 13}, False, "= 13, and the vision tower has 12 layers"),
        ({"trained_text_layers": 2}, True, "set model.scan_layers=false"),
        ({"lr_multipliers": ("*=0",)}, False, "nothing would be trained"),
        ({"lr_multipliers": ("vison/*=0",)}, False, "no parameter is called 'vison"),
        ({"lr_multipliers": ("text/*",)}, False, "a number"),
        ({"lr_multipliers": ("text/*=-1",)}, False, "of 0"),
    ],
)
def test_settings_that_fit_no_parameter_are_refused(published, scanned, settings, scan, message):
    with pytest.raises(ValueError, match=message):
        lr_multipliers(scanned if scan else published, OptimConfig(**settings))


def test_patterns_without_effect_are_told(published):
    config = OptimConfig(
        trained_vision_layers=2,
        trained_text_layers=0,
        lr_multipliers=("vision/cls=1", "vision/*=0.1", "text/*=0.5", "text/token=0"),
    )
    assert patterns_of_frozen(published, config) == ["vision/cls=1", "text/*=0.5"]
    settings = TrainConfig(optim=config)
    rows = what_trains(settings, published, num_images=1_000, steps=10)
    assert rows["trained"].endswith("what they name is frozen: 'vision/cls=1', 'text/*=0.5'")


def test_a_tower_of_scanned_layers_is_frozen_whole(scanned):
    frozen = frozen_names(scanned, trained_vision_layers=0)
    assert frozen == {name for name in flat(scanned) if name.startswith("vision/")}


def test_numbers_of_layers_are_checked_with_the_settings():
    config = tiny_config()
    config.optim.trained_text_layers = -2
    with pytest.raises(ValueError, match="trained_text_layers: given -2"):
        validate(config)


def test_parts_join_to_the_whole():
    params = jax.tree.map(lambda leaf: leaf, TinyRun(tiny_config()).state.params)
    trained, frozen = split_frozen(params, OptimConfig(trained_vision_layers=0))
    assert "vision" not in trained
    assert set(frozen) == {"vision"}
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(params)


def test_frozen_parameters_stay_to_the_bit_and_have_no_optimizer_state(last_layers):
    config, _, start, after = last_layers
    trained, frozen = split_frozen(start.params, config.optim)
    assert {"vision/layer_0/mlp/fc1/kernel", "text/token", "decoder/query"} <= set(flat(frozen))
    params, average = flat(after.params), flat(after.ema_params)
    for name, value in flat(frozen).items():
        np.testing.assert_array_equal(params[name], value, err_msg=name)
        np.testing.assert_array_equal(average[name], value, err_msg=name)
    still = {name for name, value in flat(trained).items() if (params[name] == value).all()}
    assert still == {"decoder/layer_0/norm1/scale"}  # of zeros, so it has no gradient
    for moments in (after.opt_state[1].mu, after.opt_state[1].nu):
        assert set(flat(moments)) == set(flat(trained))


@pytest.mark.slow
def test_trained_parameters_move_as_with_the_gradient_of_all_masked(last_layers):
    """AdamW written down anew, on the whole gradient with zeros for what is frozen."""
    config, model, start, end = last_layers
    frozen = set(flat(split_frozen(start.params, config.optim)[1]))
    factors = flat(lr_multipliers(start.params, config.optim))
    decays = flat(decay_mask(start.params, "matrices"))
    schedule = make_schedule(config.optim, steps=config.steps, warmup_steps=1)
    params = {name: np.asarray(value, np.float64) for name, value in flat(start.params).items()}
    mean = {name: np.zeros_like(value) for name, value in params.items()}
    square = {name: np.zeros_like(value) for name, value in params.items()}

    @jax.jit
    def gradient(params, batch, rng):
        return jax.grad(lambda p: batch_loss(model, p, batch, config, rng=rng)[0])(params)

    for step in range(2):
        tree = flax.traverse_util.unflatten_dict(
            {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}, sep="/"
        )
        rng = jax.random.fold_in(jax.random.key(config.seed), step)
        found = flat(gradient(tree, random_batch(step), rng))
        grads = {
            name: np.float64(0) * found[name]
            if name in frozen
            else np.asarray(found[name], np.float64)
            for name in params
        }
        norm = math.sqrt(sum((value**2).sum() for value in grads.values()))
        rate = float(schedule(jnp.asarray(step)))
        for name, value in grads.items():
            clipped = value * min(1.0, config.optim.clip_grad_norm / norm)
            mean[name] = 0.9 * mean[name] + 0.1 * clipped
            square[name] = 0.98 * square[name] + 0.02 * clipped**2
            update = (mean[name] / (1 - 0.9 ** (step + 1))) / (
                np.sqrt(square[name] / (1 - 0.98 ** (step + 1))) + 1e-8
            )
            update += config.optim.weight_decay * decays[name] * params[name]
            params[name] = params[name] - factors[name] * rate * update
    after = flat(end.params)
    for name, value in params.items():
        np.testing.assert_allclose(after[name], value, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_sharded_and_in_micro_batches_it_is_the_same(last_layers):
    config, _, start, after = last_layers
    config = copy.deepcopy(config)
    config.optim.grad_cache_chunks = 2
    sharded = TinyRun(config, mesh=MeshConfig(2, 2, 2), devices=8, start=start)
    sharded.train([random_batch(0), random_batch(1)])
    for name, value in flat(after.params).items():
        np.testing.assert_allclose(flat(sharded.state.params)[name], value, atol=2e-5, err_msg=name)


def compiled_memory(config):
    """(bytes of activations and workspaces, bytes of state and batch) of the compiled step."""
    run = TinyRun(config)
    placed = sharding.put_batch(random_batch(), run.mesh, batch_size=16)
    with sharding.use_mesh(run.mesh):
        memory = run.step.lower(run.state, placed).compile().memory_analysis()
    return memory.temp_size_in_bytes, memory.argument_size_in_bytes


@pytest.mark.slow
def test_a_frozen_run_takes_less_memory():
    config = tiny_config()
    config.model.vision.depth = config.model.text.depth = 4
    activations, arguments = compiled_memory(config)
    config.optim.trained_vision_layers = config.optim.trained_text_layers = 1
    fewer_activations, fewer_arguments = compiled_memory(config)
    _, frozen = split_frozen(abstract_params(config.model), config.optim)
    moments = 2 * sum(4 * leaf.size for leaf in jax.tree.leaves(frozen))
    assert fewer_arguments == arguments - moments
    assert fewer_activations < 0.6 * activations


@pytest.fixture(scope="module")
def in_checkpoints(last_layers, tmp_path_factory):
    """Saved with all trained, and with the last layers alone."""
    config, *_ = last_layers
    whole_config = copy.deepcopy(config)
    whole_config.optim.trained_vision_layers = whole_config.optim.trained_text_layers = -1
    whole_config.optim.lr_multipliers = ()
    found = {}
    for name, settings in (("whole", whole_config), ("frozen", config)):
        run = TinyRun(settings)
        run.train([random_batch(0)])
        folder = tmp_path_factory.mktemp(name)
        saved = make_metadata(
            run.config,
            tokenizer=WordTokenizer(["red", "crest"]),
            preprocessing=Preprocessing.from_config(run.config.data, 16),
            templates=PROMPT_TEMPLATES,
            num_images=16,
        )
        checkpoints = Checkpoints(folder, CheckpointConfig(asynchronous=False), metadata=saved)
        checkpoints.save(run.state, step=1)
        checkpoints.wait()
        found[name] = run, jax.device_get(run.state), checkpoints
    yield found
    for *_, checkpoints in found.values():
        checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "now"), [("whole", "frozen"), ("frozen", "whole"), ("frozen", "frozen")]
)
def test_a_run_resumes_with_other_parameters_trained(in_checkpoints, before, now):
    """Moments of what is trained in both are kept, others start at 0; runs of versions before had
    moments of all parameters, as "whole" has."""
    _, stored, checkpoints = in_checkpoints[before]
    wanted, *_ = in_checkpoints[now]
    restored = checkpoints.restore(1, wanted.abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(wanted.abstract)
    jax.tree.map(np.testing.assert_array_equal, restored.params, stored.params)
    old, new = stored.opt_state[1], restored.opt_state[1]
    assert int(new.count) == int(old.count)
    for moments, of_before in ((new.mu, flat(old.mu)), (new.nu, flat(old.nu))):
        for name, value in flat(moments).items():
            expected = of_before.get(name, np.zeros(value.shape))
            np.testing.assert_array_equal(value, expected, err_msg=name)
    wanted.set_state(jax.device_get(restored))
    (history,) = wanted.train([random_batch(2)])
    assert math.isfinite(history["loss"])
    assert history["nonfinite_steps"] == 0


@pytest.mark.slow
def test_optimizer_state_of_another_model_is_refused(in_checkpoints):
    *_, checkpoints = in_checkpoints["whole"]
    config = deep_config()
    config.model.vision.depth = 1
    with pytest.raises(
        ValueError, match="parameters that the model does not have, 'vision/layer_1"
    ):
        checkpoints.restore(1, TinyRun(config).abstract)


def test_without_frozen_parameters_the_optimizer_state_is_as_before():
    """So that checkpoints written so far are resumed."""
    run = TinyRun(tiny_config())
    adam = optax.scale_by_adam().init(run.state.params)
    assert jax.tree.structure(run.state.opt_state[1]) == jax.tree.structure(adam)


def test_the_first_lines_say_what_is_trained(published):
    config = TrainConfig()
    assert "trained" not in what_trains(config, published, num_images=10, steps=1)
    config.optim.trained_vision_layers = config.optim.trained_text_layers = 0
    said = what_trains(config, published, num_images=10, steps=1)["trained"]
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in published.items()
    }
    assert said.startswith(f"{(sizes['decoder'] + 1) / 1e6:.2f} M parameters")
    assert f"vision {sizes['vision'] / 1e6:.2f} M, text" not in said.split(";")[0]
    assert f"vision {sizes['vision'] / 1e6:.2f} M" in said.split(";")[1]
