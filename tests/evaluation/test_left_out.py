"""Methods that cannot be measured: said for each set, an error where none is left."""

import pytest

from grain_jax.evaluation.left_out import check_any_left, left_out_sentence


def test_an_error_only_where_no_method_is_left_on_any_set():
    lacking = {"description": ["descriptions"]}
    check_any_left(["name", "description"], {"a": lacking, "b": lacking})
    check_any_left(["description"], {"a": lacking, "b": {}})
    check_any_left(["description"], {})  # records alone have no classes
    check_any_left([], {"a": {}})
    with pytest.raises(ValueError, match=r"On 'a': description needs descriptions\. On 'b': "):
        check_any_left(["description"], {"a": lacking, "b": lacking})


def test_the_sentence_counts_methods():
    found = {
        "gda": ["labelled images"],
        "x": ["a bank", "descriptions"],
        "knn": ["labelled images"],
    }
    assert left_out_sentence("pets", found) == (
        "pets: 3 methods are left out: gda, knn need labelled images; x needs a bank and "
        "descriptions."
    )
