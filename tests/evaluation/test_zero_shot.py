import math

import numpy as np
import pytest
from toy_encoder import ToySource, bird_set, record, toy_encoder

from grain_jax.data.records import ZeroShotSet
from grain_jax.evaluation.ranking import (
    expected_recall,
    expected_recall_of_labels,
    wilson_interval,
)
from grain_jax.evaluation.tables import result_tables
from grain_jax.evaluation.zero_shot import (
    accuracy,
    answer_distances,
    evaluate_zero_shot,
    subset,
)
from grain_jax.results import Result, from_logged, logged


def test_accuracy_by_hand():
    scores = np.array(
        [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.1, 0.2, 0.3], [0.5, 0.4, 0.1]], np.float32
    )
    measured = accuracy(scores, np.array([0, 0, 2, 1]))
    assert measured.top1 == 0.75
    assert measured.top5 == 1.0
    assert measured.per_class == pytest.approx((1.0 + 0.0 + 1.0) / 3)
    assert measured.top1_interval == wilson_interval(0.75, 4)
    assert measured.top5_interval == wilson_interval(1.0, 4)
    low, high = measured.per_class_interval
    assert low < measured.per_class < high


def test_accuracy_against_sorting(monkeypatch):
    monkeypatch.setattr("grain_jax.evaluation.zero_shot.CHUNK_ROWS", 50)
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(200, 12)).astype(np.float32)
    labels = generator.integers(12, size=200)
    order = (-scores).argsort(axis=1)
    measured = accuracy(scores, labels)
    assert measured.top1 == pytest.approx((order[:, 0] == labels).mean())
    assert measured.top5 == pytest.approx((order[:, :5] == labels[:, None]).any(axis=1).mean())


def test_random_scores_are_at_chance_and_equal_scores_exactly_so():
    generator = np.random.default_rng(0)
    labels = generator.integers(50, size=5_000)
    measured = accuracy(generator.normal(size=(5_000, 50)).astype(np.float32), labels)
    assert measured.top1 == pytest.approx(0.02, abs=0.008)
    assert measured.top5 == pytest.approx(0.1, abs=0.015)
    assert accuracy(np.zeros((40, 50), np.float32), labels[:40]).top1 == pytest.approx(0.02)


def test_a_tie_is_worth_its_expected_value():
    correct = np.array([[False, True, False, True, False]])
    scores = np.array([[3.0, 2.0, 2.0, 2.0, 1.0]])  # one ahead, two right and one wrong tied
    hits = expected_recall(scores, correct, (1, 2, 3))
    assert hits[1][0] == 0.0
    assert hits[2][0] == pytest.approx(2 / 3)  # one place for three, two of them right
    assert hits[3][0] == pytest.approx(1.0)  # two places: one is right for certain
    with pytest.raises(ValueError, match="not finite"):
        expected_recall(np.array([[np.nan, 0.0]]), np.array([[True, False]]), (1,))
    with pytest.raises(ValueError, match="no correct item"):
        expected_recall(np.zeros((1, 2)), np.zeros((1, 2), bool), (1,))


def test_one_correct_item_a_row_is_ranked_as_any_number_is():
    generator = np.random.default_rng(0)
    labels = generator.integers(7, size=300)
    correct = labels[:, None] == np.arange(7)
    for scores in (generator.normal(size=(300, 7)), generator.integers(4, size=(300, 7)) / 4):
        scores = scores.astype(np.float32)
        found = expected_recall_of_labels(scores, labels, (1, 2, 5))
        for k, hits in expected_recall(scores, correct, (1, 2, 5)).items():
            np.testing.assert_array_equal(found[k], hits)
    largest = np.full((2, 7), np.finfo(np.float32).max)  # finite, though their sum is not
    assert expected_recall_of_labels(largest, labels[:2], (1,))[1] == pytest.approx([1 / 7] * 2)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="not finite"):
            expected_recall_of_labels(np.array([[0.0, bad]]), np.array([0]), (1,))
    for bad in (-1, 7):
        with pytest.raises(ValueError, match="but there are 7 items"):
            expected_recall_of_labels(largest, np.array([0, bad]), (1,))


def test_wilson_interval_known_values():
    # Wilson (1927) for 8 of 10, as any table has it.
    low, high = wilson_interval(0.8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
    low, high = wilson_interval(1.0, 20)
    assert high == pytest.approx(1.0)
    assert low > 0.8


def accuracies(*arguments, **options) -> dict[str, float]:
    """Results by their keys."""
    return logged(evaluate_zero_shot(*arguments, **options))


def test_every_accuracy_counts_its_images():
    results = evaluate_zero_shot(toy_encoder(), bird_set(), alphas=(0.0,), details=True)
    (found,) = [r for r in results if (r.method, r.metric) == ("description", "top1")]
    interval = wilson_interval(1.0, 3)
    assert found == Result("birds", "description", 0.0, "top1", 1.0, *interval, n=3)
    for metric in ("top5", "per_class"):
        for one in (r for r in results if r.metric == metric):
            assert one.low < one.high, one.key
            assert one.low <= one.value <= one.high, one.key
    assert {r.n for r in results if r.method not in ("random", "dataset")} == {3}


def test_regions_recognise_what_the_whole_image_does_not():
    results = accuracies(toy_encoder(), bird_set(), alphas=(1.0, 0.5, 0.0))
    assert results["birds/random"] == 0.5
    assert results["birds/name"] == pytest.approx(0.5)  # names mean nothing to the toy: all tied
    assert results["birds/description/alpha1"] == pytest.approx(1 / 3)  # "red" is always a wren
    assert results["birds/description/alpha0"] == 1.0
    assert set(results) == {
        "birds/random",
        "birds/name",
        *(f"birds/description/alpha{alpha}" for alpha in ("1", "0.5", "0")),
        "birds/name_and_regions/alpha0.5",
    }


def test_the_order_of_classes_does_not_matter():
    one = accuracies(toy_encoder(), bird_set(), alphas=(0.5, 0.0), details=True)
    other = accuracies(
        toy_encoder(), bird_set(class_names=("robin", "wren")), alphas=(0.5, 0.0), details=True
    )
    assert one == pytest.approx(other)


def test_a_class_without_descriptions_is_scored_by_its_name():
    described = {"robin": ("green part", "blue part")}
    results = accuracies(
        toy_encoder(), bird_set(descriptions=described), alphas=(1.0, 0.0), details=True
    )
    assert not any(math.isnan(value) for value in results.values())
    assert results["birds/undescribed_classes"] == 1
    assert results["birds/description/alpha0"] == pytest.approx(2 / 3)


def test_accuracies_by_frequency_are_those_of_their_images():
    """By the whole image everything is a wren, by its regions all is right."""
    counts = {"robin": 0, "wren": 9}
    results = evaluate_zero_shot(
        toy_encoder(), bird_set(counts=counts), alphas=(1.0, 0.0), details=True
    )
    found = {r.key: (r.value, r.low, r.high, r.n) for r in results if "_" in r.metric}
    assert found["birds/description/alpha1/top1_unseen"] == (0.0, *wilson_interval(0.0, 2), 2)
    assert found["birds/description/alpha1/top1_rare"] == (1.0, *wilson_interval(1.0, 1), 1)
    assert found["birds/description/alpha0/top1_unseen"] == (1.0, *wilson_interval(1.0, 2), 2)
    assert "birds/description/alpha0/top1_frequent" not in found  # no class is
    kept = {result.key: result.value for result in from_logged(logged(results))}
    assert kept["birds/description/alpha1/top1_unseen"] == 0.0
    (_, table) = result_tables(results)
    assert table.columns == ("set", "method", "unseen", "rare", "frequent")
    assert ("birds (2 classes)", "description, alpha = 0") in {r[:2] for r in table.rows}


def test_the_distance_of_an_answer_is_that_of_the_names():
    generator = np.random.default_rng(0)
    names = generator.normal(size=(5, 3))
    names /= np.linalg.norm(names, axis=1, keepdims=True)
    scores = generator.integers(3, size=(40, 5)).astype(np.float32)  # many ties
    labels = generator.integers(5, size=40)
    found = answer_distances(scores, labels, names)
    for row, label, distance in zip(scores, labels, found, strict=True):
        tied = [k for k in range(5) if row[k] == row.max()]
        expected = np.mean([np.sum((names[k] - names[label]) ** 2) for k in tied])
        assert distance == pytest.approx(expected)


def test_with_loki_every_method_has_the_expected_distance_of_its_answers():
    called = {"robin": "red", "wren": "blue"}  # orthogonal: a mistake is at distance 2
    options = {"alphas": (1.0, 0.0), "details": True}
    results = evaluate_zero_shot(
        toy_encoder(),
        bird_set(name_texts=called),
        methods=("name", "description", "loki"),
        **options,
    )
    values = {r.key: r.value for r in results}
    for key in ("name", "description/alpha1", "description/alpha0", "loki"):
        mistakes = 1 - values[f"birds/{key}"]
        assert values[f"birds/{key}/expected_distance"] == pytest.approx(2 * mistakes)
    assert 0 < values["birds/description/alpha1/expected_distance"] < 2
    kept = {result.key: result.value for result in from_logged(logged(results))}
    assert kept["birds/loki/expected_distance"] == values["birds/loki/expected_distance"]
    without = evaluate_zero_shot(
        toy_encoder(), bird_set(name_texts=called), methods=("name",), **options
    )
    assert not [r for r in without if r.metric == "expected_distance"]


def test_classes_without_a_count_are_in_no_group():
    results = evaluate_zero_shot(
        toy_encoder(), bird_set(counts={"wren": 9}), alphas=(0.0,), details=True
    )
    assert {r.metric for r in results if r.metric.startswith("top1_")} == {"top1_rare"}
    few = evaluate_zero_shot(toy_encoder(), bird_set(counts={"wren": 9}), alphas=(0.0,))
    assert {r.metric for r in few} == {"top1"}  # at intervals of a run


def test_models_and_sets_report_what_they_have():
    clip = accuracies(toy_encoder(regions=False), bird_set(), alphas=(1.0, 0.5, 0.0))
    assert set(clip) == {"birds/random", "birds/name", "birds/description/alpha1"}
    undescribed = accuracies(toy_encoder(), bird_set(descriptions={}), alphas=(1.0, 0.0))
    assert set(undescribed) == {"birds/random", "birds/name"}


def test_labels_must_be_classes():
    with pytest.raises(ValueError, match="'robin', which is none of its 1 classes"):
        evaluate_zero_shot(
            toy_encoder(), bird_set(class_names=("wren",), descriptions={}), alphas=(1.0,)
        )
    with pytest.raises(ValueError, match="Unknown method"):
        evaluate_zero_shot(toy_encoder(), bird_set(), alphas=(1.0,), methods=("guess",))


def labelled_set(counts: dict[str, int]) -> ZeroShotSet:
    """Images of each class, those of all classes in turn as labels.csv may have them."""
    most = max(counts.values())
    labels = [name for i in range(most) for name, count in counts.items() if i < count]
    records = (record(str(i), "red", label=label) for i, label in enumerate(labels))
    return ZeroShotSet("some", ToySource(*records), tuple(counts))


def test_a_subset_keeps_every_class_its_share():
    def kept(dataset: ZeroShotSet, limit: int) -> list[str]:
        chosen = subset(dataset, limit).source
        assert [chosen[i].label for i in range(len(chosen))] == list(chosen.labels)
        ids = [chosen[i].id for i in range(len(chosen))]
        assert len(set(ids)) == limit
        assert ids == [subset(dataset, limit).source[i].id for i in range(limit)]
        return sorted(chosen.labels)

    balanced = labelled_set({"a": 8, "b": 8, "c": 8})
    assert kept(balanced, 6) == ["a", "a", "b", "b", "c", "c"]
    assert kept(balanced, 3) == ["a", "b", "c"]
    assert kept(balanced, 2) == ["a", "c"]  # of all three classes, which stay in the running
    assert subset(balanced, 2).class_names == ("a", "b", "c")
    assert kept(labelled_set({"a": 2, "b": 8}), 5) == ["a", "b", "b", "b", "b"]
    assert subset(balanced, 24) is balanced


def test_scores_are_looked_at_in_blocks(monkeypatch):
    whole = accuracies(toy_encoder(), bird_set(), alphas=(0.5, 0.0), details=True)
    monkeypatch.setattr("grain_jax.evaluation.zero_shot.MAX_SCORES", 4)  # two images of two classes
    seen: list[tuple[str, int, int]] = []

    def note(method, alpha, start, scores, labels):
        assert scores.shape == (len(labels), 2)
        seen.append((method, start, len(labels)))

    blocks = accuracies(toy_encoder(), bird_set(), alphas=(0.5, 0.0), details=True, on_scores=note)
    assert blocks == pytest.approx(whole)
    assert [(start, count) for method, start, count in seen if method == "name"] == [(0, 2), (2, 1)]
