"""What `Model.classify` does with a calibration."""

import dataclasses
import math
import warnings

import pytest
from toy_encoder import make_image, toy_model

from grain_jax.inference.fingerprints import params_sha256
from grain_jax.inference.predictor import Model
from grain_jax.zero_shot.calibration import (
    Calibration,
    LabelSets,
    NoneOfThese,
    texts_sha256,
)
from grain_jax.zero_shot.scorers import make_class_texts

DESCRIBED = {"robin": ["red", "green"], "jay": ["blue"]}
KINDS = {"descriptions", "regions"}
SCORING = {"prompt_ensembling": "embedding", "region_aggregation": "max_over_queries"}
SCALE = 10.0  # of the toy


def texts_of(described):
    labels = tuple(described)
    texts = make_class_texts(labels, templates=("a {} thing",), descriptions=described)
    return texts_sha256(labels, texts, KINDS)


def calibration(**changes) -> Calibration:
    settings = {
        "method": "description",
        "alpha": 0.5,
        "scoring": SCORING,
        "weights_sha256": params_sha256(toy_model().loaded.params),
        "step": 7,
        "classes": ("jay", "robin"),
        "texts_sha256": texts_of(DESCRIBED),
        "temperature": 4.0,
        "none_of_these": NoneOfThese(threshold=1.2, region_weight=1.0, temperature=1.0),
        "label_sets": LabelSets("lac", 0.9, 0.6),
        "seen_cosine": 0.6,
    }
    return Calibration(**(settings | changes))


def model_with(fitted: Calibration | None, notes: list[str]) -> Model:
    return Model(toy_model().loaded, batch_size=2, note=notes.append, calibration=fitted)


def answer_of(fitted, described=None, *, image=None, notes=None, **options):
    said: list[str] = [] if notes is None else notes
    image = make_image("red", "red", "blue") if image is None else image
    (found,) = model_with(fitted, said).classify(
        image, descriptions=described or DESCRIBED, **options
    )
    return found


def test_without_one_everything_is_as_before():
    found = answer_of(None)
    assert found.calibrated is None
    assert [one.num_seen for one in found.ranked] == [None, None]


def test_the_temperature_divides_the_logits_and_keeps_the_order():
    before, after = answer_of(None), answer_of(calibration())
    assert [one.label for one in after.ranked] == [one.label for one in before.ranked]
    assert [one.score for one in after.ranked] == [one.score for one in before.ranked]
    first, second = (one.score for one in before.ranked)
    for found, temperature in ((before, 1.0), (after, 4.0)):
        expected = 1 / (1 + math.exp(-SCALE * (first - second) / temperature))
        assert found.ranked[0].probability == pytest.approx(expected, rel=1e-6)


def test_a_name_is_not_counted_among_descriptions_that_are_seen():
    described = {"robin": ["red", "green"]}
    labels = ("jay", "robin")
    texts = make_class_texts(labels, templates=("a {} thing",), descriptions=described)
    fitted = calibration(texts_sha256=texts_sha256(labels, texts, KINDS))
    found = answer_of(fitted, described, labels=labels)
    assert found.calibrated is not None
    assert found.calibrated.label_set is not None
    assert {one.label: one.num_seen for one in found.ranked} == {"robin": 1, "jay": None}


def test_sets_evidence_and_none_of_these():
    notes: list[str] = []
    found = answer_of(calibration(), notes=notes)
    assert notes == []
    assert found.calibrated is not None
    assert {one.label: one.num_seen for one in found.ranked} == {"robin": 1, "jay": 1}
    inside = [one.label for one in found.ranked if one.probability >= 0.4]
    assert list(found.calibrated.label_set or ()) == inside
    # Cosines of the image with the classes: 1/2 and 0; of its best region 1 / sqrt(2) and 0, or 1.
    score = 1 / (1 + math.exp(-0.5)) + 1 / (1 + math.exp(-1.0))
    assert found.calibrated.in_distribution_score == pytest.approx(score, rel=1e-6)
    assert found.calibrated.none_of_these is False
    strict = calibration(none_of_these=NoneOfThese(2 * score, 1.0, 1.0))
    assert answer_of(strict).calibrated.none_of_these is True
    assert answer_of(strict).label == found.label


def test_other_classes_get_the_temperature_alone_and_a_warning():
    notes: list[str] = []
    other = {"crow": ["red"], "jay": ["blue"]}
    found = answer_of(calibration(), other, notes=notes)
    assert [note for note in notes if "2 other classes" in note and "only the temperature" in note]
    assert found.calibrated is not None
    assert found.calibrated.none_of_these is None
    assert found.calibrated.label_set is None
    plain = answer_of(None, other)
    assert found.ranked[0].probability < plain.ranked[0].probability


def test_other_texts_of_the_same_classes_are_noticed():
    notes: list[str] = []
    answer_of(calibration(), DESCRIBED | {"jay": ["green"]}, notes=notes)
    assert [note for note in notes if "other descriptions or templates" in note]


def test_the_order_of_the_classes_does_not_matter():
    notes: list[str] = []
    turned = dict(reversed(DESCRIBED.items()))
    assert answer_of(calibration(), turned, notes=notes).calibrated is not None
    assert notes == []


@pytest.mark.parametrize("options", [{"alpha": 0.25}, {"method": "name_and_regions"}])
def test_another_method_is_as_without_one_and_says_so(options):
    notes: list[str] = []
    found = answer_of(calibration(), notes=notes, **options)
    assert "it was fitted for" in notes[0]
    assert found == answer_of(None, **options)


def test_a_shift_of_classes_ranks_by_what_is_shifted():
    shift = {"robin": -9.0, "jay": 9.0}
    fitted = calibration(temperature=1.0, class_shift=shift, label_sets=None)
    plain, found = answer_of(None), answer_of(fitted)
    assert plain.label == "robin"
    assert found.label == "jay"
    scores = {one.label: one.score for one in plain.ranked}
    gap = SCALE * (scores["jay"] - scores["robin"]) + 18
    assert found.ranked[0].probability == pytest.approx(1 / (1 + math.exp(-gap)))
    notes: list[str] = []
    other = {"crow": ["red"], "jay": ["blue"]}
    assert answer_of(fitted, other, notes=notes).calibrated is None
    assert "it has no temperature" in notes[0]


def test_a_calibration_of_other_weights_is_refused():
    with pytest.raises(ValueError, match="other weights, of step 3"):
        model_with(dataclasses.replace(calibration(), weights_sha256="00", step=3), [])


def test_weights_have_another_name_where_one_value_differs():
    params = {"a": {"b": [1.0, 2.0]}, "c": 3.0}
    own = params_sha256(params)
    assert params_sha256({"c": 3.0, "a": {"b": [1.0, 2.0]}}) == own
    assert params_sha256({"a": {"b": [1.0, 2.5]}, "c": 3.0}) != own
    assert params_sha256({"a": {"x": [1.0, 2.0]}, "c": 3.0}) != own


def test_a_clip_model_has_the_image_alone_as_score():
    loaded = toy_model(regions=False).loaded
    texts = make_class_texts(("red", "blue"), templates=("a {} thing",), descriptions={})
    fitted = Calibration(
        method="name",
        alpha=None,
        scoring=SCORING,
        weights_sha256=params_sha256(loaded.params),
        step=7,
        classes=("red", "blue"),
        texts_sha256=texts_sha256(("red", "blue"), texts, {"names"}),
        temperature=2.0,
        none_of_these=NoneOfThese(0.6, 0.0, 1.0),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Model(loaded, calibration=fitted)
    (found,) = model.classify(make_image("red"), ["red", "blue"])
    assert found.calibrated is not None
    assert found.calibrated.in_distribution_score == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert found.calibrated.none_of_these is False


def test_labels_with_examples_are_not_calibrated_and_that_is_said():
    notes: list[str] = []
    model = model_with(calibration(), notes)
    shown = [make_image("green", "red"), make_image("blue", "red")]
    images = {"examples": {next(iter(DESCRIBED)): shown}}
    (found,) = model.classify(make_image("red"), descriptions=DESCRIBED, **images)
    assert found.calibrated is None
    assert notes == [
        "The calibration is not used: it was fitted without examples, and these labels have some."
    ]
    (plain,) = model_with(None, []).classify(make_image("red"), descriptions=DESCRIBED, **images)
    assert plain.ranked == found.ranked
    (texts,) = model.classify(
        make_image("red"), descriptions=DESCRIBED, **images, example_weight=0.0
    )
    assert texts.calibrated is not None  # as no example has a part in the scores
