"""The model: sizes of the published ones, and that no option changes what it should not."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import official_golden
import pytest
from jax.sharding import AxisType, NamedSharding

from grain_jax.config import DecoderConfig, LossConfig, ModelConfig, vision_variant
from grain_jax.formats.grain_reference import stack_layers, unstack_layers
from grain_jax.models.dropout import Dropout
from grain_jax.models.image_text import abstract_params, build_model, normalize_images
from grain_jax.models.layers import activation_fn
from grain_jax.models.positions import grid_positions
from grain_jax.training.objective import total_loss

CONFIG = official_golden.CONFIG
replace = dataclasses.replace


@pytest.fixture(scope="module")
def params():
    return official_golden.params()


@pytest.fixture(scope="module")
def plain():
    """((loss, output), gradient) without any option."""
    (loss, (_, output)), gradient = official_golden.evaluated()
    return (loss, output), gradient


def loss_and_gradient(params, **changes):
    (loss, (_, output)), gradient = official_golden.loss_and_gradient(params, **changes)
    return (loss, output), gradient


def assert_close(a, b, *, relative=1e-5):
    """Each array to `relative` of the largest entry of its twin."""

    def check(x, y):
        tolerance = relative * float(np.abs(y).max()) + 1e-7
        np.testing.assert_allclose(np.asarray(x, np.float32), y, rtol=0, atol=tolerance)

    jax.tree.map(check, a, b)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# Official counts: the backbones with the CLIP projection, which GRAIN does not use.
@pytest.mark.parametrize(
    ("size", "visual", "backbone"),
    [("S/16", None, 85_291_905), ("B/16", 85_801_728, 149_623_041), ("L/14", None, 367_137_281)],
)
def test_published_sizes(size, visual, backbone):
    vision = vision_variant(size)
    clip = abstract_params(ModelConfig(type="clip", vision=vision), scan_layers=True)
    grain = abstract_params(ModelConfig(vision=vision), scan_layers=True)  # quicker to trace
    assert count(clip) == backbone
    decoder = count(grain.pop("decoder"))
    assert count(grain) == backbone - vision.width * 512
    if size == "B/16":
        assert count(grain["vision"]) == visual
        assert decoder == 26_674_180
        assert count(grain) + decoder == 175_904_005
    else:
        assert decoder == 26_674_180 + (vision.width - 768) * 512


@pytest.mark.parametrize("kind", ["grain", "clip"])
@pytest.mark.parametrize(
    ("size", "scan"),
    [
        ("S/16", True),
        pytest.param("B/16", False, marks=pytest.mark.slow),
        pytest.param("L/14", True, marks=pytest.mark.slow),
    ],
)
def test_shapes_of_published_sizes(size, kind, scan):
    config = ModelConfig(type=kind, vision=vision_variant(size), scan_layers=scan)
    model = build_model(config)
    output = jax.eval_shape(
        lambda p, images, captions, descriptions: model.apply(
            {"params": p}, images, captions, descriptions, auxiliary_boxes=True
        ),
        abstract_params(config),
        jax.ShapeDtypeStruct((4, 224, 224, 3), jnp.float32),
        jax.ShapeDtypeStruct((4, 77), jnp.int32),
        jax.ShapeDtypeStruct((4, 5, 32), jnp.int32),
    )
    patches = (224 // config.vision.patch_size) ** 2
    assert output.image.tokens.shape == (4, patches + 1, config.vision.width)
    assert output.image.tokens.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(replace(output, image=replace(output.image, tokens=None))):
        assert leaf.dtype == jnp.float32
    assert output.image.image_embed.shape == output.caption_embed.shape == (4, 512)
    assert output.description_embed.shape == (4, 5, 512)
    if kind == "grain":
        assert output.image.region_embed.shape == (4, 5, 512)
        assert output.image.boxes.shape == (4, 5, 4)
        assert output.image.auxiliary_boxes.shape == (4, 5, 5, 4)
    else:
        assert output.image.boxes is None
        assert output.image.region_embed is None


@pytest.mark.slow
def test_scanned_layers_and_recomputation_are_the_same_model(params, plain):
    run = jax.jit(functools.partial(loss_and_gradient, scan_layers=True, remat="dots"))
    (loss, output), gradient = run(stack_layers(params))
    np.testing.assert_allclose(loss, plain[0][0], rtol=1e-5)
    assert_close(output, plain[0][1])
    assert_close(unstack_layers(gradient), plain[1], relative=1e-4)


@pytest.mark.slow
def test_what_recomputation_keeps_for_the_backward_pass():

    def saved(remat):
        def loss(params):
            return official_golden.apply(params, remat=remat).image.image_embed.sum()

        _, pull_back = jax.eval_shape(lambda p: jax.vjp(loss, p), official_golden.params())
        return count(pull_back)

    assert saved("full") < saved("dots") < saved("none")


def test_packing_descriptions_changes_nothing_while_they_fit(params, plain):
    """15 of 30 are real: half the capacity is exact, 9 rows leave 6 out of the region loss."""

    @jax.jit
    def run(params):
        results = []
        for share in (0.5, 0.3):
            output = official_golden.apply(params, description_capacity_factor=share)
            config = LossConfig(image_description_weight=1.0)
            loss = total_loss(output, **official_golden.loss_inputs(), config=config)
            results.append((output, loss[1]))
        return results

    (output, whole), (short, metrics) = run(params)
    mask = official_golden.region_mask()
    np.testing.assert_array_equal(output.description_kept, mask)
    np.testing.assert_array_equal(whole["descriptions_dropped"], [0, 15])
    np.testing.assert_allclose(
        output.description_embed[mask], plain[0][1].description_embed[mask], atol=1e-5
    )
    np.testing.assert_array_equal(np.asarray(output.description_embed)[~mask], 0)

    np.testing.assert_array_equal(short.description_kept[mask], np.arange(15) < 9)
    weights = {name: float(weight) for name, (_, weight) in metrics.items()}
    assert (weights["region"], weights["image_description"], weights["box_l1"]) == (9, 9, 15)
    np.testing.assert_array_equal(metrics["descriptions_dropped"], [6, 15])


def test_half_precision_stays_close(params, plain):
    output = jax.jit(lambda p: official_golden.apply(p, dtype="bfloat16"))(params)
    assert output.image.tokens.dtype == jnp.bfloat16
    assert_close(output, plain[0][1], relative=0.05)


def test_gelu_in_half_precision_is_that_of_float32_rounded():
    x = jnp.linspace(-5, 5, 1_001, dtype=jnp.bfloat16)
    exact = np.asarray(jax.nn.gelu(x.astype(jnp.float32), approximate=False))
    np.testing.assert_allclose(
        activation_fn("gelu")(x).astype(jnp.float32), exact, rtol=0.01, atol=1e-6
    )


@pytest.mark.slow
def test_sharded_over_8_devices_it_is_the_same_model(params, plain):
    """Everything over a 2 x 2 x 2 mesh by its logical names, descriptions packed: same results."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rules = [
        ("batch", "data"),  # the golden batch is 6
        ("embed", "fsdp"),
        *((name, "tensor") for name in ("mlp", "heads", "vocab", "joint")),
        *((name, None) for name in ("kv", "layers")),
    ]
    model = build_model(CONFIG)
    inputs = jnp.zeros((2, 32, 32, 3)), jnp.zeros((2, 16), jnp.int32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    specs = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, rules)
    specs = jax.tree.map(  # what 2 devices cannot share stays whole: 5 queries, one scale
        lambda spec, leaf: (
            spec
            if all(size % 2 == 0 for size, axis in zip(leaf.shape, spec.spec, strict=False) if axis)
            else NamedSharding(mesh, jax.sharding.PartitionSpec())
        ),
        specs,
        nn.unbox(boxed),
    )
    split = [leaf for leaf in jax.tree.leaves(specs) if any(leaf.spec)]
    assert len(split) > 0.5 * len(jax.tree.leaves(specs))
    qkv = specs["vision"]["layer_0"]["attention"]["qkv"]["kernel"].spec
    assert tuple(qkv) == ("fsdp", "tensor", None, None)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        packed = functools.partial(loss_and_gradient, description_capacity_factor=0.5)
        result = jax.jit(packed)(jax.device_put(params, specs))
    (loss, output), gradient = jax.device_get(result)
    np.testing.assert_allclose(loss, plain[0][0], rtol=1e-5)
    assert output.description_kept.sum() == 15
    assert_close(output.image, plain[0][1].image)
    assert_close(gradient, plain[1], relative=1e-4)


@pytest.mark.slow
def test_dropout_acts_in_training_only(params, plain):
    decoder = replace(CONFIG.decoder, dropout=0.3)

    @jax.jit
    def run(params, keys):
        def image(**options):
            return official_golden.apply(params, decoder=decoder, **options).image

        return image(), jax.vmap(lambda key: image(train=True, rngs={"dropout": key}))(keys)

    off, trained = run(params, jax.random.split(jax.random.key(0), 3)[jnp.array([0, 1, 0])])
    a, b, again = (jax.tree.map(lambda leaf, i=i: leaf[i], trained) for i in range(3))
    assert_close(off, plain[0][1].image)
    for field in ("image_embed", "region_embed", "boxes"):
        values = [np.asarray(getattr(x, field)) for x in (off, a, b, again)]
        assert np.abs(values[1] - values[0]).max() > 1e-3
        assert np.abs(values[1] - values[2]).max() > 1e-3
        np.testing.assert_array_equal(values[1], values[3])
    np.testing.assert_allclose(off.tokens, a.tokens, atol=1e-5)  # the towers have none


def test_dropout_of_a_row_is_that_of_its_number():
    def dropped(rows, *, rate=0.5):
        x = jnp.ones((len(rows), 3, 40))
        key = {"dropout": jax.random.key(0)}
        return np.asarray(Dropout(rate, deterministic=False).apply({}, x, rows, rngs=key))

    whole = dropped(jnp.arange(6))
    np.testing.assert_array_equal(dropped(jnp.array([4, 1])), whole[[4, 1]])
    assert len(np.unique(whole.reshape(6, -1), axis=0)) == 6
    assert set(np.unique(whole)) == {0.0, 2.0}
    assert whole.mean() == pytest.approx(1.0, abs=0.15)
    assert not dropped(jnp.arange(2), rate=1.0).any()


def test_a_built_model_does_not_follow_its_config():
    config = replace(CONFIG, decoder=DecoderConfig())
    model = build_model(config)
    config.decoder.num_queries = 77
    assert model.config.decoder.num_queries == 5


@pytest.mark.slow
def test_initial_values():
    """Spread of every kind of parameter, as the official code draws it."""
    vision = replace(CONFIG.vision, width=128, depth=1, patch_size=8)
    text = replace(CONFIG.text, width=96, depth=3, vocab_size=400, token_init_std=0.5)
    decoder = replace(CONFIG.decoder, width=128, mlp_dim=256, depth=1)
    config = replace(CONFIG, vision=vision, text=text, decoder=decoder)
    model = build_model(config)
    inputs = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 4), jnp.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0, impl="rbg"), *inputs)["params"])
    uniform = 3**-0.5  # standard deviation of a uniform variable by its bound
    expected = {
        ("vision", "layer_0", "attention", "qkv", "kernel"): uniform * 128**-0.5,
        ("vision", "layer_0", "attention", "qkv", "bias"): uniform * 128**-0.5,
        ("vision", "layer_0", "mlp", "fc2", "kernel"): uniform * 512**-0.5,
        ("vision", "patch", "kernel"): uniform * (3 * 64) ** -0.5,
        ("vision", "position"): 0.02,
        ("vision", "cls"): 1e-6,
        ("text", "token"): 0.5,
        ("text", "position"): 0.01,
        ("text", "projection"): 96**-0.5,
        ("text", "layer_1", "attention", "qkv", "kernel"): 96**-0.5,
        ("text", "layer_1", "attention", "qkv", "bias"): 0.0,
        ("text", "layer_1", "attention", "out", "kernel"): 96**-0.5 * 6**-0.5,
        ("text", "layer_1", "mlp", "fc1", "kernel"): (2 * 96) ** -0.5,
        ("text", "layer_1", "mlp", "fc1", "bias"): uniform * 96**-0.5,
        ("text", "layer_1", "mlp", "fc2", "kernel"): 96**-0.5 * 6**-0.5,
        ("decoder", "query"): 1.0,
        ("decoder", "input", "kernel"): uniform * 128**-0.5,
        ("decoder", "layer_0", "self_attention", "kernel"): uniform * (6 / 512) ** 0.5,
        ("decoder", "layer_0", "cross_attention", "bias"): 0.0,
        ("decoder", "layer_0", "cross_attention", "out", "kernel"): uniform * (6 / 256) ** 0.5,
        ("decoder", "layer_0", "mlp", "fc1", "kernel"): uniform * (6 / 384) ** 0.5,
        ("decoder", "layer_0", "mlp", "fc2", "bias"): uniform * 256**-0.5,
        ("decoder", "box_head", "layer0", "kernel"): uniform * 128**-0.5,
        ("decoder", "image_projection"): 128**-0.5,
    }
    for path, std in expected.items():
        value = params
        for name in path:
            value = value[name]
        error = 4 * std / math.sqrt(2 * value.size)  # 4 standard errors
        np.testing.assert_allclose(np.std(value), std, atol=error, rtol=0.01, err_msg=str(path))
    assert float(params["vision"]["norm"]["scale"].min()) == 1.0
    np.testing.assert_allclose(params["logit_scale"], math.log(1 / 0.07), rtol=1e-6)


def test_normalising_images():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)), jnp.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    expected = (np.asarray(images) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalize_images(images, mean, std), expected, atol=1e-5)
    half = normalize_images(images, mean, std, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=0.01, atol=0.01)


def test_grid_positions_tell_places_apart():
    table = grid_positions(6, 32)
    assert table.shape == (36, 32)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert distance[~np.eye(36, dtype=bool)].min() > 0.5
    np.testing.assert_allclose(table[7, :16], table[8, :16])  # same row: same half for y
    with pytest.raises(ValueError, match="divisible by 4"):
        grid_positions(4, 30)
