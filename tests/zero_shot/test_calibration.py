import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grain_jax.zero_shot import calibration
from grain_jax.zero_shot.arithmetic import softmax
from grain_jax.zero_shot.calibration import (
    Calibration,
    LabelSets,
    NoneOfThese,
    gl_mcm_score,
    mcm_scores,
    nonconformity,
    read_calibration,
    sets_of_labels,
    texts_sha256,
    to_json,
)
from grain_jax.zero_shot.scorers import make_class_texts

FITTED = Calibration(
    method="description",
    alpha=0.5,
    scoring={"prompt_ensembling": "embedding", "region_aggregation": "max_over_queries"},
    weights_sha256="ab",
    step=7,
    classes=("robin", "wren"),
    texts_sha256="cd",
    temperature=1.5,
    none_of_these=NoneOfThese(threshold=0.7, region_weight=1.0, temperature=1.0),
    label_sets=LabelSets("aps", 0.9, 0.8),
    seen_cosine=0.25,
)


def unit(*shape: int) -> np.ndarray:
    drawn = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def probabilities_of(logits: list[float]) -> list[float]:
    powers = [math.exp(value) for value in logits]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("cells", [1 << 24, 7])
def test_mcm_scores_are_those_of_a_loop(temperature, cells, monkeypatch):
    monkeypatch.setattr(calibration, "MAX_CELLS", cells)
    image, regions, classes = unit(5, 6), unit(5, 3, 6), unit(4, 6)
    whole, best = mcm_scores(image @ classes.T, regions, classes, temperature=temperature)
    assert best is not None
    for n in range(5):

        def largest(vector):
            cosines = [
                sum(float(x) * float(y) for x, y in zip(vector, one, strict=True))
                for one in classes
            ]
            return max(probabilities_of([cosine / temperature for cosine in cosines]))

        assert whole[n] == pytest.approx(largest(image[n]), rel=1e-6)
        expected = max(largest(region) for region in regions[n])
        assert best[n] == pytest.approx(expected, rel=1e-6)
        joined = gl_mcm_score(whole, best, 0.5)[n]
        assert joined == pytest.approx(largest(image[n]) + 0.5 * expected, rel=1e-6)


def test_without_regions_the_image_alone_is_the_score():
    image, classes = unit(2, 6), unit(4, 6)
    whole, best = mcm_scores(image @ classes.T, None, classes, temperature=1.0)
    assert best is None
    assert gl_mcm_score(whole, best, 1.0) is whole


ROWS = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.2, 0.7]])


def test_nonconformity_of_aps_is_the_sum_of_what_is_at_least_as_probable():
    found = nonconformity(ROWS, "aps")
    for row, values in zip(ROWS, found, strict=True):
        for k, value in enumerate(values):
            expected = sum(p for p in row if p >= row[k])
            assert value == pytest.approx(min(expected, 1.0))
    np.testing.assert_allclose(nonconformity(ROWS, "lac"), 1 - ROWS)


def test_sets_hold_what_is_not_too_unlike_the_prediction_and_always_the_best():
    assert sets_of_labels(ROWS, LabelSets("lac", 0.9, 0.65)).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],  # all too unlike the prediction, and all the best
        [False, False, True],
    ]
    assert sets_of_labels(ROWS, LabelSets("aps", 0.9, 0.85))[0].tolist() == [True, True, False]
    assert sets_of_labels(ROWS, LabelSets("aps", 0.9, None)).all()


@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=8),
    st.floats(1e-2, 1e2),
)
def test_a_temperature_never_changes_the_best_label(logits, temperature):
    rows = np.array([logits])
    before, after = softmax(rows), softmax(rows / temperature)
    assert after[0, before[0].argmax()] == after.max()
    assert after.sum() == pytest.approx(1)


def test_the_file_holds_all_of_it():
    text = json.dumps(to_json(FITTED, {"anything": 1}), allow_nan=False)
    assert read_calibration(text, "a.json") == FITTED
    plain = dataclasses.replace(FITTED, none_of_these=None, label_sets=None, alpha=None)
    shifted = dataclasses.replace(plain, class_shift={"robin": 0.5, "wren": -0.5})
    for one in (plain, shifted):
        assert read_calibration(json.dumps(to_json(one, {})), "a.json") == one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grain_jax_calibration": 2}, "version 2"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 0}, "above 0"),
        ({"temperature": None}, "not a calibration"),
        ({"fitted_for": {}}, "is missing"),
        ({"fitted_for": []}, "not a calibration"),
        ({"class_shift": {"robin": 1.0}}, "not of the classes"),
        ({"label_sets": {"rule": "other", "coverage": 0.9, "quantile": 0.5}}, "'other'"),
        ({"label_sets": {"rule": "lac", "coverage": 2.0, "quantile": 0.5}}, "between 0 and 1"),
        ({"none_of_these": {"threshold": 1}}, "missing"),
        ({"fitted_for": to_json(FITTED, {})["fitted_for"] | {"step": math.inf}}, "infinity"),
        ({"temperature": 10**400}, "too large"),
    ],
)
def test_a_damaged_file_names_itself(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_calibration(json.dumps(to_json(FITTED, {}) | change), "some/file.json")
    assert "some/file.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "nonsense", "[" * 500_000, '{"a":' * 500_000])
def test_another_file_is_not_a_calibration(text):
    with pytest.raises(ValueError, match="some/file is not a calibration"):
        read_calibration(text, "some/file")


def texts_of(labels, descriptions, templates=("a {} bird",)):
    return make_class_texts(labels, templates=templates, descriptions=descriptions)


def test_texts_are_the_same_in_any_order_of_the_classes_and_no_others_are():
    described = {"robin": ["red", "small"], "wren": ["brown"]}
    kinds = {"names", "regions"}

    def name_of(labels, texts, used=kinds):
        return texts_sha256(labels, texts, used)

    labels = ("robin", "wren")
    own = name_of(labels, texts_of(labels, described))
    assert name_of(labels[::-1], texts_of(labels[::-1], described)) == own
    other = texts_of(labels, described | {"wren": ["grey"]})
    assert name_of(labels, other) != own
    assert name_of(labels, other, {"names"}) == name_of(
        labels, texts_of(labels, described), {"names"}
    )
    swapped = {"robin": described["wren"], "wren": described["robin"]}
    assert name_of(labels, texts_of(labels, swapped)) != own
    assert name_of(labels, texts_of(labels, described, ("the {}",))) != own
