import itertools

import numpy as np
import pytest
import scipy.stats

from grain_jax.boxes import cxcywh_to_xyxy, pairwise_iou
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.transforms import Preprocessing
from grain_jax.evaluation.annotations import Annotations, read_annotations
from grain_jax.evaluation.baselines import (
    best_single_box,
    constant_boxes,
    fit_constant_boxes,
    score_constant_boxes,
)
from grain_jax.evaluation.grounding import (
    Phrase,
    box_scores,
    chosen_queries,
    matched_iou,
    phrase_hits,
)
from grain_jax.results import logged


def random_boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    corners = np.sort(generator.uniform(size=(count, 2, 2)), axis=1)
    return corners.reshape(count, 4).astype(np.float32)


def iou_of(a, b) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def test_box_formats():
    xyxy = cxcywh_to_xyxy(np.array([[0.5, 0.4, 0.2, 0.6]], np.float32))
    np.testing.assert_allclose(xyxy, [[0.4, 0.1, 0.6, 0.7]], rtol=1e-6)


def test_iou_against_loops_and_on_empty_boxes():
    generator = np.random.default_rng(0)
    first, second = random_boxes(generator, 6), random_boxes(generator, 5)
    iou = pairwise_iou(first, second)
    for i, j in itertools.product(range(6), range(5)):
        assert iou[i, j] == pytest.approx(iou_of(first[i], second[j]), abs=1e-5)
    empty = np.zeros((1, 4), np.float32)
    assert pairwise_iou(empty, empty).tolist() == [[0.0]]


@pytest.mark.parametrize(("queries", "boxes"), [(4, 3), (3, 4), (1, 1), (3, 3)])
def test_matching_is_the_best_of_all_assignments(queries, boxes):
    generator = np.random.default_rng(queries * 10 + boxes)
    for _ in range(20):
        predicted, true = random_boxes(generator, queries), random_boxes(generator, boxes)
        iou = pairwise_iou(predicted, true)
        slots = [*range(queries), *[None] * max(0, boxes - queries)]
        best = max(
            sum(0.0 if q is None else iou[q, b] for b, q in enumerate(order))
            for order in itertools.permutations(slots, boxes)
        )
        matched = matched_iou(predicted, true)
        assert matched.shape == (boxes,)
        assert matched.sum() == pytest.approx(best, abs=1e-6)


def test_scores_by_hand():
    whole, left = [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]
    top = [0.0, 0.0, 1.0, 0.25]
    predicted = np.array([[whole], [left]], np.float32)
    true = [np.array([left, top], np.float32), np.zeros((0, 4), np.float32)]
    scores = box_scores(predicted, true)  # one query for two boxes: the better one counts
    assert scores.iou == pytest.approx(0.25)
    assert scores.recall == pytest.approx(0.5)
    assert scores.upper_bound == pytest.approx(0.5)
    assert scores.count == 2
    with pytest.raises(ValueError, match="true box"):
        box_scores(predicted, [np.zeros((0, 4), np.float32)] * 2)


def test_a_phrase_picks_its_most_similar_query_and_any_of_its_boxes_will_do():
    left, right = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
    regions = np.eye(2, dtype=np.float32)[None].repeat(2, axis=0)  # 2 images, query q shows axis q
    phrases = [
        Phrase(1, "right half", np.array([right], np.float32)),
        Phrase(0, "halves", np.array([left, right], np.float32)),
        Phrase(0, "left half", np.array([left], np.float32)),
    ]
    embed = np.array([[0.0, 1.0], [0.1, 0.9], [0.2, 0.8]], np.float32)
    chosen = chosen_queries(regions, embed, phrases)
    assert chosen.tolist() == [1, 1, 1]
    boxes = np.array([left, right], np.float32)
    assert phrase_hits(boxes[chosen], phrases).tolist() == [1.0, 1.0, 0.0]


def test_the_intervals_of_boxes_are_those_of_drawing_images():
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 6, 120)  # of some images no box at all
    true = [random_boxes(generator, count) for count in counts]
    predicted = np.stack([random_boxes(generator, 4) for _ in counts])
    for own, boxes in zip(predicted, true, strict=True):  # of some images all are found
        if generator.random() < 0.3:
            own[: len(boxes)] = boxes[:4]
    scores = box_scores(predicted, true)
    assert scores.images.tolist() == np.repeat(np.arange(120), counts).tolist()
    with_boxes = np.flatnonzero(counts)
    found = zip(scores.results("dev", "model"), (scores.matched, scores.found), strict=True)
    for one, values in found:
        of_image = [values[scores.images == image] for image in with_boxes]
        theirs = scipy.stats.bootstrap(
            (np.arange(len(of_image)),),
            lambda drawn, of=of_image: np.concatenate([of[i] for i in drawn]).mean(),
            vectorized=False,
            method="percentile",
            n_resamples=3_000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        width = float(theirs.high - theirs.low)
        assert (one.value, one.n) == (float(values.mean()), counts.sum())
        assert (one.low, one.high) == pytest.approx((theirs.low, theirs.high), abs=0.08 * width)
    without = scores.results("dev", "model", intervals=False)
    assert {(r.low, r.high) for r in without} == {(None, None)}


def annotations(boxes: list[np.ndarray], texts: tuple[str, ...]) -> Annotations:
    phrases = [
        Phrase(i, text, own[j : j + 1])
        for i, own in enumerate(boxes)
        for j, text in enumerate(texts)
    ]
    return Annotations([[] for _ in boxes], boxes, phrases)


def jittered_parts(seed: int, num_images: int) -> Annotations:
    """Two parts that sit at the same place in every image, up to a little noise."""
    generator = np.random.default_rng(seed)
    places = np.array([[0.1, 0.1, 0.3, 0.3], [0.4, 0.5, 0.9, 0.9]], np.float32)
    noise = generator.normal(0, 0.01, (num_images, 2, 4)).astype(np.float32)
    return annotations(list(places + noise), ("a red crest", "a big wing"))


def test_constant_boxes_find_where_things_always_are():
    training = jittered_parts(0, 30)
    boxes = constant_boxes(training.boxes, 2)
    ordered = boxes[boxes[:, 0].argsort()]
    np.testing.assert_allclose(
        ordered, [[0.1, 0.1, 0.3, 0.3], [0.4, 0.5, 0.9, 0.9]], atol=0.01, rtol=0
    )
    with pytest.raises(ValueError, match="training box"):
        constant_boxes([np.zeros((0, 4), np.float32)], 2)


def test_constant_boxes_beat_random_ones_on_images_they_were_not_fitted_to():
    generator = np.random.default_rng(3)
    training, test = ([random_boxes(generator, 4) for _ in range(40)] for _ in range(2))
    fitted = constant_boxes(training, 3)
    own = np.concatenate([matched_iou(fitted, b) for b in test]).mean()
    for _ in range(20):
        other = random_boxes(generator, 3)
        assert own > np.concatenate([matched_iou(other, b) for b in test]).mean()


def test_the_part_baseline_answers_phrases_that_no_single_box_can():
    def part_of(text: str) -> str | None:
        return next((part for part in ("crest", "wing") if part in text), None)

    baseline = fit_constant_boxes(jittered_parts(0, 30), 2, part_of=part_of)
    assert set(baseline.parts) == {"crest", "wing"}
    scores = logged(score_constant_boxes(baseline, jittered_parts(1, 30), "test"))
    assert scores["test/constant_box_recall"] == 1.0
    assert scores["test/constant_phrase_accuracy"] == 0.5
    assert scores["test/part_phrase_accuracy"] == 1.0
    assert scores["test/part_box_iou"] > 0.8


def test_best_single_box_is_the_most_useful_one():
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]], np.float32)
    phrases = [Phrase(i, "x", boxes[[1]]) for i in range(3)] + [Phrase(3, "x", boxes[[0]])]
    assert best_single_box(boxes, phrases).tolist() == boxes[1].tolist()


class Records:
    def __init__(self, *records: Record):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Record:
        return self.records[index]


def test_annotations_join_paraphrases_and_choose_captions():
    box, other = (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)
    record = Record(
        id="a",
        image=np.zeros((8, 8, 3), np.uint8),
        captions=(Caption("web"), Caption("written", "synthetic")),
        regions=(Region(box, "A dog"), Region(box, "the puppy"), Region(other, "a  dog")),
    )
    plain = Record(id="b", image=np.zeros((8, 8, 3), np.uint8), captions=(Caption("web"),))
    truth = read_annotations(
        Records(record, plain), Preprocessing(image_size=8), caption_source="synthetic"
    )
    assert truth.captions == [["written"], ["web"]]
    assert [len(boxes) for boxes in truth.boxes] == [2, 0]
    assert truth.boxes[0].tolist() == [[0.0, 0.0, 1.0, 0.5], [0.0, 0.5, 1.0, 1.0]]  # xyxy
    assert [(p.text, len(p.boxes)) for p in truth.phrases] == [("A dog", 2), ("the puppy", 1)]


def test_boxes_are_seen_through_the_centre_crop():
    wide = Record(
        id="wide",
        image=np.zeros((10, 20, 3), np.uint8),  # the crop keeps x from 0.25 to 0.75
        regions=(Region((0.25, 0.0, 0.5, 1.0), "left"), Region((0.0, 0.0, 0.2, 1.0), "outside")),
    )
    truth = read_annotations(
        Records(wide), Preprocessing(image_size=8, resize="crop"), caption_source="original"
    )
    np.testing.assert_allclose(truth.boxes[0], [[0.0, 0.0, 0.5, 1.0]], atol=1e-6)
    assert [phrase.text for phrase in truth.phrases] == ["left"]
