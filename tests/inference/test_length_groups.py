"""Texts grouped by length before they are encoded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grain_jax.inference.length_groups import (
    MIN_SAVING,
    SHORTEST_LENGTH,
    compiled_length,
    length_groups,
    used_lengths,
)


def padded(count: int) -> int:
    """Rows computed for so many texts, in batches of 32 that may be 8 or 16 at the end."""
    whole, rest = divmod(count, 32)
    return 32 * whole + (next(size for size in (8, 16, 32) if size >= rest) if rest else 0)


def test_used_lengths_count_up_to_the_last_token():
    tokens = np.array([[1, 0, 2, 0], [0, 0, 0, 0], [3, 3, 3, 3]])
    assert used_lengths(tokens).tolist() == [3, 1, 4]


@pytest.mark.parametrize(("used", "length"), [(1, 16), (16, 16), (17, 32), (33, 64), (65, 77)])
def test_lengths_that_have_a_compilation(used, length):
    assert compiled_length(used, 77) == length


def test_one_long_text_does_not_lengthen_a_thousand():
    lengths = np.full(1_000, 9)
    lengths[500] = 60
    short, long = length_groups(lengths, (1_000, 64), padded_size=padded)
    assert (short.length, len(short.rows)) == (16, 999)
    assert (long.length, long.rows.tolist()) == (64, [500])


def test_a_group_that_saves_little_is_joined():
    assert len(length_groups(np.array([9, 60]), (2, 64), padded_size=padded)) == 1  # 8 rows of each
    half = np.repeat([20, 40], 500)  # 32 and 64 tokens
    assert len(length_groups(half, (1_000, 64), padded_size=padded)) == 2
    mostly_long = np.repeat([20, 40], [50, 950])
    assert len(length_groups(mostly_long, (1_000, 64), padded_size=padded)) == 1


def test_texts_whose_padding_is_read_stay_together():
    (group,) = length_groups(None, (100, 64), padded_size=padded)
    assert (group.length, group.rows.tolist()) == (64, list(range(100)))


@given(st.lists(st.integers(1, 77), min_size=1, max_size=200))
def test_every_text_is_in_one_group_that_holds_it(lengths):
    given_lengths = np.array(lengths)
    full = compiled_length(max(lengths), 77)
    groups = length_groups(given_lengths, (len(lengths), full), padded_size=padded)
    rows = np.concatenate([group.rows for group in groups])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    for group in groups:
        assert given_lengths[group.rows].max() <= group.length <= full
        assert group.length >= min(SHORTEST_LENGTH, full)
    parts = [padded(len(group.rows)) * group.length for group in groups]
    together = padded(len(lengths)) * full
    assert sum(parts) <= together
    for first, second, *costs in zip(groups, groups[1:], parts, parts[1:], strict=False):
        joined = padded(len(first.rows) + len(second.rows)) * second.length
        assert joined - sum(costs) >= MIN_SAVING * together
