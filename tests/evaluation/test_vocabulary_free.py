"""Answers without a list of classes, against plain loops over the published formulas."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_banks import encode, random_images
from toy_encoder import toy_encoder

from grain_jax.evaluation.caption_candidates import CANDIDATES, candidates_of, singular
from grain_jax.evaluation.vocabulary_free import (
    Searched,
    answer_images,
    cluster_accuracy,
    example_table,
    free_table,
    score_answers,
    word_iou,
)
from grain_jax.zero_shot.by_captions import caption_centroids
from grain_jax.zero_shot.method import CaptionBank

CAPTIONS = tuple(
    f"A {colour} {thing} sits on a {place}."
    for colour, thing, place in itertools.product(
        ("blue", "grey"), ("jay", "owl", "great tit"), ("branch", "rock", "fence", "roof")
    )
)
NAMES = ("blue jay", "owl", "tit")


@pytest.fixture
def encoder(monkeypatch):
    """Random embeddings of texts and a logit scale of 10."""
    made = toy_encoder()
    monkeypatch.setattr(made, "texts", lambda texts, *, kind: encode(list(texts), kind=kind))
    return made


def unseen() -> np.ndarray:
    raise AssertionError("no method here looks at the images of a bank")


def bank() -> CaptionBank:
    text = encode(CAPTIONS, kind="caption")
    return CaptionBank(CAPTIONS, text, unseen, lambda texts: encode(texts, kind="caption"))


def answered(encoder, **options) -> Searched:
    return answer_images(encoder, random_images(6).image, bank(), **options)


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit) for logit in logits]
    return [power / sum(powers) for power in powers]


def by_hand(encoder, x: np.ndarray, count: int, weight: float, kind: str, prompt: str):
    """(probability, candidate) of an image, the best last."""
    text = bank().text
    ranked = sorted(range(len(CAPTIONS)), key=lambda i: -float(x @ text[i]))[:count]
    mean = sum(text[i].astype(float) for i in ranked)
    mean = mean / math.sqrt(float(mean @ mean))
    texts = candidates_of([CAPTIONS[i] for i in ranked], kind)
    vectors = [encode([prompt.replace("{}", t)], kind="caption")[0].astype(float) for t in texts]
    both = [softmax([encoder.logit_scale * float(v @ w) for w in vectors]) for v in (x, mean)]
    mixed = [(1 - weight) * p + weight * q for p, q in zip(*both, strict=True)]
    return sorted(zip(mixed, texts, strict=True))


@pytest.mark.parametrize(("count", "kind", "prompt"), [(10, "words", "{}"), (5, "phrases", "a {}")])
def test_answers_are_of_the_mixed_softmaxes_over_own_candidates(encoder, count, kind, prompt):
    found = answered(encoder, num_captions=count, candidates=kind, prompt=prompt)
    for method, weight in (("cased", 0.3), ("cased_image", 0.0), ("cased_captions", 1.0)):
        for row, x in enumerate(random_images(6).image.astype(float)):
            expected = by_hand(encoder, x, count, weight, kind, prompt)
            best = found.by_method[method].best[row]
            assert found.by_method[method].answers[row] == best[0][0] == expected[-1][1]
            probabilities = [probability for _, probability in best]
            top = [probability for probability, _ in expected[: -len(best) - 1 : -1]]
            np.testing.assert_allclose(probabilities, top, rtol=1e-4)
    answers = {name: one.answers for name, one in found.by_method.items()}
    assert len(set(answers.values())) > 1  # the weight matters here


def test_the_centroid_of_captions_is_the_mean_of_the_nearest():
    images = random_images(9)
    nearest = np.argsort(-(images.image @ bank().text.T), axis=1, kind="stable")[:, :7]
    mean = bank().text[nearest].astype(float).mean(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(caption_centroids(images, bank(), 7), mean, atol=1e-6)


def test_what_is_left_out_is_left_out_in_the_plural_too():
    captions = ["The dog opens its mouth", "a cat licks its tail", "an owl spreads its wings"]
    assert {"dog", "mouth", "cat", "tail", "owl", "wing"} <= set(candidates_of(captions))
    for kind in CANDIDATES:
        assert "it" not in " ".join(candidates_of(captions, kind)).split()
    assert candidates_of(["a photo of ones", "the photos of gas", "gas"]) == ["gas"]


def test_a_word_that_one_caption_says_twice_is_in_one_caption():
    assert candidates_of(["a red kite on a red roof", "a dog on a roof"]) == ["roof"]
    assert candidates_of(["a dog and another dog", "a cat"]) == ["dog", "cat"]
    phrases = ["a red kite, the red kite", "a blue owl", "the blue owl"]
    assert candidates_of(phrases, "phrases") == ["blue owl"]


def test_candidates_are_words_that_several_captions_have():
    captions = ["Two dogs on the grass", "A dog, photo.jpg", "the red ball of a dog", "a Red fox"]
    assert candidates_of(captions) == ["dog", "red"]
    assert candidates_of(["a dog on the grass"]) == ["dog", "grass"]  # nothing is there twice
    assert candidates_of(["running quickly", "", "an image of it"]) == ["object"]
    phrases = ["two blue jays on a branch", "The blue jay", "a jay"]
    assert candidates_of(phrases, "phrases") == ["blue jay"]
    assert candidates_of(phrases, "words") == ["blue", "jay"]
    hyphenated = ["a black-footed gull", "a black-footed gull"]
    assert candidates_of(hyphenated) == ["black", "footed", "gull"]
    assert candidates_of(hyphenated, "phrases") == ["black-footed gull"]
    assert candidates_of(["<PERSON> with a cat https://a.b/cat", "<PERSON> and a cat"]) == ["cat"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *[("owls", "owl"), ("boxes", "box"), ("horses", "horse"), ("branches", "branch")],
        *[("grass", "grass"), ("bus", "bus"), ("berries", "berries"), ("gas", "gas")],
    ],
)
def test_plurals_lose_their_ending_where_it_is_certain(word, expected):
    assert singular(word) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), min_size=1, max_size=12))
def test_cluster_accuracy_is_the_best_of_all_assignments(pairs):
    answers = [answer for answer, _ in pairs]
    labels = np.array([label for _, label in pairs])
    tried = [
        sum(places["abcd".index(answer)] == label for answer, label in pairs)
        for places in itertools.permutations(range(4))
    ]
    assert cluster_accuracy(answers, labels) == pytest.approx(max(tried) / len(pairs))


def test_word_iou_is_of_different_words():
    assert word_iou("Blue jay", "blue jay") == 1.0
    assert word_iou("jay", "blue jay") == 0.5
    assert word_iou("jay jay", "owl") == 0.0
    assert word_iou("black-footed gull", "Black-Footed Gull!") == 1.0
    assert word_iou("black-footed gull", "black gull") == pytest.approx(1 / 3)


def test_metrics_against_loops(encoder):
    searched, labels = answered(encoder), np.array([0, 1, 2, 0, 1, 2])
    results = score_answers(encoder, "birds", searched, labels, NAMES)
    found = {(r.method, r.metric): r for r in results}
    for method, one in searched.by_method.items():
        truth = [NAMES[label] for label in labels]
        pairs = list(zip(one.answers, truth, strict=True))
        iou = [len({*a.split()} & {*b.split()}) / len({*a.split(), *b.split()}) for a, b in pairs]
        cosine = [float(np.prod(encode(pair, kind="caption"), axis=0).sum()) for pair in pairs]
        assert found[method, "semantic_iou"].value == pytest.approx(np.mean(iou))
        similarity = found[method, "own_encoder_similarity"]
        assert similarity.value == pytest.approx(np.mean(cosine), abs=1e-6)
        assert similarity.low is not None
        assert similarity.low <= similarity.value
        assert found[method, "distinct_answers"].value == len(set(one.answers))
        assert found[method, "cluster_accuracy"].low is None
    table = free_table(results)
    titles = ["cased", "cased_image: by the image alone", "cased_captions: by its captions alone"]
    assert [row[1] for row in table.rows] == titles
    assert f"{100 * found['cased', 'cluster_accuracy'].value:.1f}" == table.rows[0][2]
    examples = example_table(searched, labels, NAMES, [f"{i}.png" for i in range(6)])
    assert len(examples.rows) == 6
    assert examples.rows[2][:2] == ("2.png", "tit")
    assert examples.rows[2][2].startswith(searched.by_method["cased"].answers[2])
