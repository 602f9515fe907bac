"""Counts of texts agree with a dictionary."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.annotation.audit.counts import Repeats, TextCounts

TEXTS = ("a dog", "A dog", "a  dog.", "a cat", "", "caf\u00e9", "\ud800")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from(TEXTS), max_size=4), max_size=8))
def test_counts_are_those_of_a_dictionary(images):
    counts = TextCounts(images)
    exact = Counter(text for texts in images for text in set(texts))
    plain = {"A dog": "a dog", "a  dog.": "a dog"}
    alike = Counter(name for texts in images for name in {plain.get(t, t) for t in texts})
    for text in exact:
        assert counts(text) == Repeats(exact[text], alike[plain.get(text, text)])
