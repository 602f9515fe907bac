"""Matching against SciPy's assignment, thousands of problems in one call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_boxes import reference_giou
from scipy.optimize import linear_sum_assignment

from grain_jax.losses.matching import match, matching_cost

match_fn = jax.jit(match)


def problems(kind: str, num_queries: int, num_regions: int, count: int = 1500):
    rng = np.random.default_rng(num_queries * 10 + num_regions)
    cost = rng.normal(size=(count, num_queries, num_regions)).astype(np.float32)
    if kind == "ties":
        cost = rng.integers(0, 3, cost.shape).astype(np.float32)
    elif kind == "scales":
        cost *= 10.0 ** rng.integers(-3, 4, (count, 1, 1)).astype(np.float32)
    mask = rng.random((count, num_regions)) < rng.random((count, 1))
    mask[0], mask[1] = False, True
    return cost, mask


@pytest.mark.parametrize(("num_queries", "num_regions"), [(5, 5), (7, 4), (10, 9)])  # two solvers
@pytest.mark.parametrize("kind", ["random", "ties", "scales"])
def test_total_cost_is_the_least(kind, num_queries, num_regions):
    cost, mask = problems(kind, num_queries, num_regions)
    query = np.asarray(match_fn(jnp.asarray(cost), jnp.asarray(mask)))
    for c, m, q in zip(cost.astype(np.float64), mask, query, strict=True):
        assert len(set(q)) == num_regions  # padded regions too: each its own query
        rows, columns = linear_sum_assignment(c[:, m])
        least = c[:, m][rows, columns].sum()
        ours = c[q[m], np.flatnonzero(m)].sum()
        np.testing.assert_allclose(ours, least, rtol=1e-5, atol=1e-5 * np.abs(c).max())
        if kind == "random":  # without ties the assignment is unique
            expected = np.empty(m.sum(), int)
            expected[columns] = rows
            np.testing.assert_array_equal(q[m], expected)


def test_padding_does_not_change_the_match():
    cost, mask = problems("random", 7, 4, count=200)
    junk = np.where(mask[:, None, :], cost, 1e6 * np.sign(cost))
    a, b = (np.asarray(match_fn(jnp.asarray(c), jnp.asarray(mask))) for c in (cost, junk))
    np.testing.assert_array_equal(a[mask], b[mask])


@pytest.mark.parametrize("size", [5, 9])
def test_a_diverged_model_does_not_hang(size):
    for bad in (np.nan, np.inf, -np.inf):
        cost, mask = problems("random", size, size, count=8)
        cost[:, 2] = bad
        query = np.asarray(match_fn(jnp.asarray(cost), jnp.asarray(mask)))
        assert (np.sort(query, axis=1) == np.arange(size)).all()


def test_fewer_queries_than_regions_are_refused():
    with pytest.raises(ValueError, match="num_queries"):
        match(jnp.zeros((1, 3, 4)), jnp.ones((1, 4), bool))


def test_matching_passes_no_gradient():
    cost, mask = problems("random", 5, 5, count=4)

    def chosen(cost):
        query = match(cost, jnp.asarray(mask))
        return jnp.take_along_axis(cost, query[:, None], axis=1).sum()

    gradient = np.asarray(jax.grad(chosen)(jnp.asarray(cost)))
    assert set(np.unique(gradient)) == {0.0, 1.0}  # of the chosen entries, not of the choice


def test_cost_of_every_pair():
    rng = np.random.default_rng(0)
    predicted, target = rng.uniform(0.2, 0.6, (2, 3, 4)).astype(np.float32)
    cost = matching_cost(
        jnp.asarray(predicted)[None], jnp.asarray(target[:2])[None], l1_cost=5.0, giou_cost=2.0
    )
    assert cost.shape == (1, 3, 2)

    def corners(box):
        x, y, w, h = box.astype(float)
        return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]

    for q in range(3):
        for m in range(2):
            giou = reference_giou(corners(predicted[q]), corners(target[m]))[1]
            expected = 5 * np.abs(predicted[q] - target[m]).sum() - 2 * giou
            np.testing.assert_allclose(cost[0, q, m], expected, rtol=1e-4)
