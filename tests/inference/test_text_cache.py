"""Embeddings of texts and classes that are kept from one call to the next."""

import numpy as np
import pytest
from toy_encoder import make_image, toy_model

from grain_jax.inference import text_cache
from grain_jax.inference.text_cache import TextCache
from grain_jax.zero_shot.scorers import make_class_texts

DESCRIBED = {"parrot": ["blue tail", "green wing"], "crow": ["red eye"]}


class Encodes:
    """Embeds a text as the number in it, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts, kind):
        self.asked += [f"{kind} {text}" for text in texts]
        return np.array([[float(text)] for text in texts], np.float32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cache, "MAX_CACHED_TEXTS", 4)


def test_texts_come_in_their_order_and_are_encoded_once():
    cache = TextCache(encode := Encodes())
    assert cache.embed(["3", "1", "3"], kind="caption").tolist() == [[3], [1], [3]]
    assert cache.embed(["1", "2"], kind="caption").tolist() == [[1], [2]]
    assert cache.embed(["1"], kind="description").tolist() == [[1]]
    assert encode.asked == ["caption 3", "caption 1", "caption 2", "description 1"]


def test_earlier_calls_make_room(small):
    cache = TextCache(encode := Encodes())
    for texts in (["1", "2"], ["3", "4"], ["5", "4"]):
        cache.embed(texts, kind="caption")
    del encode.asked[:]
    cache.embed(["2", "3", "4", "5"], kind="caption")
    assert encode.asked == []  # 1, of the earliest call, made room
    cache.embed(["1"], kind="caption")
    assert encode.asked == ["caption 1"]


def test_nothing_makes_room_while_there_is_room(monkeypatch):
    monkeypatch.setattr(text_cache, "MAX_CACHED_TEXTS", 10)
    cache = TextCache(encode := Encodes())
    cache.embed(["1", "2", "3", "4", "5", "6"], kind="caption")
    cache.embed(["7"], kind="caption")
    del encode.asked[:]
    cache.embed(["1", "2", "3", "4", "5", "6", "7"], kind="caption")
    assert encode.asked == []


def test_more_texts_than_are_kept_are_not_all_encoded_again(small):
    cache, texts = TextCache(encode := Encodes()), ["1", "2", "3", "4", "5", "6"]
    cache.embed(texts, kind="caption")
    del encode.asked[:]
    assert cache.embed(texts, kind="caption").ravel().tolist() == [1, 2, 3, 4, 5, 6]
    assert encode.asked == ["caption 5", "caption 6"]


def count_calls(patch: pytest.MonkeyPatch) -> list[int]:
    """Patches how class texts are made; gets an entry for every time they are."""
    made: list[int] = []

    def make(names, **options):
        made.append(len(names))
        return make_class_texts(names, **options)

    patch.setattr("grain_jax.inference.predictor.make_class_texts", make)
    return made


def test_a_set_of_classes_is_made_once_and_again_for_other_texts(monkeypatch):
    model, made = toy_model(), count_calls(monkeypatch)
    image = make_image("red", "green", "red")
    first = model.classify(image, ["crow", "parrot"], DESCRIBED)
    again = model.classify(image, ["crow", "parrot"], {k: list(v) for k, v in DESCRIBED.items()})
    assert made == [2]
    assert first == again
    others = [
        model.classify(image, ["parrot", "crow"], DESCRIBED),
        model.classify(image, ["crow", "parrot"], DESCRIBED | {"crow": ["green eye"]}),
        model.classify(image, ["crow", "parrot"]),
        model.classify(image, ["crow", "parrot"], templates=["{}", "a red {}"]),
        model.classify(image, ["crow", "parrot"], DESCRIBED, method="name_and_regions"),
        model.classify(image, ["crow", "parrot"], DESCRIBED, description_template="red {}"),
    ]
    assert made == [2] * 7
    assert others[0][0].ranked[0].grounded == first[0].ranked[0].grounded
    assert others[1][0].ranked != first[0].ranked


def test_the_sets_used_last_are_kept(monkeypatch):
    model, made = toy_model(), count_calls(monkeypatch)
    monkeypatch.setattr(text_cache, "MAX_CACHED_CLASSES", 2)
    sets = [["red"], ["red", "blue"], ["red", "blue", "green"]]
    for labels in (*sets[:2], sets[0], sets[2], sets[0], sets[1]):
        model.classify(make_image("red"), labels)
    assert made == [1, 2, 3, 2]  # the second made room for the third


def test_one_set_of_more_texts_than_are_kept_is_kept(monkeypatch, small):
    model, made = toy_model(), count_calls(monkeypatch)
    labels = [f"red {number}" for number in range(7)]
    for _ in range(3):
        model.classify(make_image("red"), labels)
    assert made == [7]
