"""What `grain_jax.load(...).classify` takes for descriptions: lists of texts alone."""

import pytest

from grain_jax.inference.inputs import checked_descriptions


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ({"coarse": "a bird", "description": "red"}, r"a dictionary with the keys \['coarse', 'd"),
        ({}, "a dictionary"),
        (None, "got None"),
        ("a crest", "got 'a crest'"),
        (3, "got 3"),
        ({"a crest"}, "got {'a crest'}"),
        ([["a crest"]], r"got \[\['a crest'\]\]"),
        (["a crest", None], r"got \['a crest', None\]"),
    ],
)
def test_values_that_are_not_lists_of_texts_are_named(texts, named):
    with pytest.raises(ValueError, match=rf"of .red. must be a list of texts; (got )?{named}"):
        checked_descriptions({"red": texts, "blue": ["a tail"]}, ["red", "blue"])


def test_lists_and_tuples_are_taken():
    given = {"red": ("a crest",), "blue": ["a tail", "a bill"]}
    expected = {"red": ("a crest",), "blue": ("a tail", "a bill")}
    assert checked_descriptions(given, ["red", "blue"]) == expected
