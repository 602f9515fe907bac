"""Parameters from and to the official names: exact, complete, and clear about what does not fit."""

import dataclasses

import jax
import numpy as np
import official_golden
import pytest

from grain_jax.config import DecoderConfig, ModelConfig
from grain_jax.formats.grain_reference import (
    from_official,
    stack_layers,
    to_official,
    unstack_layers,
)
from grain_jax.formats.parameter_names import entries, unused_shapes
from grain_jax.models.image_text import abstract_params

CONFIG = official_golden.CONFIG
CLIP = dataclasses.replace(CONFIG, type="clip")


def random_params(config: ModelConfig):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_params(config)
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_official_tensors_survive_a_round_trip_to_the_bit():
    state = official_golden.state_dict()
    unused = unused_shapes(CONFIG, num_classes=official_golden.NUM_CLASSES)
    back = to_official(
        from_official(state, CONFIG), CONFIG, num_classes=official_golden.NUM_CLASSES
    )
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].shape == value.shape
        assert back[name].flags.c_contiguous
        expected = np.zeros_like(value) if name in unused else value
        np.testing.assert_array_equal(back[name], expected)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        CLIP,
        dataclasses.replace(CONFIG, scan_layers=True),
        dataclasses.replace(CONFIG, region_logit_scale="own"),
        dataclasses.replace(
            CONFIG, decoder=dataclasses.replace(CONFIG.decoder, share_projection=True)
        ),
        dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, qk_norm=False)),
    ],
    ids=["grain", "clip", "scan", "own scale", "shared projection", "no qk norm"],
)
def test_every_parameter_has_an_official_name(config):
    params = random_params(config)
    state = to_official(params, config)
    assert_same(from_official(state, config), params)
    used = [entry.official for entry in entries(config)]
    assert len(set(used)) == len(used)
    assert set(state) - set(used) == set(unused_shapes(config))


def test_unused_tensors_are_omitted_on_request():
    state = to_official(random_params(CONFIG), CONFIG, unused=False)
    assert "decoder.class_embed.weight" not in state
    assert_same(from_official(state, CONFIG), random_params(CONFIG))


def test_stacking_layers_and_back():
    params = random_params(CONFIG)
    stacked = stack_layers(params)
    assert_same(
        jax.tree.map(np.shape, stacked),
        jax.tree.map(
            lambda leaf: leaf.shape, abstract_params(dataclasses.replace(CONFIG, scan_layers=True))
        ),
    )
    assert_same(unstack_layers(stacked), params)


def test_tensors_that_do_not_fit_are_listed():
    state = dict(official_golden.state_dict())
    del state["backbone.ln_final.bias"]
    state["backbone.extra"] = np.zeros(3, np.float32)
    state["decoder.obj_proj"] = np.zeros((32, 7), np.float32)
    with pytest.raises(ValueError, match="3 of the official tensors") as error:
        from_official(state, CONFIG)
    for part in (
        "missing backbone.ln_final.bias",
        "unknown backbone.extra",
        "(32, 7)",
        "(32, 512)",
    ):
        assert part in str(error.value)


def test_two_projections_are_not_silently_made_one():
    shared = dataclasses.replace(CONFIG.decoder, share_projection=True)
    with pytest.raises(ValueError, match="share_projection=False"):
        from_official(official_golden.state_dict(), dataclasses.replace(CONFIG, decoder=shared))


def test_official_sizes():
    """The unused tensors of the published model, by the official count of parameters."""
    unused = unused_shapes(ModelConfig(decoder=DecoderConfig()))
    sizes = {name: int(np.prod(shape)) for name, shape in unused.items()}
    assert sizes.pop("backbone.image_projection") == 393_216
    assert sum(sizes.values()) == 11_575_328
