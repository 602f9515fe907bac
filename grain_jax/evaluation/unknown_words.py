"""What a tokenizer of whole words does not know of the texts of a set."""

import itertools
from collections.abc import Iterable

from grain_jax.data.records import ZeroShotSet
from grain_jax.data.tokenizer import Tokenizer, WordTokenizer


def unknown_words_note(tokenizer: Tokenizer, dataset: ZeroShotSet) -> str:
    """A sentence on the words of names and descriptions that it does not know; "" where none."""
    return unknown_words_in(
        tokenizer, [*dataset.class_names, *itertools.chain(*dataset.descriptions.values())]
    )


def unknown_words_in(tokenizer: Tokenizer, texts: Iterable[str]) -> str:
    """A sentence on the words of the texts that it does not know; "" where none."""
    if not isinstance(tokenizer, WordTokenizer):
        return ""
    words = dict.fromkeys(word for text in texts for word in tokenizer.unknown_words(text))
    return tokenizer.unknown_words_note(list(words)) if words else ""
