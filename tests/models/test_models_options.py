"""What each option of the model does, on a small model with random parameters."""

import dataclasses
import math
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import official_golden
import pytest

from grain_jax.config import TextConfig
from grain_jax.models import attention
from grain_jax.models.image_text import abstract_params, build_model
from grain_jax.models.positions import grid_positions

CONFIG = official_golden.CONFIG
replace = dataclasses.replace


@pytest.fixture(scope="module")
def small():
    """A model with every other option: shorter compile, random parameters, no golden tensors."""
    config = replace(
        CONFIG,
        embed_dim=8,
        vision=replace(
            CONFIG.vision,
            depth=1,
            qk_norm=False,
            activation="quick_gelu",
            initializer="xavier",
            position_init="sincos",
        ),
        text=replace(CONFIG.text, depth=1, activation="gelu"),
        decoder=replace(CONFIG.decoder, depth=1, share_projection=True, dropout=0.0),
        region_logit_scale="own",
        init_logit_scale=4.0,
    )
    model = build_model(config)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    texts = jnp.asarray(official_golden.tensors()["in.text"][:2])
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), images, texts)
    return model, nn.unbox(variables["params"]), images, texts


def test_other_options(small):
    model, params, images, texts = small
    assert "region_projection" not in params["decoder"]
    assert "q_norm" not in params["vision"]["layer_0"]["attention"]
    np.testing.assert_array_equal(params["vision"]["position"][0], 0)
    np.testing.assert_allclose(params["vision"]["position"][1:], grid_positions(4, 64))

    @jax.jit
    def run(params, scale):
        changed = params | {"region_logit_scale": scale}
        output = model.apply({"params": changed}, images, texts)
        moved = params["decoder"]["image_projection"] * 2
        decoder = params["decoder"] | {"image_projection": moved}
        doubled = model.apply({"params": params | {"decoder": decoder}}, images, texts)
        return output, doubled

    output, doubled = run(params, jnp.log(9.0))
    np.testing.assert_allclose(output.logit_scale, 4.0, rtol=1e-6)
    np.testing.assert_allclose(output.region_logit_scale, 9.0, rtol=1e-6)
    for field in ("image_embed", "region_embed"):
        np.testing.assert_allclose(
            getattr(doubled.image, field), 2 * getattr(output.image, field), rtol=1e-5
        )
    assert output.description_embed is None


def test_scales_stay_in_their_bounds_and_can_come_back(small):
    model, params, _, _ = small

    def scale(value):
        variables = {"params": params | {"logit_scale": value}}
        return model.apply(variables, method="logit_scales")[0]

    for value, expected in ((math.log(50), 50.0), (10.0, 100.0), (-1.0, 1.0)):
        out, gradient = jax.value_and_grad(scale)(jnp.asarray(value))
        np.testing.assert_allclose(out, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)  # not 0 outside the bounds


def test_texts_may_be_cut_after_their_end(small):
    model, params, _, _ = small
    texts = np.zeros((3, 16), np.int32)
    for row, length in enumerate((3, 5, 8)):
        texts[row, :length] = np.random.default_rng(row).integers(1, 98, length)
        texts[row, length - 1] = 99
    encode = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode_texts"))
    long, short = (encode(params, jnp.asarray(texts[:, :length])) for length in (16, 8))
    np.testing.assert_allclose(long, short, atol=1e-6)
    texts[0, 3:] = 7  # whatever follows end-of-text
    np.testing.assert_allclose(encode(params, jnp.asarray(texts)), long, atol=1e-6)
    texts[0, 1] += 1
    assert np.abs(np.asarray(encode(params, jnp.asarray(texts))) - long)[0].max() > 1e-3


def test_wrong_sizes_are_explained(small):
    model, params, images, _ = small
    with pytest.raises(ValueError, match="image_size"):
        jax.eval_shape(
            lambda: model.apply({"params": params}, images[:, :16], method="encode_images")
        )
    with pytest.raises(ValueError, match="context_length"):
        jax.eval_shape(
            lambda: model.apply(
                {"params": params}, jnp.zeros((1, 17), jnp.int32), method="encode_texts"
            )
        )
    other = build_model(replace(model.config, attention="cudnn", dtype="bfloat16"))
    with pytest.raises(ValueError, match="NVIDIA GPU"):
        jax.eval_shape(lambda: other.apply({"params": params}, images, method="encode_images"))
    assert abstract_params(other.config).keys() == params.keys()
    with pytest.raises(ValueError, match="num_heads"):
        build_model(replace(CONFIG, text=TextConfig(width=50, num_heads=4)))
    with pytest.raises(ValueError, match="attention"):
        build_model(replace(CONFIG, attention="flash"))


class FakeDevice:
    """What is asked of a device: its platform, its client's version and its capability."""

    def __init__(self, platform, version, capability=None):
        self.platform = platform
        self.client = types.SimpleNamespace(platform_version=version)
        if capability is not None:
            self.compute_capability = capability


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (FakeDevice("gpu", "PJRT C API\ncuda 13000", "9.0"), True),
        (FakeDevice("gpu", "cuda 12090", "8.0"), True),
        (FakeDevice("gpu", "cuda 12090", "12.0"), True),
        (FakeDevice("gpu", "cuda 12090", "7.5"), False),
        (FakeDevice("gpu", "rocm 60200", "9.0"), False),
        (FakeDevice("gpu", "", "gfx90a"), False),
        (FakeDevice("gpu", "cuda 12090"), False),
        (FakeDevice("cpu", "", None), False),
        (FakeDevice("tpu", "", "9.0"), False),
    ],
)
def test_flash_attention_is_for_nvidia_gpus_that_have_it(device, expected):
    assert attention.has_flash(device) is expected


def test_auto_attention_falls_back_on_an_old_gpu(monkeypatch):
    old = FakeDevice("gpu", "cuda 12090", "7.5")
    old.device_kind = "Tesla T4"
    monkeypatch.setattr(attention.jax, "devices", lambda: [old])
    x = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
    assert attention.attend(x, x, x).shape == x.shape
    with pytest.raises(ValueError, match=r"8\.0 or newer.*Tesla T4"):
        attention.attend(x, x, x, implementation="cudnn")
