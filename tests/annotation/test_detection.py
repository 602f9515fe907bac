"""Selection of boxes against a plain implementation, one box at a time."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.annotation.backends.detector import ScoredBoxes
from grain_jax.annotation.detection import SELECTIONS, Selection, official_texts, select

# Values that are exact in float32, with many ties.
GRID = [i / 8 for i in range(-2, 11)]
SCORES = [0.0, 0.125, 0.25, 0.5, 0.75, 1.0]


@st.composite
def scored_boxes(draw):
    num_boxes, num_texts = draw(st.integers(0, 7)), draw(st.integers(0, 4))
    box = st.tuples(*[st.sampled_from([*GRID, math.nan])] * 4)
    boxes = draw(st.lists(box, min_size=num_boxes, max_size=num_boxes))
    row = st.lists(st.sampled_from([*SCORES, math.nan]), min_size=num_texts, max_size=num_texts)
    scores = draw(st.lists(row, min_size=num_boxes, max_size=num_boxes))
    return ScoredBoxes(
        np.array(boxes, np.float32).reshape(num_boxes, 4),
        np.array(scores, np.float32).reshape(num_boxes, num_texts),
    )


rules = st.builds(
    Selection,
    one_text_per_box=st.booleans(),
    threshold=st.sampled_from([0.0, 0.2, 0.25, 0.9]),
    nms_iou=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    nms_across_texts=st.booleans(),
    boxes_per_text=st.sampled_from([None, 1, 2]),
    max_boxes=st.sampled_from([None, 1, 3]),
)


def overlap(a, b):
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - shared)


def plain_select(scored: ScoredBoxes, rule: Selection, num_texts: int):
    """[(box, score, text)] with loops and lists only."""
    found = []
    for box, scores in zip(scored.boxes_xyxy.tolist(), scored.scores.tolist(), strict=True):
        clipped = tuple(min(max(value, 0.0), 1.0) for value in box)
        if any(map(math.isnan, box)) or clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            continue
        known = [score for score in scores if not math.isnan(score)]
        for text, score in enumerate(scores):
            best = bool(known) and score == max(known) and scores.index(score) == text
            if score > rule.threshold and (best or not rule.one_text_per_box):
                found.append((clipped, score, text))
    found.sort(key=lambda each: -each[1])  # stable
    kept = []
    for box, score, text in found:
        rivals = [other for other, _, of in kept if rule.nms_across_texts or of == text]
        if rule.nms_iou == 1 or all(overlap(box, other) <= rule.nms_iou for other in rivals):
            kept.append((box, score, text))
    if rule.boxes_per_text is not None:
        kept = [
            each
            for i, each in enumerate(kept)
            if sum(other[2] == each[2] for other in kept[:i]) < rule.boxes_per_text
        ]
    return [each for each in kept if each[2] < num_texts][: rule.max_boxes]


@settings(max_examples=400, deadline=None)
@given(scored_boxes(), rules, st.integers(0, 4))
def test_selection_equals_a_plain_one(scored, rule, num_texts):
    found = select(scored, rule, num_texts=num_texts)
    expected = plain_select(scored, rule, num_texts)
    assert found.text_index.tolist() == [text for _, _, text in expected]
    assert found.scores.tolist() == [score for _, score, _ in expected]
    assert found.boxes_xyxy.tolist() == [list(box) for box, _, _ in expected]


def scored(*rows):
    """Rows of (box, scores)."""
    boxes, scores = zip(*rows, strict=True)
    return ScoredBoxes(np.array(boxes, np.float32), np.array(scores, np.float32))


LEFT, NEARLY_LEFT, RIGHT = (0, 0, 0.5, 1), (0, 0, 0.45, 1), (0.5, 0, 1, 1)


def test_best_per_text_keeps_one_box_of_each_text_that_is_there():
    found = select(
        scored((LEFT, (0.9, 0.1)), (RIGHT, (0.8, 0.2)), (NEARLY_LEFT, (0.7, 0.3))),
        SELECTIONS["best_per_text"].replace(threshold=0.15),
    )
    assert found.text_index.tolist() == [0, 1]
    np.testing.assert_array_equal(found.boxes_xyxy, np.float32([LEFT, NEARLY_LEFT]))


def test_all_keeps_several_places_of_a_text_but_no_copies():
    found = select(
        scored((LEFT, (0.9, 0.0)), (NEARLY_LEFT, (0.8, 0.5)), (RIGHT, (0.7, 0.0))),
        SELECTIONS["all"],
    )
    assert list(zip(found.scores.round(2).tolist(), found.text_index.tolist(), strict=True)) == [
        (np.float32(0.9).round(2).item(), 0),
        (np.float32(0.7).round(2).item(), 0),
        (0.5, 1),
    ]


def test_the_official_rule_keeps_copies_and_gives_each_location_to_one_text():
    found = select(
        scored((LEFT, (0.9, 0.8, 0.1)), (NEARLY_LEFT, (0.85, 0.2, 0.9)), (RIGHT, (0.3, 0.1, 0.2))),
        SELECTIONS["official"],
        num_texts=2,  # the third is "<pad>", which wins the second location
    )
    assert found.text_index.tolist() == [0]
    copies = select(scored((LEFT, (0.9, 0.8)), (NEARLY_LEFT, (0.85, 0.2))), SELECTIONS["official"])
    assert copies.text_index.tolist() == [0, 0]


def test_official_texts_are_ten_stripped_and_filled_up():
    texts = official_texts(["- a red bill", "1. white wings", "*** '?'"])
    assert texts == ["a red bill", "1. white wings", "'?'", *["<pad>"] * 7]
    assert official_texts([str(number) for number in range(12)]) == [*map(str, range(10))]


def test_a_box_in_the_padding_of_the_canvas_is_dropped():
    found = select(
        scored(((1.1, 0, 1.4, 0.5), (0.9,)), ((0.8, -0.1, 1.4, 0.5), (0.8,))), Selection()
    )
    np.testing.assert_allclose(found.boxes_xyxy, [[0.8, 0, 1, 0.5]])


@pytest.mark.parametrize(
    ("field", "value"),
    [("threshold", 1.5), ("nms_iou", -0.1), ("max_boxes", 0), ("threshold", math.nan)],
)
def test_a_rule_names_the_value_that_is_wrong(field, value):
    with pytest.raises(ValueError, match=field):
        Selection(**{field: value})


def test_replace_leaves_what_is_not_given():
    rule = SELECTIONS["all"].replace(threshold=0.0, nms_iou=None)
    assert rule == dataclasses.replace(SELECTIONS["all"], threshold=0.0)
