"""Names that differ from labels in where their spaces are: bound where that is unambiguous."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.data.classification.class_names import names_of_labels
from grain_jax.data.classification.class_texts import bind_descriptions

WORDS = st.text("abc", min_size=1, max_size=3)
NAMES = st.lists(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), min_size=2, max_size=6)
SPELLINGS = (str, str.upper, str.title, lambda text: text.replace(" ", "_"))


def letters(text: str) -> str:
    return text.lower().replace(" ", "").replace("_", "")


def bound(labels, given):
    return names_of_labels(labels, given, "list", lambda _: None)


@st.composite
def respaced(draw, name: str) -> str:
    """The letters of the name, with spaces in other places and another spelling."""
    kept = letters(name)
    cuts = draw(st.lists(st.booleans(), min_size=len(kept), max_size=len(kept)))
    text = "".join(f" {c}" if cut else c for c, cut in zip(kept, cuts, strict=True)).strip()
    return draw(st.sampled_from(SPELLINGS))(text)


@settings(max_examples=60, deadline=None)
@given(names=NAMES, data=st.data())
def test_names_bind_by_their_letters_in_any_order(names, data):
    names = list({letters(name): name for name in names}.values())
    labels = [data.draw(respaced(name)) for name in data.draw(st.permutations(names))]
    expected = {label: next(n for n in names if letters(n) == letters(label)) for label in labels}
    further = [*names, "a name of no label"]  # of a longer list, names must be equal
    assert bound(labels, names) == expected
    assert {label: bound(labels, further)[label] for label in labels} == expected
    keyed = {name: f"{name}!" for name in names}
    assert bound(labels, keyed) == {label: f"{name}!" for label, name in expected.items()}
    described = bind_descriptions(
        {label: [letters(label)] for label in labels},
        {str(k): name for k, name in enumerate(names)},
        "descriptions",
        "set",
        lambda _: None,
    )
    assert described == {name: (letters(name),) for name in names}


@settings(max_examples=60, deadline=None)
@given(name=st.lists(WORDS, min_size=2, max_size=3).map(" ".join), data=st.data())
def test_two_candidates_of_the_same_letters_bind_to_none(name, data):
    """Unless one of them is equal, which then is meant."""
    label = data.draw(respaced(name))
    pair = sorted({data.draw(respaced(name)).lower().replace("_", " ") for _ in range(2)})
    if len(pair) < 2:
        return
    given, equal = [*pair, "other"], label.lower().replace("_", " ")
    if equal in pair:
        assert bound([label], given)[label] == equal
        return
    with pytest.raises(ValueError, match="no class name"):
        bound([label], given)
    with pytest.raises(ValueError, match="no class name"):
        bound([label], {text: text for text in given})
    with pytest.raises(ValueError, match="No key"):
        bind_descriptions({text: ["x"] for text in pair}, {"0": label}, "d", "set", lambda _: None)


def test_two_labels_of_the_same_letters_bind_to_none():
    with pytest.raises(ValueError, match="2 of 3 labels lack one"):
        bound(["chainsaw", "cha insaw", "dog"], ["chain saw", "dog", "cat", "cow"])


def test_an_order_that_contradicts_the_letters_is_refused():
    given = ["dog", "chain saw"]
    with pytest.raises(ValueError, match="not in the order"):
        names_of_labels(["chainsaw", "zebra"], given, "list", lambda _: None, binding="order")
