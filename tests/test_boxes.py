"""Box geometry against an independent implementation, one pair at a time in Python floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_boxes import reference_giou

from grain_jax.boxes import (
    UNION_EPS,
    cxcywh_to_xyxy,
    generalized_iou,
    smoothed_iou,
    xyxy_to_cxcywh,
)
from grain_jax.losses.box_losses import box_loss, clip_boxes

unit = st.floats(0, 1, width=32)
some_boxes = arrays(np.float32, (8, 4), elements=unit)  # cxcywh, may leave the image


@jax.jit
def overlaps(a, b):
    return smoothed_iou(a, b), generalized_iou(a, b), generalized_iou(b, a)


@given(some_boxes, some_boxes)
@settings(max_examples=60, deadline=None)
def test_overlap_of_any_two_boxes(a, b):
    a, b = (np.asarray(cxcywh_to_xyxy(jnp.asarray(x))) for x in (a, b))
    iou, giou, swapped = overlaps(jnp.asarray(a), jnp.asarray(b))
    for i in range(len(a)):
        expected = reference_giou(a[i].astype(float).tolist(), b[i].astype(float).tolist())
        # An area of rounding noise in a hull of rounding noise is no number to compare.
        hull = np.ptp([a[i, ::2], b[i, ::2]]) * np.ptp([a[i, 1::2], b[i, 1::2]])
        if hull > 1e-4:
            np.testing.assert_allclose([iou[i], giou[i]], expected, atol=2e-3)
    assert np.isfinite(giou).all()
    np.testing.assert_allclose(giou, swapped, atol=1e-6)
    assert (np.asarray(giou) <= np.asarray(iou) + 1e-3).all()


@given(some_boxes)
@settings(max_examples=30, deadline=None)
def test_formats_are_inverse_and_clipping_stays_inside(boxes):
    boxes = jnp.asarray(boxes)
    np.testing.assert_allclose(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, atol=1e-6)
    clipped, has_area = clip_boxes(boxes)
    corners = np.asarray(cxcywh_to_xyxy(clipped))
    assert (corners >= -1e-6).all()
    assert (corners <= 1 + 1e-6).all()
    np.testing.assert_array_equal(has_area, (np.asarray(clipped)[:, 2:] > 0).all(axis=-1))


def test_known_overlaps():
    a = jnp.asarray([[0.0, 0.0, 0.5, 0.5]] * 3)
    b = jnp.asarray([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.25, 0.0, 0.75, 0.5]])
    iou, giou, _ = overlaps(a, b)
    eps = UNION_EPS
    np.testing.assert_allclose(iou, [0.25 / (0.25 + eps), 0, 0.125 / (0.375 + eps)], atol=1e-6)
    np.testing.assert_allclose(giou, [0.25 / (0.25 + eps), -0.5, 0.125 / (0.375 + eps)], atol=1e-6)


@pytest.mark.parametrize(
    ("xyxy", "kept"),
    [
        ([0.1, 0.1, 0.2, 0.2], True),
        ([1.02, 0.1, 1.2, 0.2], False),  # all of it beyond the right edge
        ([0.9, 0.1, 1.2, 0.2], True),
        ([0.3, 0.4, 0.3, 0.9], False),  # no width
        ([0.0, 0.0, 0.0, 0.0], False),  # padding
    ],
)
def test_boxes_without_area_in_the_image_are_found(xyxy, kept):
    _, has_area = clip_boxes(xyxy_to_cxcywh(jnp.asarray([xyxy], jnp.float32)))
    assert bool(has_area[0]) is kept


def test_box_loss_of_masked_pairs():
    rng = np.random.default_rng(0)
    predicted, target = rng.uniform(0.1, 0.5, (2, 3, 4, 4)).astype(np.float32)
    mask = rng.random((3, 4)) < 0.6
    loss, metrics = box_loss(jnp.asarray(predicted), jnp.asarray(target), jnp.asarray(mask))
    l1, giou = [], []
    for i, j in zip(*np.nonzero(mask), strict=True):
        l1.append(np.abs(predicted[i, j] - target[i, j]).sum())
        corners = [
            [x[0] - x[2] / 2, x[1] - x[3] / 2, x[0] + x[2] / 2, x[1] + x[3] / 2]
            for x in (predicted[i, j].astype(float), target[i, j].astype(float))
        ]
        giou.append(1 - reference_giou(*corners)[1])
    np.testing.assert_allclose(loss, np.mean(l1) + np.mean(giou), rtol=1e-5)
    np.testing.assert_allclose(metrics["box_l1"], [np.sum(l1), len(l1)], rtol=1e-5)
    np.testing.assert_allclose(metrics["box_giou"], [np.sum(giou), len(giou)], rtol=1e-5)


def test_gradients_are_finite_even_for_boxes_without_area():
    boxes = jnp.zeros((1, 2, 4)).at[0, 1].set(0.5)

    def loss(predicted):
        return box_loss(predicted, jnp.zeros((1, 2, 4)), jnp.asarray([[True, False]]))[0]

    gradient = jax.grad(loss)(boxes)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0, 1], 0)
