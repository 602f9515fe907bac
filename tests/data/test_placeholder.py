"""The one place that a text is put into."""

import re

import pytest

from grain_jax.data.placeholder import check_placeholder


@pytest.mark.parametrize("text", ["{}", "a {}, seen", "{name}: {}"])
def test_one_place_is_accepted(text):
    check_placeholder(text, "it", takes="the name")


@pytest.mark.parametrize(
    ("text", "count"), [("", "no"), ("a photo", "no"), ("{} {}", "2"), ("{name}", "no")]
)
def test_none_or_several_are_refused_with_their_number(text, count):
    message = f"it has {count} '{{}}' and needs exactly one '{{}}', where the name goes."
    with pytest.raises(ValueError, match=re.escape(message)):
        check_placeholder(text, "it", takes="the name")
