"""What a tokenizer of whole words does not know of texts."""

from grain_jax.data.compositional.questions import CaptionChoice, CaptionChoices, Pairing, Pairings
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.evaluation.unknown_words import unknown_words_in


def test_words_that_it_does_not_know_are_named_once():
    tokenizer = WordTokenizer(["red", "bird"])
    note = unknown_words_in(tokenizer, ["red dog", "a dog", "red bird"])
    assert note.count("dog") == 1
    assert unknown_words_in(tokenizer, ["red bird"]) == ""


def test_every_caption_of_a_test_is_looked_at():
    images = None
    choice = CaptionChoice(0, "a dog on grass", "a grass on dog", "swap")
    assert CaptionChoices("a", (choice,), images).texts == ("a dog on grass", "a grass on dog")
    pair = Pairing((0, 1), ("one", "other"))
    assert Pairings("b", (pair,), images).texts == ("one", "other")
