"""Noun phrases of captions, against phrases marked by hand in captions made for it."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.annotation.phrases import (
    PHRASE_FINDERS,
    PhraseFinder,
    RulePhrases,
    SpacyPhrases,
    caption_phrases,
)

# Phrases in brackets.
CAPTIONS = [
    "[A girl] in [a red dress] jumps over [two small dogs] .",
    "[Two men] are sitting on [a wooden bench] near [the water] .",
    "[A group of people] walks through [a snow covered field] .",
    "[A black and white dog] with [a ball] in [its mouth] runs to [the man 's car] .",
    "[A man] holding [a swimming pool noodle] watches [his son] .",
    "[A very tall building] with [a brightly colored roof]",
    "[The dog] is trying to catch [a yellow toy] and [a stick] .",
    "[Three climbers] look at [framed photos of a mountain]",
    "In front of [a shop] stands [a woman] wearing [skis] .",
    "[a man's hat] , [an old bicycle] and [the side of a house]",
    "[The white bird] flies quickly over [a railing] while it is raining",
]


WORDS = [
    *("a", "the", "dog", "black", "and", "in", "running", "runs", "'s", "of"),
    *(",", ".", "two", "very", "\u00e9\u2019s", "12", "-"),
]


def marked(text: str) -> tuple[str, list[str]]:
    plain = text.replace("[", "").replace("]", "")
    return plain, re.findall(r"\[(.*?)\]", text)


@pytest.mark.parametrize("text", CAPTIONS)
def test_the_rules_find_the_marked_phrases(text):
    caption, expected = marked(text)
    found = [caption[a:b] for a, b in RulePhrases().spans(caption)]
    assert found == expected


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(WORDS) | st.text(max_size=4),
        max_size=12,
    ).map(" ".join)
)
def test_spans_of_any_text_are_in_order_and_hold_words(caption):
    before = 0
    for start, stop in RulePhrases().spans(caption):
        assert before <= start < stop <= len(caption)
        assert any(letter.isalnum() for letter in caption[start:stop])
        before = stop


def test_phrases_of_several_captions_are_told_once():
    captions = ["A dog  in the background", "The dog\nhas a red ball .", "A big dog", "a red ball"]
    phrases = caption_phrases(captions, RulePhrases(), limit=10)
    assert phrases == ["A dog", "a red ball", "A big dog"]
    assert caption_phrases(captions, RulePhrases(), limit=2) == ["A dog", "a red ball"]
    assert caption_phrases(["", "..."], RulePhrases(), limit=3) == []


@pytest.mark.parametrize("name", PHRASE_FINDERS)
def test_every_finder_has_the_same_answer_for_a_plain_caption(name):
    finder = opened(name)
    caption = "A girl in a red dress sits on a wooden bench ."
    assert [caption[a:b] for a, b in finder.spans(caption)] == [
        "A girl",
        "a red dress",
        "a wooden bench",
    ]
    assert finder.name.startswith(name)


def opened(name: str) -> PhraseFinder:
    """The finder; where what it needs is not installed, the error says how to install it."""
    if name == "spacy":
        pytest.importorskip("spacy")
    try:
        return PHRASE_FINDERS[name]()
    except ValueError as error:
        if "python -m spacy download" not in str(error):
            raise
        pytest.skip(str(error))


def test_spacy_joins_what_of_connects_and_leaves_pronouns_out():
    finder = opened("spacy")
    caption = "A group of people looks at it from the side of a house ."
    assert [caption[a:b] for a, b in finder.spans(caption)] == [
        "A group of people",
        "the side of a house",
    ]


def test_a_missing_pipeline_is_an_error_that_says_how_to_get_it():
    pytest.importorskip("spacy")
    with pytest.raises(ValueError, match="python -m spacy download xx_no_such_pipeline"):
        SpacyPhrases("xx_no_such_pipeline")
