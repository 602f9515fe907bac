"""What a tokenizer of whole words does not know of the texts of a set."""

import itertools

from grain_jax.data.records import ZeroShotSet
from grain_jax.data.tokenizer import Tokenizer, WordTokenizer


def unknown_words_note(tokenizer: Tokenizer, dataset: ZeroShotSet) -> str:
    """A sentence on the words of names and descriptions that it does not know; "" where none."""
    if not isinstance(tokenizer, WordTokenizer):
        return ""
    texts = [*dataset.class_names, *itertools.chain(*dataset.descriptions.values())]
    words = dict.fromkeys(word for text in texts for word in tokenizer.unknown_words(text))
    return tokenizer.unknown_words_note(list(words)) if words else ""
