"""Pairs of training and evaluation images, against loops over all pairs."""

import numpy as np
import pytest
from toy_encoder import ToySource, record, toy_encoder

from grain_jax.evaluation import leaks as module
from grain_jax.evaluation.comparison import Answers, Measure
from grain_jax.evaluation.leaks import (
    Closest,
    close_by_embedding,
    close_by_hash,
    cosine_pairs,
    leaks,
    without_leaks,
)


def test_the_closest_are_kept_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    generator = np.random.default_rng(0)
    apart = generator.integers(0, 6, (4, 9)).astype(float)
    closest = Closest(np.zeros(4, np.int64))
    for part in np.array_split(generator.permutation(36), 5):
        tests, trainings = np.unravel_index(part, apart.shape)
        closest.add(tests, trainings, apart[tests, trainings])
    assert closest.counts.tolist() == [9] * 4
    expected = [
        [test, training]
        for test in range(4)
        for training in sorted(range(9), key=lambda t: (apart[test, t], t))[:2]
    ]
    assert closest.rows.tolist() == expected
    assert closest.apart.tolist() == [apart[test, training] for test, training in expected]


def test_cosine_pairs_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(module, "MAX_CELLS", 10)
    generator = np.random.default_rng(1)
    tests, trainings = (generator.normal(size=(n, 3)).astype(np.float32) for n in (4, 11))
    found = [
        (int(test), int(training))
        for block in cosine_pairs(tests, trainings, 0.5)
        for test, training, _ in zip(*block, strict=True)
    ]
    assert sorted(found) == [
        (i, j) for i in range(4) for j in range(11) if tests[i] @ trainings[j] >= 0.5
    ]


def test_both_searches_are_joined(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_IMAGES", 2)
    tests = ToySource(record("t0", "red"), record("t1", "blue"))
    trainings = ToySource(*(record(str(i), c) for i, c in enumerate(("green", "red", "red"))))
    done = []
    by_embedding = close_by_embedding(toy_encoder(), tests, trainings, 0.9, on_images=done.append)
    assert done == [2, 3]
    assert by_embedding.counts.tolist() == [2, 0]
    hashes = np.array([0, 1 << 20], np.uint64), np.array([7 << 20, 1, (1 << 20) + 1], np.uint64)
    found = leaks(close_by_hash(*hashes, 2), by_embedding)
    measured = [(leak.test, leak.training, leak.bits, leak.cosine) for leak in found]
    assert measured == [
        (0, 1, 1, pytest.approx(1.0)),
        (0, 2, 2, pytest.approx(1.0)),
        (1, 2, 1, None),
        (1, 0, 2, None),
        (1, 1, 2, None),
    ]


def test_metrics_without_leaked_images():
    measure = Measure("zero_shot", "birds", "name")
    answers = Answers([(name, "", "wren") for name in "abcd"], [1.0, 1.0, 0.0, 0.5])
    (measured,) = without_leaks({measure: answers}, ["a", "c"], known="abcd")
    assert (measured.images, measured.leaked_images) == (4, 2)
    assert (measured.value, measured.leaked, measured.rest) == (0.625, 0.5, 0.75)
    assert measured.low < 0.75 < measured.high
    (measured,) = without_leaks({measure: answers}, "abcd", known="abcd")
    assert (measured.leaked, measured.rest, measured.low) == (0.625, None, None)
    (measured,) = without_leaks({measure: answers}, [], known="abcd")
    assert (measured.leaked, measured.rest) == (None, 0.625)
    with pytest.raises(ValueError, match="the image 'b' of 'birds', which is not among"):
        without_leaks({measure: answers}, [], known="acd")
