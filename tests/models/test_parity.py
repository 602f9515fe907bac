"""The model and the losses against the official code, in values and gradients, in float32.

Tolerances: forward and losses 1e-5 (absolute, values up to about 4); gradients 1e-4 of the largest
entry of each tensor. Two gradients are zero by mathematics (a bias on all keys of a softmax) and
hold only rounding in either code: below 1e-8 counts as zero, where others reach 0.1.
"""

import jax
import numpy as np
import official_golden
import pytest

from grain_jax.config import LossConfig, official_loss
from grain_jax.formats.grain_reference import to_official
from grain_jax.losses.box_losses import clip_boxes
from grain_jax.losses.matching import match, matching_cost
from grain_jax.training.objective import total_loss

GOLDEN = official_golden.tensors()
MASK = official_golden.region_mask()


@pytest.fixture(scope="module")
def result():
    return official_golden.evaluated()


@pytest.fixture(scope="module")
def variants(result):
    """((loss, metrics), gradient by the output) of both losses, and the match."""

    @jax.jit
    def run(output):
        inputs = official_golden.loss_inputs()
        losses = {
            name: jax.value_and_grad(
                lambda o, c=config: total_loss(o, **inputs, config=c), has_aux=True
            )(output)
            for name, config in (("faithful", official_loss()), ("default", LossConfig()))
        }
        boxes, _ = clip_boxes(inputs["boxes"])
        cost = matching_cost(output.image.boxes, boxes, l1_cost=5.0, giou_cost=2.0)
        return losses, match(cost, inputs["region_mask"])

    (_, (_, output)), _ = result
    return run(output)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("out.tokens", lambda o: o.image.tokens),
        ("out.text_embed", lambda o: o.caption_embed),
        ("out.desc_embed", lambda o: o.description_embed[MASK]),
        ("out.logit_scale", lambda o: o.logit_scale[None]),
        ("out.image_embed", lambda o: o.image.image_embed),
        ("out.region_embed", lambda o: o.image.region_embed),
        ("out.boxes_cxcywh", lambda o: o.image.boxes),
        ("out.aux_boxes_cxcywh", lambda o: o.image.auxiliary_boxes.swapaxes(0, 1)),
    ],
)
def test_forward(result, name, field):
    (_, (_, output)), _ = result
    np.testing.assert_allclose(field(output), GOLDEN[name], rtol=0, atol=1e-5)


def test_matching(variants):
    query_of_region = np.asarray(variants[1])
    region_of_query = np.full_like(GOLDEN["out.match"], -1)
    for image, region in zip(*np.nonzero(MASK), strict=True):
        region_of_query[image, query_of_region[image, region]] = region
    np.testing.assert_array_equal(region_of_query, GOLDEN["out.match"])


# Without duplicates, degenerate boxes or an empty batch the default loss is the official one too.
@pytest.mark.parametrize("variant", ["faithful", "default"])
def test_losses(variants, variant):
    (total, metrics), _ = variants[0][variant]
    means = {name: float(value / weight) for name, (value, weight) in metrics.items()}
    ours = {
        "loss.contrastive": means["contrastive"],
        "loss.box": 1.5 * (means["box_l1"] + means["box_giou"]),
        "loss.region": means["region"],
        "loss.total": float(total),
    }
    for name, value in ours.items():
        np.testing.assert_allclose(value, GOLDEN[name][0], rtol=0, atol=1e-5, err_msg=name)
    assert float(metrics["region"][1]) == MASK.sum()


def test_gradient_of_every_parameter(result):
    _, gradient = result
    ours = to_official(gradient, official_golden.CONFIG, num_classes=official_golden.NUM_CLASSES)
    official = official_golden.gradients()
    assert ours.keys() == official.keys()
    for name, value in official.items():
        tolerance = 1e-4 * np.abs(value).max() + 1e-8
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=tolerance, err_msg=name)


def test_both_losses_have_the_same_gradient_here(variants):
    faithful, default = (variants[0][name][1] for name in ("faithful", "default"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), default, faithful)
