"""The description of a class that an image, or its best region, is most similar to."""

import csv
import json

import numpy as np
import pytest
from toy_encoder import bird_set, toy_encoder

from grain_jax.evaluation.deciding_texts import DecidingTexts, kind_of
from grain_jax.evaluation.predictions import PredictionsFile
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.inference.encoder import ImageFeatures
from grain_jax.zero_shot.method import ClassBanks
from grain_jax.zero_shot.scorers import make_class_texts, text_bank
from grain_jax.zero_shot.text_kinds import DESCRIPTIONS, REGIONS, TEXT_KINDS, TextKind

TEXTS = {"jay": ("a blue wing", "a tail"), "tit": ("a yellow belly", "a cap", "a tail")}
RNG = np.random.default_rng(0)


def unit(*shape):
    vectors = RNG.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def test_the_text_is_that_of_a_loop_over_cosines():
    embedded = {text: unit(5) for texts in TEXTS.values() for text in texts}
    texts = make_class_texts(list(TEXTS), templates=["{}"], descriptions=TEXTS)
    bank = text_bank(lambda words: np.stack([embedded[text] for text in words]), texts.regions)
    features = ImageFeatures(image=unit(4, 5), regions=unit(4, 3, 5), boxes=None)
    found = DecidingTexts(ClassBanks(texts, {DESCRIPTIONS: bank, REGIONS: bank}), features)
    names, classes = list(TEXTS), np.array([1, 0, 1])
    for alpha in (1.0, 0.5, 0.0):
        for row, (text, cosine) in enumerate(found("description", alpha, 1, classes), start=1):
            vectors = [features.image[row]] if alpha == 1 else features.regions[row]
            cosines = {
                one: max(float(np.dot(embedded[one], vector)) for vector in vectors)
                for one in TEXTS[names[classes[row - 1]]]
            }
            assert text == max(cosines, key=cosines.get)
            assert cosine == pytest.approx(cosines[text], rel=1e-5)
    assert found("name", None, 0, classes) is None


def test_texts_are_made_once_for_all_blocks(monkeypatch):
    texts = make_class_texts(list(TEXTS), templates=["{}"], descriptions=TEXTS)
    bank = text_bank(lambda words: unit(len(words), 5), texts.regions)
    features = ImageFeatures(image=unit(4, 5), regions=unit(4, 3, 5), boxes=None)
    made = []

    def make(texts):
        made.append(texts)
        return texts.descriptions

    monkeypatch.setitem(TEXT_KINDS, DESCRIPTIONS, TextKind(make))
    found = DecidingTexts(ClassBanks(texts, {DESCRIPTIONS: bank, REGIONS: bank}), features)
    for start in range(4):
        assert found("description", 1.0, start, np.array([1])) is not None
    assert len(made) == 1


@pytest.mark.parametrize(
    ("method", "alpha", "kind"),
    [
        ("name", None, None),
        ("description", 1.0, DESCRIPTIONS),
        ("description", 0.5, REGIONS),
        ("name_and_regions", 0.5, REGIONS),
        ("swapped_description", 1.0, None),
        ("of another version", None, None),
        ("wca", None, None),
        ("gc_clip", None, None),
        ("fgvp", None, None),
    ],
)
def test_the_kind_is_what_the_method_compares_with(method, alpha, kind):
    assert kind_of(method, alpha) == kind


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_predictions_have_the_text_of_the_true_and_of_the_predicted_class(tmp_path, suffix):
    dataset, path = bird_set(), tmp_path / f"a.{suffix}"
    with PredictionsFile(path) as lines:
        evaluate_zero_shot(
            toy_encoder(),
            dataset,
            alphas=(1.0, 0.5),
            on_scores=lines.of_set(dataset),
            on_texts=lines.look_up,
        )
    if suffix == "csv":
        with path.open(newline="") as file:
            filled = [{k: cell for k, cell in row.items() if cell} for row in csv.DictReader(file)]
        cells = ("label_text", "predicted_text")
        rows = [row | {k: json.loads(row[k]) for k in cells if k in row} for row in filled]
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    for line in rows:
        assert ("label_text" in line) == (line["method"] != "name")
        if line["method"] != "name" and line["label"] == line["predicted"]:
            assert line["label_text"] == line["predicted_text"]
    text, cosine = next(line["label_text"] for line in rows if "label_text" in line)
    assert any(text in texts for texts in dataset.descriptions.values())
    assert -1 <= cosine <= 1
