"""The total loss: terms and weights, named differences from the official one, and sharding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from grain_jax.config import LossConfig, official_loss
from grain_jax.losses.matching import match, matching_cost
from grain_jax.models.outputs import ImageOutput, Output
from grain_jax.training.objective import total_loss

B, Q, M, E, A = 8, 4, 3, 6, 2


def make_output(seed: int = 0) -> Output:
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def boxes(*shape):
        return jnp.asarray(rng.uniform(0.2, 0.6, (*shape, 4)), jnp.float32)

    image = ImageOutput(normal(B, 2, E), normal(B, E), normal(B, Q, E), boxes(B, Q), boxes(B, A, Q))
    return Output(
        image=image,
        caption_embed=normal(B, E),
        description_embed=normal(B, M, E),
        logit_scale=jnp.asarray(8.0),
        region_logit_scale=jnp.asarray(5.0),
        logit_bias=jnp.asarray(-4.0),
    )


def make_targets(**changes):
    rng = np.random.default_rng(1)
    mask = np.arange(M)[None] < np.array([3, 2, 0, 1, 3, 3, 2, 1])[:, None]
    targets = {
        "caption_key": jnp.asarray(np.r_[np.arange(B - 1), 0].astype(np.uint32)),
        "description_key": jnp.asarray(rng.integers(0, 8, (B, M)).astype(np.uint32)),
        "boxes": jnp.asarray(
            np.where(mask[..., None], rng.uniform(0.3, 0.6, (B, M, 4)), 0.0), jnp.float32
        ),
        "region_mask": jnp.asarray(mask),
    }
    return targets | changes


EVERYTHING = LossConfig(auxiliary_box_weight=0.5, image_description_weight=0.25)


@jax.jit
def every_variant(output, targets):
    """Value, metrics and gradients of the variants under test, compiled once."""
    variants = {
        "default": LossConfig(),
        "everything": EVERYTHING,
        "faithful": official_loss(),
        "official labels": LossConfig(variant="official"),
        "sigmoid": dataclasses.replace(EVERYTHING, image_caption="sigmoid"),
    }

    def loss(output, config):
        return total_loss(output, **targets, config=config)

    return {
        name: jax.value_and_grad(loss, has_aux=True)(output, config)
        for name, config in variants.items()
    }


def leaves_are(check, tree):
    return all(bool(check(leaf).all()) for leaf in jax.tree.leaves(tree))


def test_total_is_the_weighted_sum_of_the_means():
    results = every_variant(make_output(), make_targets())
    (total, metrics), _ = results["everything"]
    mean = {name: float(value / weight) for name, (value, weight) in metrics.items()}
    assert set(mean) == {
        *("loss", "contrastive", "box_l1", "box_giou", "region", "match_iou"),
        *("auxiliary_box", "image_description"),
    }
    expected = mean["contrastive"] + 1.5 * (mean["box_l1"] + mean["box_giou"]) + mean["region"]
    expected += 0.5 * mean["auxiliary_box"] + 0.25 * mean["image_description"]
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(mean["loss"], total)
    (total, metrics), _ = results["default"]
    assert "auxiliary_box" not in metrics
    assert "image_description" not in metrics


def test_weights_are_the_number_of_what_was_averaged():
    (_, metrics), _ = every_variant(make_output(), make_targets())["everything"]
    weights = {name: float(weight) for name, (_, weight) in metrics.items()}
    regions = int(make_targets()["region_mask"].sum())
    assert weights["contrastive"] == B
    for name in ("box_l1", "box_giou", "region", "match_iou", "image_description", "auxiliary_box"):
        assert weights[name] == regions


def test_the_sigmoid_has_the_image_scale_to_itself():
    """With the bias; both softmax terms on descriptions have the scale of regions."""
    output, targets = make_output(), make_targets()
    results = every_variant(output, targets)
    (total, metrics), gradient = results["sigmoid"]
    mean = {name: float(value / weight) for name, (value, weight) in metrics.items()}
    softmax = results["everything"][0][1]
    assert float(metrics["contrastive"][1]) == B
    image, caption = (
        x / np.linalg.norm(x, axis=-1, keepdims=True)
        for x in map(np.asarray, (output.image.image_embed, output.caption_embed))
    )
    sign = 1 - 2 * np.eye(B)
    loss = np.log1p(np.exp(sign * (8.0 * image @ caption.T - 4.0)))
    loss[0, -1] = loss[-1, 0] = 0  # equal captions
    np.testing.assert_allclose(mean["contrastive"], loss.sum() / B, rtol=1e-5)
    np.testing.assert_array_equal(metrics["region"], softmax["region"])
    assert float(metrics["image_description"][0]) != float(softmax["image_description"][0])
    shared = dataclasses.replace(output, logit_scale=output.region_logit_scale)
    (_, at_that_scale), _ = every_variant(shared, targets)["everything"]
    np.testing.assert_allclose(
        metrics["image_description"], at_that_scale["image_description"], rtol=1e-6
    )
    assert gradient.logit_bias != 0
    assert results["everything"][1].logit_bias == 0
    expected = mean["contrastive"] + 1.5 * (mean["box_l1"] + mean["box_giou"]) + mean["region"]
    expected += 0.5 * mean["auxiliary_box"] + 0.25 * mean["image_description"]
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_each_auxiliary_layer_is_matched_on_its_own():
    output, targets = make_output(), make_targets()
    (_, metrics), _ = every_variant(output, targets)["everything"]
    sums = 0.0
    for layer in range(A):
        image = dataclasses.replace(output.image, boxes=output.image.auxiliary_boxes[:, layer])
        single = dataclasses.replace(output, image=image)
        (_, terms), _ = every_variant(single, targets)["default"]
        sums += float(terms["box_l1"][0] + terms["box_giou"][0])
    np.testing.assert_allclose(metrics["auxiliary_box"][0], sums, rtol=1e-5)


def test_a_batch_without_regions():
    """0 with zero gradients by default; 0/0 in the official code."""
    targets = make_targets(region_mask=jnp.zeros((B, M), bool))
    results = every_variant(make_output(), targets)
    (total, metrics), gradient = results["everything"]
    for name in ("box_l1", "box_giou", "region", "match_iou", "image_description", "auxiliary_box"):
        assert (float(metrics[name][0]), float(metrics[name][1])) == (0.0, 0.0)
    np.testing.assert_allclose(total, metrics["contrastive"][0] / B, rtol=1e-6)
    assert leaves_are(np.isfinite, gradient)
    for part in (gradient.image.boxes, gradient.image.region_embed, gradient.description_embed):
        np.testing.assert_array_equal(part, 0)
    assert np.isnan(results["faithful"][0][0])


def test_a_degenerate_box_keeps_the_other_labels():
    """The default drops the region alone; the official code moves the labels after it."""
    targets = make_targets()
    boxes = targets["boxes"].at[0, 1].set(jnp.asarray([1.2, 0.5, 0.2, 0.2]))  # right of the image
    output = make_output()
    results = every_variant(output, make_targets(boxes=boxes))
    aligned, shifted = results["default"][0][1], results["official labels"][0][1]
    count = int(targets["region_mask"].sum()) - 1
    assert float(aligned["region"][1]) == float(shifted["region"][1]) == count
    assert float(aligned["region"][0]) != float(shifted["region"][0])
    for name in ("box_l1", "box_giou", "contrastive"):
        np.testing.assert_array_equal(aligned[name], shifted[name])

    # Where the region comes last, no label is left to move.
    last = targets["boxes"].at[0, 2].set(0.0)
    results = every_variant(output, make_targets(boxes=last))
    aligned, shifted = results["default"][0][1], results["official labels"][0][1]
    np.testing.assert_allclose(aligned["region"], shifted["region"], rtol=1e-6)


def test_padding_takes_no_part():
    output, targets = make_output(), make_targets()
    mask = np.asarray(targets["region_mask"])
    junk = make_targets(
        boxes=jnp.where(mask[..., None], targets["boxes"], 0.5),
        description_key=jnp.where(mask, targets["description_key"], jnp.uint32(3)),
    )
    embed = jnp.where(mask[..., None], output.description_embed, 100.0)
    changed = dataclasses.replace(output, description_embed=embed)
    a, b = every_variant(output, targets), every_variant(changed, junk)
    for variant in ("everything", "faithful"):
        np.testing.assert_allclose(a[variant][0][0], b[variant][0][0], rtol=1e-6)
        part = b[variant][1].description_embed
        np.testing.assert_array_equal(np.asarray(part)[~mask], 0)


def test_boxes_reaching_out_of_the_image_are_clipped():
    inside = make_targets()["boxes"].at[0, 0].set(jnp.asarray([0.9, 0.5, 0.2, 0.2]))
    outside = inside.at[0, 0].set(jnp.asarray([1.0, 0.5, 0.4, 0.2]))
    a, b = (
        every_variant(make_output(), make_targets(boxes=x))["default"] for x in (inside, outside)
    )
    np.testing.assert_allclose(a[0][0], b[0][0], rtol=1e-6)


@pytest.mark.slow
def test_sharded_over_8_devices_it_is_the_same_loss():
    """Negatives and normalisers are global: the batch over 8 devices gives value and gradient."""
    output, targets = make_output(), make_targets()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def shard(leaf):
        axes = ["data" if size == B else None for size in leaf.shape]  # no other axis is B long
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    @jax.jit
    def everything(output, targets):
        def loss(output):
            return total_loss(output, **targets, config=EVERYTHING)

        return jax.value_and_grad(loss, has_aux=True)(output)

    (one, metrics), gradient = every_variant(output, targets)["everything"]
    (eight, sharded_metrics), sharded_gradient = everything(
        jax.tree.map(shard, output), jax.tree.map(shard, targets)
    )
    np.testing.assert_allclose(eight, one, rtol=1e-6)
    for ours, expected in ((sharded_metrics, metrics), (sharded_gradient, gradient)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), ours, expected
        )


def test_clip_has_the_contrastive_loss_alone():
    output = make_output()
    image = ImageOutput(tokens=output.image.tokens, image_embed=output.image.image_embed)
    output = dataclasses.replace(output, image=image)

    @jax.jit
    def run(output):
        configs = LossConfig(), LossConfig(image_description_weight=1.0)
        return [total_loss(output, **make_targets(), config=config) for config in configs]

    (total, metrics), (_, with_descriptions) = run(output)
    assert set(metrics) == {"loss", "contrastive"}
    np.testing.assert_allclose(total, metrics["contrastive"][0] / B, rtol=1e-6)
    assert set(with_descriptions) == {"loss", "contrastive", "image_description"}


def test_missing_descriptions_and_queries_are_explained():
    def trace(output, **changes):
        config = LossConfig(**changes)
        jax.eval_shape(lambda: total_loss(output, **make_targets(), config=config))

    output = make_output()
    without = dataclasses.replace(output, description_embed=None)
    with pytest.raises(ValueError, match="region_weight"):
        trace(without)
    trace(without, region_weight=0.0)
    with pytest.raises(ValueError, match="needs a logit bias"):
        trace(dataclasses.replace(output, logit_bias=None), image_caption="sigmoid")
    few = dataclasses.replace(output.image, boxes=output.image.boxes[:, :2])
    with pytest.raises(ValueError, match="num_queries"):
        trace(dataclasses.replace(output, image=few))


@pytest.mark.torch
def test_against_torch():
    """The same terms by PyTorch's own losses, in value and gradient."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: torch)")
    output, targets = make_output(), make_targets()
    mask = torch.tensor(np.asarray(targets["region_mask"]))
    tensor = {
        name: torch.tensor(np.asarray(value), requires_grad=True)
        for name, value in {
            "image": output.image.image_embed,
            "caption": output.caption_embed,
            "region": output.image.region_embed,
            "description": output.description_embed,
            "boxes": output.image.boxes,
        }.items()
    }
    unit = {k: torch.nn.functional.normalize(v, dim=-1) for k, v in tensor.items()}
    logits = 8.0 * unit["image"] @ unit["caption"].T
    entropy, labels = torch.nn.functional.cross_entropy, torch.arange(B)
    expected = (entropy(logits, labels) + entropy(logits.T, labels)) / 2

    boxes, number = torch.tensor(np.asarray(targets["boxes"])), int(mask.sum())

    @jax.jit
    def matched(predicted, target, mask):
        return match(matching_cost(predicted, target, l1_cost=5.0, giou_cost=2.0), mask)

    query = matched(output.image.boxes, targets["boxes"], targets["region_mask"])
    query = torch.tensor(np.array(query)).long()
    index = query[..., None]
    chosen = torch.gather(tensor["boxes"], 1, index.expand(-1, -1, 4))[mask]
    l1 = (chosen - boxes[mask]).abs().sum() / number

    def corners(x):
        return torch.cat([x[:, :2] - x[:, 2:] / 2, x[:, :2] + x[:, 2:] / 2], dim=1)

    a, b = corners(chosen), corners(boxes[mask])
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    giou = inter / (union + 1e-4) - (hull - union) / hull
    expected = expected + 1.5 * (l1 + (1 - giou).mean())
    region = torch.gather(unit["region"], 1, index.expand(-1, -1, E))[mask]
    logits = 5.0 * region @ unit["description"][mask].T
    expected = expected + entropy(logits, torch.arange(number))
    expected.backward()

    (value, _), gradient = every_variant(output, targets)["faithful"]
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5)
    ours = {
        "image": gradient.image.image_embed,
        "caption": gradient.caption_embed,
        "region": gradient.image.region_embed,
        "description": gradient.description_embed,
        "boxes": gradient.image.boxes,
    }
    for name, value in ours.items():
        np.testing.assert_allclose(value, tensor[name].grad, rtol=0, atol=1e-5, err_msg=name)
