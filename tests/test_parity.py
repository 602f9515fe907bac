"""The model and the losses against the official code, in values and gradients, in float32.

Tolerances: forward and losses 1e-5 (absolute, values up to about 4); gradients 1e-4 of the largest
entry of each tensor. Two gradients are zero by mathematics (a bias on all keys of a softmax) and
hold only rounding in either code: below 1e-8 counts as zero, where others reach 0.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import official_golden
import pytest

from grain_jax.config import LossConfig, faithful_loss
from grain_jax.interop.official import from_official, to_official
from grain_jax.losses.boxes import clip_boxes
from grain_jax.losses.matching import match, matching_cost
from grain_jax.losses.total import total_loss

GOLDEN = official_golden.tensors()
MASK = official_golden.region_mask()


@pytest.fixture(scope="module")
def params():
    return from_official(official_golden.state_dict(), official_golden.CONFIG)


@pytest.fixture(scope="module")
def evaluated(params):
    """Output, matching, and for each loss variant ((loss, metrics), gradients); one compilation."""

    @jax.jit
    def run(params):
        def loss(params, config):
            output = official_golden.apply(params)
            total, metrics = total_loss(output, **official_golden.loss_inputs(), config=config)
            return total, (metrics, output)

        results = {}
        for name, config in (("faithful", faithful_loss()), ("default", LossConfig())):
            results[name] = jax.value_and_grad(loss, has_aux=True)(params, config)
        boxes, _ = clip_boxes(official_golden.loss_inputs()["boxes"])
        output = results["faithful"][0][1][1]
        cost = matching_cost(output.image.boxes, boxes, l1_cost=5.0, giou_cost=2.0)
        return results, output, match(cost, jnp.asarray(MASK))

    return run(params)


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
        ("out.aux_boxes_cxcywh", lambda o: o.image.auxiliary_boxes),
    ],
)
def test_forward(evaluated, name, field):
    np.testing.assert_allclose(field(evaluated[1]), GOLDEN[name], rtol=0, atol=1e-5)


def test_matching(evaluated):
    query_of_region = np.asarray(evaluated[2])
    region_of_query = np.full_like(GOLDEN["out.match"], -1)
    for image, region in zip(*np.nonzero(MASK), strict=True):
        region_of_query[image, query_of_region[image, region]] = region
    np.testing.assert_array_equal(region_of_query, GOLDEN["out.match"])


# Without duplicates, degenerate boxes or an empty batch the default loss is the official one too.
@pytest.mark.parametrize("variant", ["faithful", "default"])
def test_losses(evaluated, variant):
    (total, (metrics, _)), _ = evaluated[0][variant]
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


@pytest.mark.parametrize("variant", ["faithful", "default"])
def test_gradient_of_every_parameter(evaluated, variant):
    _, gradients = evaluated[0][variant]
    ours = to_official(gradients, official_golden.CONFIG, num_classes=official_golden.NUM_CLASSES)
    official = official_golden.gradients()
    assert ours.keys() == official.keys()
    for name, value in official.items():
        tolerance = 1e-4 * np.abs(value).max() + 1e-8
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=tolerance, err_msg=name)
