"""Accuracy, pointing and baselines of grounding against loops that follow the definitions."""

import itertools
import math

import numpy as np
import pytest

from grain_jax.data.image_variants import crop
from grain_jax.evaluation.box_features import nearest_queries
from grain_jax.evaluation.caption_choice import caption_choice, caption_scores
from grain_jax.evaluation.grounding_protocol import Protocol, unlike
from grain_jax.evaluation.grounding_ranking import (
    KS,
    constant_hits,
    cross_fitted_hits,
    fitted_box,
    hits,
    random_hits,
    rank_boxes,
    true_boxes,
    upper_bound,
)
from grain_jax.evaluation.query_usage import mean_cosine, mean_overlap, query_usage
from grain_jax.evaluation.statistics import mean_interval


def iou(first, second) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1)
    return corners.reshape(count, 4).astype(np.float32)


@pytest.fixture
def world():
    """Images with 1 to 12 boxes; queries with 1 to 3 true boxes, some near one of the image's."""
    rng = np.random.default_rng(3)
    candidates = [random_boxes(rng, int(rng.integers(1, 13))) for _ in range(6)]
    images = rng.integers(0, 6, 40)
    truths = []
    for image in images:
        near = candidates[image][rng.integers(0, len(candidates[image]))]
        truth = random_boxes(rng, int(rng.integers(1, 4)))
        truth[0] = np.clip(near + rng.normal(0, 0.02, 4), 0, 1)
        truth[0] = [*np.minimum(truth[0][:2], truth[0][2:] - 1e-3), *truth[0][2:]]
        truths.append(truth)
    width = max(map(len, candidates))
    scores = np.full((40, width), -2.0)
    for row, image in enumerate(images):
        scores[row, : len(candidates[image])] = rng.uniform(-1, 1, len(candidates[image]))
    return candidates, images, truths, scores


@pytest.mark.parametrize("truth", ["any", "merged"])
def test_accuracies_follow_the_definitions(world, truth):
    candidates, images, given, scores = world
    expected = {k: [] for k in KS}
    pointing, bound, random = [], [], []
    for row, (image, boxes) in enumerate(zip(images, given, strict=True)):
        if truth == "merged":
            boxes = [[min(boxes[:, 0]), min(boxes[:, 1]), max(boxes[:, 2]), max(boxes[:, 3])]]
        own = candidates[image]
        order = sorted(range(len(own)), key=lambda c: -scores[row, c])
        right = [any(iou(own[c], box) >= 0.5 for box in boxes) for c in range(len(own))]
        for k in KS:
            expected[k].append(any(right[c] for c in order[:k]))
        x, y = (own[order[0]][0] + own[order[0]][2]) / 2, (own[order[0]][1] + own[order[0]][3]) / 2
        pointing.append(any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in boxes))
        bound.append(any(right))
        random.append(sum(right) / len(own))
    truths = [true_boxes(boxes, truth) for boxes in given]
    ranking = rank_boxes(candidates, images, truths)
    found = hits(ranking, scores)
    for k in KS:
        np.testing.assert_array_equal(found.recall[k], expected[k])
    np.testing.assert_array_equal(found.pointing, pointing)
    np.testing.assert_array_equal(upper_bound(ranking), bound)
    np.testing.assert_allclose(random_hits(ranking).recall[1], random)
    assert 0 < np.mean(expected[1]) < np.mean(expected[5]) < 1


def test_random_recall_at_k_is_that_of_all_orders():
    boxes = np.array([[0, 0, 0.5, 1], [0, 0, 0.5, 0.9], [0.5, 0, 1, 1], *[[0.9, 0.9, 1, 1]] * 3])
    ranking = rank_boxes([boxes.astype(np.float32)], np.zeros(1, int), [boxes[:1]])
    orders = list(itertools.permutations(range(6)))
    expected = np.mean([bool({0, 1} & set(order[:5])) for order in orders])
    assert random_hits(ranking).recall[5][0] == pytest.approx(expected)
    same = hits(ranking, np.full((1, 6), 0.3))  # a collapsed model is no better
    assert same.recall[1][0] == pytest.approx(2 / 6)


def test_a_constant_box_answers_itself_or_chooses_what_it_overlaps_most():
    left, right = np.array([[0, 0, 0.4, 1]]), np.array([[0.6, 0, 1, 1]])
    truths, images = [left, right, left], np.array([0, 1, 2])
    box = np.array([0.05, 0, 0.4, 1])
    np.testing.assert_array_equal(constant_hits(box, truths, chosen_from=None).recall[1], [1, 0, 1])
    boxes = [np.concatenate([right, left]), right, np.concatenate([left, [[0.9, 0, 1, 1]]])]
    found = constant_hits(box, truths, chosen_from=(boxes, images))
    np.testing.assert_array_equal(found.recall[1], [1, 1, 1])  # the second has no other box
    np.testing.assert_allclose(fitted_box(truths), left[0])
    # Each half is answered by the box of the other half: 0 and 2 by the right one, 1 by the left.
    crossed = cross_fitted_hits(truths, images, candidates=None)
    assert crossed is not None
    np.testing.assert_array_equal(crossed.recall[1], [0, 0, 0])
    assert cross_fitted_hits(truths, np.zeros(3, int), candidates=None) is None


def test_the_fitted_box_is_right_most_often(world):
    truths = world[2]
    pool = [np.array([0, 0, 1, 1.0]), *(box for truth in truths for box in truth)]
    best = max(sum(any(iou(b, t) >= 0.5 for t in truth) for truth in truths) for b in pool)
    box = fitted_box(truths)
    assert sum(any(iou(box, t) >= 0.5 for t in truth) for truth in truths) == best


def test_use_and_collapse_of_queries():
    usage = query_usage(np.array([0, 0, 0, 2]), 4)
    assert (usage.counts.tolist(), usage.used) == ([3, 0, 1, 0], 2)
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert usage.entropy == pytest.approx(expected)
    assert query_usage(np.array([1, 1]), 2).entropy == 0
    rng = np.random.default_rng(0)
    regions = rng.normal(size=(3, 5, 8)).astype(np.float32)
    regions /= np.linalg.norm(regions, axis=-1, keepdims=True)
    boxes = np.stack([random_boxes(rng, 5) for _ in range(3)])
    pairs = list(itertools.combinations(range(5), 2))
    for row in range(3):
        cosine = np.mean([regions[row, i] @ regions[row, j] for i, j in pairs])
        overlap = np.mean([iou(boxes[row, i], boxes[row, j]) for i, j in pairs])
        assert mean_cosine(regions)[row] == pytest.approx(cosine, abs=1e-6)
        assert mean_overlap(boxes)[row] == pytest.approx(overlap, abs=1e-6)


def test_a_given_box_takes_the_query_on_it_else_the_nearest():
    predicted = np.array([[0, 0, 0.2, 0.2], [0.1, 0, 0.4, 0.2], [0.8, 0.8, 1, 1]], np.float32)
    given = np.array([[0.1, 0, 0.35, 0.2], [0.6, 0.6, 0.7, 0.7]], np.float32)
    assert nearest_queries(given, predicted).tolist() == [1, 2]


def test_a_crop_has_the_pixels_that_the_box_touches():
    image = np.arange(6 * 10 * 3, dtype=np.uint8).reshape(6, 10, 3)
    box = np.array([0.1, 0.5, 0.3, 1.0], np.float32)  # columns 1 and 2, although 0.3 is rounded up
    np.testing.assert_array_equal(crop(image, box), image[3:, 1:3])
    box = np.array([0.99, 1.0, 1.0, 1.0], np.float32)
    np.testing.assert_array_equal(crop(image, box), image[5:, 9:])


def test_captions_are_ranked_by_the_boxes_of_the_object():
    embed = np.array([[1.0, 0.0], [0.0, 1.0]])
    captions = np.array([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    scores = [
        caption_scores(embed, np.array(rows), captions)
        for rows in ([True, False], [False, True], [True, True], [False, False])
    ]
    assert scores[3] is None
    found = caption_choice(scores, [3] * 4)
    np.testing.assert_array_equal(found.top1, [0, 0, 0, 0])
    np.testing.assert_array_equal(found.rank, [2, 2, 3, 3])
    tied = caption_choice([np.array([0.5, 0.5, 0.1])], [3])
    assert (tied.top1[0], tied.rank[0]) == (0.5, 2)


def test_the_interval_is_wider_where_answers_of_an_image_agree():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 60).astype(np.float64)
    alone = mean_interval(np.repeat(right, 5), np.arange(300))
    together = mean_interval(np.repeat(right, 5), np.repeat(np.arange(60), 5))
    assert alone is not None
    assert together is not None
    half = 1.96 * math.sqrt(right.var() / 60)
    assert together[1] - together[0] == pytest.approx(2 * half, rel=0.05)
    assert together[1] - together[0] == pytest.approx((alone[1] - alone[0]) * 5**0.5, rel=0.1)
    low, high = mean_interval(np.ones(20), np.arange(20))
    assert (high, low) == (1.0, pytest.approx(0.839, abs=1e-3))  # Wilson's
    assert mean_interval(np.ones(20), np.zeros(20, int)) is None
    assert mean_interval(np.ones(0), np.zeros(0, int)) is None


def test_what_differs_between_protocols_is_named():
    one = Protocol(
        boxes="given",
        truth="any",
        feature="region",
        image_size=224,
        resize="squash",
        interpolation="bicubic",
        prompt="{}",
        queries="all",
        candidates="those",
    )
    other = Protocol(**(vars(one) | {"feature": "crop"}))
    assert unlike([one.text, one.text]) == ""
    assert unlike([one.text, other.text]) == "feature: crop or region"
    assert unlike([one.text, other.text], but=("feature",)) == ""
    assert "IoU of at least 0.5 with one of the text's boxes" in one.sentence
