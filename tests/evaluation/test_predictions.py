"""What a line of predictions says of how sure an answer is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grain_jax.evaluation.predictions import best_classes, best_probability

SCORES = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], np.float32)


def test_cosines_are_scaled_and_probabilities_are_not():
    powers = np.exp(20 * SCORES.astype(float))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    found = best_probability("name", SCORES, 20.0)
    np.testing.assert_allclose(found, softmax.max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(best_probability("cased", SCORES, 20.0), SCORES.max(axis=1))
    of_logs = best_probability("perceptionclip", np.log(SCORES), 20.0)
    np.testing.assert_allclose(of_logs, SCORES.max(axis=1), rtol=1e-6)


@pytest.mark.parametrize("method", ["loki", "zlap", "of another version"])
def test_scores_that_only_rank_have_none(method):
    assert best_probability(method, SCORES, 20.0) is None


def test_cosines_have_none_without_a_scale():
    assert best_probability("name", SCORES, None) is None


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 2**31))
def test_the_best_classes_are_those_of_a_stable_sort(num_classes, num_values, seed):
    """Few different values: ties everywhere, also at the last place."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 10**num_values, (8, num_classes)).astype(np.float32)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(best_classes(scores, 5), expected)
