"""What is compiled and embedded, how often."""

from typing import ClassVar

import pytest
from toy_encoder import ToyModel, make_image, toy_model

from grain_jax.inference.encoder import Encoder


class Counting(ToyModel):
    """Notes what is compiled: a call of the module is a trace."""

    traced: ClassVar[list[tuple[str, int]]] = []

    def encode_images(self, images, *, train=False):
        self.traced.append(("images", len(images)))
        return super().encode_images(images, train=train)

    def encode_texts(self, tokens):
        self.traced.append(("texts", len(tokens)))
        return super().encode_texts(tokens)


def test_each_power_of_two_is_compiled_once():
    Counting.traced.clear()
    model = toy_model(model=Counting(), batch_size=4)
    make_images = [make_image("red", "green", "blue")] * 11
    for count in (1, 3, 1, 4, 2, 11, 6):  # the last two: 4 + 4 + 3 and 4 + 2
        assert len(model.embed_images(make_images[:count])) == count
    assert Counting.traced == [("images", 1), ("images", 4), ("images", 2)]
    Counting.traced.clear()
    for texts in (["red"], ["blue"], ["a", "a b"], ["red a" + " b" * i for i in range(7)]):
        model.embed_texts(texts)
    assert Counting.traced == [("texts", 1), ("texts", 2), ("texts", 4)]


def test_a_batch_size_that_is_no_power_of_two_is_a_size_too():
    Counting.traced.clear()
    model = toy_model(model=Counting(), batch_size=6)
    for count in (5, 6, 3):
        model.embed_images([make_image("red")] * count)
    assert Counting.traced == [("images", 6), ("images", 4)]


def test_known_texts_are_not_embedded_again(monkeypatch):
    model = toy_model()
    model.classify(make_image("red"), ["red", "blue"])
    monkeypatch.setattr(Encoder, "texts", lambda *_, **__: pytest.fail("embedded again"))
    assert model.classify(make_image("blue"), ["red", "blue"])[0].label == "blue"
