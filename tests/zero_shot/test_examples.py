"""Classes of texts, examples or both, against plain loops; what must not depend on what."""

import math
import tracemalloc

import numpy as np
import pytest

from grain_jax.zero_shot.examples import (
    ASSUMED_PAIRS,
    EXAMPLE_WEIGHT,
    LEAST_SEPARATION,
    USUAL_SEPARATION,
    fit_examples,
)
from grain_jax.zero_shot.method import Support

WIDTH, CLASSES, SCALE = 6, 4, 20.0


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


class World:
    """Classes around directions of their own, texts a little off and far from all images."""

    def __init__(
        self,
        *,
        shots: tuple[int, ...],
        seed: int = 0,
        texts: float = 1.0,
        noise: float = 0.4,
    ):
        rng = np.random.default_rng(seed)
        centres = np.eye(CLASSES, WIDTH)
        gap = 2 * np.eye(WIDTH)[-1]
        self.labels = np.repeat(np.arange(CLASSES), shots)
        shown_noise = noise * rng.normal(size=(len(self.labels), WIDTH))
        self.image = unit(centres[self.labels] + gap + shown_noise)
        self.texts = unit(texts * centres - gap + 0.3 * rng.normal(size=(CLASSES, WIDTH)))
        self.asked = np.repeat(np.arange(CLASSES), 25)
        asked_noise = noise * rng.normal(size=(len(self.asked), WIDTH))
        self.images = unit(centres[self.asked] + gap + asked_noise)

    @property
    def support(self) -> Support:
        return Support(self.image, self.labels)

    def scores(self, has_texts=(True,) * CLASSES, weight: float = 0.5) -> np.ndarray:
        fitted = fit_examples(
            self.image @ self.texts.T,
            self.support,
            np.array(has_texts),
            weight=weight,
            logit_scale=SCALE,
        )
        return fitted(self.images @ self.texts.T, self.images)

    def accuracy(self, scores: np.ndarray) -> float:
        return float((scores.argmax(axis=1) == self.asked).mean())


def weighted(values: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean and standard deviation of (value, weight)."""
    total = sum(weight for _, weight in values)
    mean = sum(value * weight for value, weight in values) / total
    square = sum((value - mean) ** 2 * weight for value, weight in values) / total
    return mean, math.sqrt(square)


def by_hand(world: World, has_texts: tuple[bool, ...], weight: float) -> list[list[float]]:
    """The documented formula, one image and class at a time."""
    images, labels = world.image.tolist(), world.labels.tolist()
    members = [[x for x, k in zip(images, labels, strict=True) if k == c] for c in range(CLASSES)]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    def mean_vector(rows):
        sums = [sum(column) for column in zip(*rows, strict=True)]
        length = math.sqrt(dot(sums, sums))
        return [value / length for value in sums]

    means = [mean_vector(rows) if rows else None for rows in members]
    least = 1 / SCALE
    text_others, text_own, example_others, example_own = [], [], [], []
    for x, k in zip(images, labels, strict=True):
        share = 1 / len(members[k])
        for c in range(CLASSES):
            if has_texts[c]:
                place = text_own if c == k else text_others
                place.append((dot(x, world.texts[c]), share))
            if members[c] and c != k:
                example_others.append((dot(x, means[c]), share))
        rest = [row for row in members[k] if row is not x]
        if rest:
            example_own.append((dot(x, mean_vector(rest)), share))
    n_text, s_text = weighted(text_others)
    s_text = max(s_text, least)
    m_text = weighted(text_own)[0] if text_own else n_text + USUAL_SEPARATION * s_text
    if example_others:
        n_example, s_example = weighted(example_others)
        s_example = max(s_example, least)
    if example_own:
        m_example = weighted(example_own)[0]
    else:  # one of each
        pairs = len(labels) * (len(labels) - 1) / 2
        widest = (1 - n_example) / USUAL_SEPARATION
        squares = pairs * s_example**2 + ASSUMED_PAIRS * widest**2
        s_example = math.sqrt(squares / (pairs + ASSUMED_PAIRS))
        m_example = min(n_example + USUAL_SEPARATION * s_example, 1.0)
    if not example_others:
        n_example, s_example = m_example - (m_text - n_text), s_text
    d_text = max(m_text - n_text, 0) / s_text
    d_example = max(m_example - n_example, 0) / s_example

    def z_text(score):
        return (score - n_text) / s_text - max(d_text, LEAST_SEPARATION) / 2

    def z_example(score):
        return (score - n_example) / s_example - max(d_example, LEAST_SEPARATION) / 2

    def mixed(of_texts, of_examples):
        one = (1 - weight) * max(d_text**2, 1e-3) * z_text(of_texts)
        return one + weight * max(d_example**2, 1e-3) * z_example(of_examples)

    both = [c for c in range(CLASSES) if has_texts[c] and members[c]]
    odds = [
        (mixed(dot(x, world.texts[c]), dot(x, means[c])), 1 / len(members[k]))
        for x, k in zip(images, labels, strict=True)
        for c in both
        if c != k
    ]
    weights = (1 - weight) * max(d_text**2, 1e-3), weight * max(d_example**2, 1e-3)
    independent = math.hypot(*weights)
    s_both = max(weighted(odds)[1] if odds else 0.0, independent)
    n_both, m_both = mixed(n_text, n_example), mixed(m_text, m_example)
    d_both = max(m_both - n_both, 0) / s_both
    rows = []
    for x in world.images.tolist():
        row = []
        for c in range(CLASSES):
            of_texts = dot(x, world.texts[c])
            of_examples = dot(x, means[c]) if members[c] else None
            if not members[c]:
                row.append(of_texts)
                continue
            if has_texts[c]:
                odds_of = mixed(of_texts, of_examples)
                z = (odds_of - n_both) / s_both - max(d_both, LEAST_SEPARATION) / 2
            else:
                z = z_example(of_examples)
            row.append(n_text + max(d_text, LEAST_SEPARATION) / 2 * s_text + s_text * z)
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("shots", "has_texts"),
    [
        ((3, 1, 2, 4), (True, True, True, True)),
        ((1, 1, 1, 1), (True, True, True, True)),
        ((3, 0, 2, 0), (True, True, True, True)),
        ((3, 2, 0, 0), (False, False, True, True)),
        ((3, 2, 2, 0), (True, False, False, True)),
        ((2, 0, 0, 0), (True, True, True, True)),
        ((2, 0, 0, 0), (False, True, True, True)),
        ((1, 0, 1, 0), (True, True, True, True)),
        ((1, 0, 1, 0), (False, True, True, True)),
    ],
)
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_scores_are_those_of_the_formula(shots, has_texts, weight):
    world = World(shots=shots)
    expected = by_hand(world, has_texts, weight)
    np.testing.assert_allclose(world.scores(has_texts, weight), expected, rtol=1e-6, atol=1e-9)


def test_without_texts_scores_are_cosines_with_the_mean_examples():
    world = World(shots=(3, 1, 2, 2))
    means = [world.image[world.labels == k].sum(axis=0) for k in range(CLASSES)]
    found = world.scores((False,) * CLASSES)
    np.testing.assert_allclose(found, world.images @ unit(np.stack(means)).T, rtol=1e-6)


def test_a_weight_of_0_is_the_texts_alone_and_texts_alone_keep_their_score():
    world = World(shots=(2, 2, 0, 1))
    by_texts = world.images @ world.texts.T
    np.testing.assert_array_equal(world.scores(weight=0.0), by_texts)
    np.testing.assert_array_equal(world.scores(weight=0.7)[:, 2], by_texts[:, 2])


def test_a_weight_of_1_ranks_by_examples():
    world = World(shots=(2, 3, 1, 1))
    ranked = np.argsort(world.scores(weight=1.0), axis=1)
    np.testing.assert_array_equal(ranked, np.argsort(world.scores((False,) * CLASSES), axis=1))


def test_the_order_of_classes_and_images_does_not_matter():
    world = World(shots=(3, 0, 2, 1))
    has_texts = np.array([True, True, False, True])
    expected = world.scores(tuple(has_texts))
    order, rows = np.array([2, 0, 3, 1]), np.random.default_rng(1).permutation(len(world.labels))
    fitted = fit_examples(
        (world.image @ world.texts.T)[rows][:, order],
        Support(world.image[rows], np.argsort(order)[world.labels[rows]]),
        has_texts[order],
        weight=0.5,
        logit_scale=SCALE,
    )
    found = fitted((world.images @ world.texts.T)[:, order], world.images)
    np.testing.assert_allclose(found, expected[:, order], rtol=1e-9)


def test_classes_with_equal_examples_and_texts_tie():
    world = World(shots=(2, 2, 2, 2))
    world.texts[1] = world.texts[0]
    world.image[world.labels == 1] = world.image[world.labels == 0]
    found = world.scores()
    np.testing.assert_array_equal(found[:, 0], found[:, 1])


def test_texts_and_examples_together_are_better_than_either():
    kinds = {"texts": 0.0, "both": EXAMPLE_WEIGHT, "examples": 1.0}
    found = {kind: [] for kind in kinds}
    for seed in range(20):
        world = World(shots=(2,) * CLASSES, seed=seed, texts=2.0)
        for kind, weight in kinds.items():
            found[kind].append(world.accuracy(world.scores(weight=weight)))
    mean = {kind: np.mean(values) for kind, values in found.items()}
    assert mean["both"] > mean["texts"] + 0.01
    assert mean["both"] > mean["examples"] + 0.01


def test_texts_that_say_nothing_do_not_spoil_the_examples():
    """As names that the model never read; a plain mean of both scores loses a quarter here."""
    losses, plain = [], []
    for seed in range(20):
        world = World(shots=(4,) * CLASSES, seed=seed)
        world.texts = world.texts[np.random.default_rng(seed).permutation(CLASSES)]
        alone = world.accuracy(world.scores(weight=1.0))
        losses.append(alone - world.accuracy(world.scores()))
        means = unit(np.stack([world.image[world.labels == k].sum(0) for k in range(CLASSES)]))
        centred = [part - part.mean(axis=0) for part in (means, world.texts)]
        mean = world.images @ (unit(centred[0]) + unit(centred[1])).T
        plain.append(alone - world.accuracy(mean))
    assert np.mean(losses) < 0.05
    assert np.mean(plain) > 2 * np.mean(losses)


@pytest.mark.parametrize("with_texts", [True, False])
def test_classes_without_examples_are_found_beside_those_with_some(with_texts):
    """Though every image is more similar to any image than to any text."""
    found, nearest = [], []
    for seed in range(20):
        world = World(shots=(4, 4, 0, 0), seed=seed)
        has_texts = (with_texts, with_texts, True, True)
        of_texts = world.asked >= 2
        scores = world.scores(has_texts)
        found.append((scores.argmax(axis=1) == world.asked)[of_texts].mean())
        means = [world.image[world.labels == k].sum(axis=0) for k in range(2)]
        raw = world.images @ np.concatenate([unit(np.stack(means)), world.texts[2:]]).T
        nearest.append((raw.argmax(axis=1) == world.asked)[of_texts].mean())
    assert np.mean(nearest) == 0
    assert np.mean(found) > 0.5


def recalls(few: int, *, only: bool = False) -> np.ndarray:
    """Of the few classes that have one example, and of the others: by texts, and with examples."""
    shots = (1,) * few + (0,) * (CLASSES - few)
    found = []
    for seed in range(30):
        world = World(shots=shots, seed=seed, texts=2.0, noise=0.2)
        with_some = np.array(shots) > 0
        has_texts = tuple((~with_some | (not only)).tolist())
        scores = world.scores(has_texts, weight=EXAMPLE_WEIGHT)
        inside = with_some[world.asked]
        by_texts = world.images @ world.texts.T
        right = [one.argmax(axis=1) == world.asked for one in (by_texts, scores)]
        found.append([hit[some].mean() for some in (inside, ~inside) for hit in right])
    return np.mean(found, axis=0)


@pytest.mark.parametrize("few", [1, 2, 3])
def test_one_example_of_a_class_does_not_make_it_worse(few):
    """No new image is as similar to the example as that is to itself."""
    before, after, others_before, others_after = recalls(few)
    assert before > 0.9
    assert after >= before
    assert others_after > others_before - 0.03


@pytest.mark.parametrize("few", [2, 3])
def test_classes_of_one_example_alone_are_found_beside_texts(few):
    _, found, others_before, others_after = recalls(few, only=True)
    assert found > 0.9
    assert others_after > others_before - 0.05


@pytest.mark.parametrize("shots", [(1, 0, 0, 0), (0, 0, 1, 0)])
def test_one_example_in_all_changes_nothing(shots):
    world = World(shots=shots)
    np.testing.assert_array_equal(world.scores(), world.images @ world.texts.T)


@pytest.mark.parametrize(
    ("has_texts", "weight"), [((False, True, True, True), 0.5), ((True,) * CLASSES, 1.0)]
)
def test_a_class_of_the_only_example_alone_is_refused(has_texts, weight):
    with pytest.raises(ValueError, match="Give another of it, or one of another class"):
        World(shots=(1, 0, 0, 0)).scores(has_texts, weight)


@pytest.mark.parametrize("shots", [(3, 1, 2, 4), (1, 1, 1, 0), (0, 4, 0, 0)])
@pytest.mark.parametrize("cells", [1, 2 * CLASSES, 3 * CLASSES + 1])
def test_levels_are_those_of_one_block(shots, cells, monkeypatch):
    world = World(shots=shots)
    for has_texts in ((True,) * CLASSES, tuple(count == 0 for count in shots)):
        whole = world.scores(has_texts)
        with monkeypatch.context() as small:
            small.setattr("grain_jax.zero_shot.arithmetic.MAX_CELLS", cells)
            found = world.scores(has_texts)
        np.testing.assert_allclose(found, whole, rtol=1e-9)


def test_no_array_of_examples_by_classes_is_made(monkeypatch):
    rng = np.random.default_rng(0)
    num_classes, each = 200, 20
    labels = np.repeat(np.arange(num_classes), each)
    image = unit(rng.normal(size=(len(labels), WIDTH))).astype(np.float32)
    scores = rng.normal(size=(len(labels), num_classes)).astype(np.float32)
    monkeypatch.setattr("grain_jax.zero_shot.arithmetic.MAX_CELLS", 20 * num_classes)
    tracemalloc.start()
    fit_examples(
        scores,
        Support(image, labels),
        np.ones(num_classes, bool),
        weight=0.5,
        logit_scale=SCALE,
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < scores.nbytes / 2


def test_one_class_alone_is_scored_at_all():
    image = unit(np.ones((1, 3)))
    for has_texts in (True, False):
        fitted = fit_examples(
            np.full((1, 1), 0.3),
            Support(image, np.zeros(1, int)),
            np.array([has_texts]),
            weight=0.5,
            logit_scale=SCALE,
        )
        assert np.isfinite(fitted(np.full((2, 1), 0.2), np.tile(image, (2, 1)))).all()
