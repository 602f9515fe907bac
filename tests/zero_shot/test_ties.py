"""Classes that tie are said, with the reason, and tie to the last digit."""

import numpy as np
import pytest
from toy_encoder import bird_set, make_image, toy_encoder, toy_model

from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.zero_shot.method import Images
from grain_jax.zero_shot.methods import METHODS, encode_banks
from grain_jax.zero_shot.scorers import make_class_texts
from grain_jax.zero_shot.ties import note_ties, tied_classes

LABELS = ("robin", "wren", "jay", "tern")
# Of the third, "green" lies behind the four tokens of a description and the eight of a caption.
LONG = "red " + "bird " * 7
DESCRIBED = {
    "robin": ["red", "blue"],
    "wren": ["blue", "red"],
    "jay": [LONG],
    "tern": [LONG + "green"],
}


def banks_of(described, methods=("name", "description")):
    texts = make_class_texts(LABELS, templates=("a {}",), descriptions=described)
    return encode_banks(toy_encoder().texts, texts, methods=methods, has_regions=True)


def notes_of(described, **options) -> list[str]:
    notes: list[str] = []
    note_ties("birds", LABELS, banks_of(described), notes.append, **options)
    return notes


def test_groups_are_of_all_kinds_together():
    banks = banks_of(DESCRIBED)
    assert tied_classes(banks, ["descriptions"]) == [(0, 1), (2, 3)]
    assert tied_classes(banks, ["names"]) == [(0, 1, 2, 3)]  # the toy knows none of them
    assert tied_classes(banks, ["names", "descriptions"]) == [(0, 1), (2, 3)]
    assert tied_classes(banks, ["cupl"]) == []
    shorter = banks_of(DESCRIBED | {"tern": ["red bird bird green"]})
    assert tied_classes(shorter, ["regions"]) == [(0, 1), (2, 3)]
    assert tied_classes(shorter, ["descriptions", "regions"]) == [(0, 1)]


def test_the_reason_is_said():
    by_name, same, cut = notes_of(DESCRIBED)
    assert "4 of 4 classes tie by name ('robin' = 'wren' = 'jay' = 'tern')" in by_name
    assert "does not know" in by_name
    assert "2 of 4 classes tie by description ('robin' = 'wren'): they have the same texts" in same
    assert "2 of 4 classes tie by description ('jay' = 'tern')" in cut
    assert "behind its limit" in cut
    shorter = DESCRIBED | {"tern": ["red bird bird green"]}
    by_description = [note for note in notes_of(shorter) if "by description" in note]
    assert len(by_description) == 2  # the end is read where the image is compared, not of regions
    assert "2 of 4 classes tie by description ('robin' = 'wren')" in by_description[0]
    of_regions = "2 of 4 classes tie by description of regions (alpha 0) ('jay' = 'tern')"
    assert of_regions in by_description[1]
    unlike = DESCRIBED | {"wren": ["green"], "tern": ["blue"]}
    assert [note for note in notes_of(unlike) if "by description" in note] == []


def test_many_classes_are_counted():
    labels = [f"bird {k}" for k in range(24)]
    texts = make_class_texts(
        labels, templates=("{}",), descriptions={label: ["red"] for label in labels}
    )
    notes: list[str] = []
    banks = encode_banks(toy_encoder().texts, texts, methods=("description",), has_regions=False)
    note_ties("birds", labels, banks, notes.append)
    assert "24 of 24 classes tie by description ('bird 0' = " in notes[-1]
    assert "'bird 9' and 14 more)" in notes[-1]


@pytest.mark.parametrize("method", ["description", "name_and_regions"])
def test_scores_tie_to_the_last_digit(method):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(9, 3)).astype(np.float32)
    regions = rng.normal(size=(9, 2, 3)).astype(np.float32)
    banks = banks_of(DESCRIBED, (method,))
    scores = METHODS[method].fit(banks)(Images(image, regions), 0.5)
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])
    np.testing.assert_array_equal(scores[:, 2], scores[:, 3])
    assert (scores[:, 0] != scores[:, 2]).any()


def test_predict_says_it_once():
    notes: list[str] = []
    model = toy_model(note=notes.append)
    for _ in range(2):
        (answer,) = model.classify(
            make_image("red", "red"), LABELS[:2], {"robin": ["red"], "wren": ["red"]}
        )
    said = [note for note in notes if "tie" in note]
    assert len(said) == 1
    assert said[0].startswith("labels: 2 of 2 classes tie ('robin' = 'wren'): they have the same")
    assert "shown first" in said[0]
    assert answer.ranked[0].probability == answer.ranked[1].probability == 0.5


def test_evaluation_says_it():
    notes: list[str] = []
    dataset = bird_set()
    names = dataset.class_names
    evaluate_zero_shot(toy_encoder(), dataset, alphas=(0.5,), note=notes.append)
    by_description = [note for note in notes if "by description" in note]
    assert by_description == []
    same = bird_set(descriptions=dict.fromkeys(names, ("red",)))
    evaluate_zero_shot(toy_encoder(), same, alphas=(0.5,), note=notes.append)
    assert any(f"{len(names)} of {len(names)} classes tie by description" in one for one in notes)
