"""Equal texts are counted as a dictionary of all texts would."""

import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grain_jax.data.inspection.repeated_texts import (
    NUM_EXAMPLES,
    TextCounter,
    matching_texts,
    text_key,
    text_keys,
)

TEXTS = [f"text {i}" for i in range(15)]


@given(st.lists(st.lists(st.sampled_from(TEXTS), max_size=4), max_size=40), st.integers(1, 5))
def test_as_a_dictionary_counts(records: list[list[str]], at_once: int) -> None:
    places: dict[str, list[int]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        counter = TextCounter(Path(folder, "texts"))
        for start in reversed(range(0, len(records), at_once)):
            part = records[start : start + at_once]
            numbers = [start + i for i, texts in enumerate(part) for _ in texts]
            texts = [text for each in part for text in each]
            counter.add(text_keys(texts), np.asarray(numbers, np.uint32))
        found = counter.result()
    for number, each in enumerate(records):
        for text in each:
            places[text].append(number)
    assert found.total == sum(map(len, records))
    assert found.distinct == len(places)
    shared = [where for where in places.values() if len(set(where)) > 1]
    assert found.in_several_images == sum(map(len, shared))
    expected = sorted(
        (-len(set(where)), -len(where), min(where), text_key(text))
        for text, where in places.items()
        if len(where) > 1
    )
    assert [
        (-each.num_images, -each.count, each.record, each.key) for each in found.examples
    ] == expected[:NUM_EXAMPLES]


def test_case_and_white_space_make_no_difference() -> None:
    key = text_key("A  red bird")
    assert text_key("a red BIRD ") == key != text_key("a red birds")
    assert [*matching_texts(["a bird", "a red bird"], key)] == ["a red bird"]
