"""Methods that cannot be measured: said for each set, an error where none is left."""

import pytest

from grain_jax.evaluation.left_out import check_any_left, left_out_sentences


def test_an_error_only_where_no_method_is_left_on_any_set():
    lacking = {"description": ["descriptions"]}
    check_any_left(["name", "description"], {"a": lacking, "b": lacking})
    check_any_left(["description"], {"a": lacking, "b": {}})
    check_any_left(["description"], {})  # records alone have no classes
    check_any_left([], {"a": {}})
    with pytest.raises(ValueError, match=r"On 'a': description needs descriptions\. On 'b': "):
        check_any_left(["description"], {"a": lacking, "b": lacking})


def test_a_few_methods_are_named_with_what_they_need():
    found = {
        "gda": ["labelled images"],
        "x": ["a bank", "descriptions"],
        "knn": ["labelled images"],
    }
    assert left_out_sentences({"pets": found}) == [
        "pets: 3 methods are left out: gda, knn need labelled images; x needs a bank and "
        "descriptions."
    ]


def test_of_many_the_first_three_are_named_once_for_all_sets_that_lack_them():
    many = {f"m{k}": ["labelled images"] for k in range(14)}
    found = left_out_sentences({"a": many, "b": {}, "c": {"x": ["a bank"]}, "d": dict(many)})
    assert found == [
        "a, d: 14 methods are left out: m0, m1, m2 and 11 more. The JSON has all of them in "
        '"left_out", with what each needs.',
        "c: 1 method is left out: x needs a bank.",
    ]
    assert left_out_sentences({}) == []
