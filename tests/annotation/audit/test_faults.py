"""Every detector of faults: what it finds, what it leaves alone, and what all have in common."""

import copy
import re

import pytest
from places import REPOSITORY
from tiny_annotations import BOX

from grain_jax.annotation.audit.counts import Repeats
from grain_jax.annotation.audit.faults import FAULTS, AuditedImage, Finding, Limits, find_faults
from grain_jax.data.annotation_merge import PARTS, AnnotatedRegion, Annotation

LIMITS = Limits()
RIGHT, LEFT = (0.7, 0.1, 0.9, 0.4), (0.1, 0.1, 0.3, 0.4)


def image(
    captions=("A bird on a branch.",),
    descriptions=("a red crest", "a long tail"),
    regions=(("a red crest", BOX, 0.5), ("a long tail", RIGHT, 0.4)),
    scores=None,
    **more,
) -> AuditedImage:
    annotation = Annotation(
        "a.png",
        "1" * 64,
        captions=tuple(captions),
        descriptions=tuple(descriptions),
        regions=tuple(AnnotatedRegion(box, text, score) for text, box, score in regions),
    )
    best = {text: score for text, _, score in regions} if scores is None else scores
    return AuditedImage(annotation, best, **more)


# An image with each fault, and the parts that have it.
FAULTY = {
    "repeated": (
        image(repeats={"A bird on a branch.": Repeats(900, 1000), "a red crest": Repeats(1, 999)}),
        [("caption", "A bird on a branch.")],
    ),
    "absence": (
        image(captions=["There are no people."], descriptions=["no tail", "a beak"]),
        [("caption", "There are no people."), ("text", "no tail")],
    ),
    "refusal": (image(captions=["I'm sorry, I can't."]), [("caption", "I'm sorry, I can't.")]),
    "truncated": (image(descriptions=["a crest with"]), [("text", "a crest with")]),
    "unexplained": (
        image(scores={"a red crest": 0.5, "a hat": 0.09, "a long tail": 0.4}),
        [("text", "a hat")],
    ),
    "whole_image": (
        image(regions=[("a red crest", (0.0, 0.01, 1.0, 1.0), 0.5), ("a long tail", BOX, 0.4)]),
        [("region", "a red crest")],
    ),
    "shifted": (
        image(scores={"a red crest": 0.4, "a long tail": 0.5}),
        [("region", "a red crest"), ("region", "a long tail")],
    ),
    "changed_image": (image(file_hash="2" * 64), [("image", "")]),
}


def test_every_fault_has_an_image_here():
    assert FAULTY.keys() == FAULTS.keys()


def test_every_fault_is_in_the_table_of_the_page():
    page = (REPOSITORY / "docs" / "annotate.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_nothing_else(name):
    faulty, expected = FAULTY[name]
    found = find_faults(faulty, LIMITS)
    assert found.keys() == {name}
    assert [(each.part, each.text) for each in found[name]] == expected
    assert all(each.part in PARTS for each in found[name])
    regions = {(each.description, each.box_xyxy) for each in faulty.annotation.regions}
    for each in found[name]:
        assert each.part != "region" or (each.text, each.box_xyxy) in regions


@pytest.mark.parametrize("name", FAULTS)
def test_a_detector_is_a_pure_function(name):
    faulty, _ = FAULTY[name]
    before = copy.deepcopy(faulty)
    assert FAULTS[name].find(faulty, LIMITS) == FAULTS[name].find(faulty, LIMITS)
    assert faulty == before
    assert FAULTS[name].title


@pytest.mark.parametrize("name", FAULTS)
def test_good_and_empty_images_have_no_fault(name):
    assert FAULTS[name].find(image(file_hash="1" * 64), LIMITS) == []
    assert FAULTS[name].find(AuditedImage(Annotation("a.png")), LIMITS) == []


def test_a_file_that_cannot_be_read_is_named_so():
    (found,) = find_faults(image(file_hash=""), LIMITS)["changed_image"]
    assert found == Finding("image", detail="the file cannot be read")


def test_limits_are_those_that_are_given():
    limits = Limits(min_repeats=2, min_score=0.45, max_area=0.1)
    found = find_faults(image(repeats={"a red crest": Repeats(2, 2)}), limits)
    assert [each.text for each in found["repeated"]] == ["a red crest"]
    assert [each.text for each in found["unexplained"]] == ["a long tail"]
    assert [each.text for each in found["whole_image"]] == ["a red crest"]


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_boxes_that_moved_on_by_some_descriptions_are_found(shift):
    texts = [f"part {number}" for number in range(5)]
    scores = {text: 0.2 + 0.1 * number for number, text in enumerate(texts)}
    right = [(text, BOX, scores[text]) for text in texts[:4]]  # the last one has no box
    assert FAULTS["shifted"].find(image((), texts, right, scores), LIMITS) == []
    wrong = [
        (texts[(number + shift) % 5], BOX, score) for number, (_, _, score) in enumerate(right)
    ]
    assert len(FAULTS["shifted"].find(image((), texts, wrong, scores), LIMITS)) == 4


def test_a_second_box_of_a_text_is_not_taken_for_a_shift():
    regions = [("a wing", BOX, 0.5), ("a wing", LEFT, 0.3), ("a tail", RIGHT, 0.4)]
    scores = {"a wing": 0.5, "a tail": 0.4}
    assert FAULTS["shifted"].find(image((), scores, regions, scores), LIMITS) == []


@pytest.mark.parametrize(
    ("first", "second", "num_found"),
    [
        ("a cup on the left side of the image", "a pot in the upper right corner of the photo", 2),
        ("a cup on the left-hand side of the image", "a pot at the far right of the scene", 2),
        ("a cup at the left of the table", "a pot at the right of the table", 0),
        ("a left wing", "a right wing", 0),
        ("a cup on the left of the image", "a pot", 0),  # one may be the detector's mistake
        ("a cup on the right of the image", "a pot on the left of the image", 0),
    ],
)
def test_boxes_in_the_other_half_than_their_descriptions_say(first, second, num_found):
    regions = [(first, RIGHT, 0.5), (second, LEFT, 0.4)]
    assert len(FAULTS["shifted"].find(image((), (), regions), LIMITS)) == num_found
