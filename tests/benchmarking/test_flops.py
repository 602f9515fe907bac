"""Counted operations, against the matrix products of the traced step."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grain_jax.benchmarking.flops import image_flops, padded_positions, step_flops
from grain_jax.benchmarking.synthetic_batch import synthetic_batch, text_positions
from grain_jax.config import TrainConfig
from grain_jax.data.region_coverage import needs_descriptions
from grain_jax.models.image_text import build_model
from grain_jax.models.text_stream import stream_shape
from grain_jax.training.step import batch_loss


def small(model_type: str = "grain", **settings: Any) -> TrainConfig:
    config = TrainConfig(batch_size=8)
    model = config.model
    model.type, model.dtype, model.image_size, model.embed_dim = model_type, "float32", 48, 24
    model.vision.width, model.vision.depth, model.vision.num_heads = 32, 3, 4
    model.text.width, model.text.depth, model.text.num_heads = 40, 2, 4
    model.text.vocab_size = 64
    model.decoder.width, model.decoder.depth, model.decoder.num_heads = 16, 2, 2
    model.decoder.mlp_dim = 48
    config.data.caption_length, config.data.description_length = 14, 6
    for path, value in settings.items():
        owner: Any = config
        *sections, name = path.split("__")
        for section in sections:
            owner = getattr(owner, section)
        setattr(owner, name, value)
    return config


def traced_flops(config: TrainConfig) -> float:
    """2 m k n of every product in the loss and its gradient, as traced."""
    batch: Any = jax.tree.map(jnp.asarray, synthetic_batch(config))
    model = build_model(config.model)
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        batch.images.astype(jnp.float32),
        batch.captions,
        batch.descriptions,
    )

    def loss(params: Any) -> Any:
        return batch_loss(model, params, batch, config, rng=jax.random.key(0))[0]

    jaxpr = jax.make_jaxpr(jax.grad(loss))(nn.unbox(shapes["params"]))
    return products(jaxpr.jaxpr)


def products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            for inner_jaxpr in value if isinstance(value, tuple | list) else [value]:
                nested = getattr(inner_jaxpr, "jaxpr", inner_jaxpr)
                if hasattr(nested, "eqns"):
                    total += products(nested)
    return total


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(small(), id="grain"),
        pytest.param(small("clip"), id="clip"),
        pytest.param(
            small(
                model__description_capacity_factor=0.6,
                loss__auxiliary_box_weight=1.0,
                loss__image_description_weight=0.5,
            ),
            id="packed, with every loss",
        ),
        pytest.param(small(model__text_tokens_per_image=30.0), id="texts end to end"),
    ],
)
def test_flops_of_a_step_are_those_of_its_traced_products(config):
    counted = step_flops(
        config, padded_positions(config), with_descriptions=needs_descriptions(config)
    )
    assert counted.total == pytest.approx(traced_flops(config), rel=0.01)


def test_flops_without_padding_are_those_of_texts_cut_to_their_lengths():
    config = small()
    batch = synthetic_batch(config)
    lengths = (batch.captions != 0).sum(1)
    useful = step_flops(config, text_positions(batch, config), with_descriptions=True)
    by_hand = 0.0
    for length in lengths:
        config.data.caption_length = int(length)
        alone = step_flops(config, padded_positions(config), with_descriptions=True)
        by_hand += alone.captions / config.batch_size
    assert useful.captions == pytest.approx(by_hand)
    assert (
        useful.descriptions
        < step_flops(small(), padded_positions(small()), with_descriptions=True).descriptions
    )
    assert text_positions(batch, small()).descriptions == np.asarray(batch.region_mask).sum()


@pytest.mark.parametrize(
    ("model_type", "room", "cut"),
    [("grain", 40.0, False), ("grain", 21.0, True), ("clip", 14.0, False), ("clip", 8.0, True)],
)
def test_flops_of_texts_end_to_end_are_those_that_are_left_of_them(model_type, room, cut):
    """In streams of 2 images: 2 devices, 2 micro-batches, rows of a device taken in turns.

    A CLIP encodes captions alone.
    """
    config = small(model_type, model__text_tokens_per_image=room, optim__grad_cache_chunks=2)
    batch, plain, grain = synthetic_batch(config), small(model_type), model_type == "grain"
    useful = text_positions(batch, config, num_shards=2)
    whole = text_positions(batch, plain)
    flops = step_flops(config, useful, with_descriptions=grain)
    spent = step_flops(config, padded_positions(config, num_shards=2), with_descriptions=grain)
    assert spent.captions == spent.descriptions == flops.text_streams == 0
    assert 0 < flops.texts < spent.texts == spent.text_streams
    assert useful.caption_positions <= whole.caption_positions
    assert (useful == whole) != cut
    if cut:
        longest = config.data.caption_length  # the longer of the two kinds
        blocks, length = stream_shape(room, images=2, longest=longest)
        captions, descriptions = (np.asarray(x) for x in (batch.captions, batch.descriptions))
        tokens = 0
        for rows in ([0, 2], [1, 3], [4, 6], [5, 7]):
            lengths = [*(captions[rows] != 0).sum(-1)]
            lengths += [*(descriptions[rows] != 0).sum(-1).ravel()] if grain else []
            fitting = (np.minimum(lengths, most).sum() for most in range(1, longest + 1))
            tokens += max(total for total in fitting if total <= blocks * length)
        found = useful.captions * useful.caption_positions
        found += useful.descriptions * useful.description_positions
        assert found == pytest.approx(tokens)


@pytest.mark.parametrize("model_type", ["grain", "clip"])
def test_encoding_an_image_is_counted_as_the_forward_products_of_its_trace(model_type):
    config = small(model_type)
    model = build_model(config.model)
    batch: Any = synthetic_batch(config)
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        batch.images.astype(np.float32),
        batch.captions,
        batch.descriptions,
    )
    images = jnp.zeros((1, 48, 48, 3))

    def encode(params: Any) -> Any:
        return model.apply({"params": params}, images, method="encode_images")

    traced = products(jax.make_jaxpr(encode)(nn.unbox(shapes["params"])).jaxpr)
    assert image_flops(config) == pytest.approx(traced, rel=1e-6)
