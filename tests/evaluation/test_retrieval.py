import numpy as np
import pytest
import scipy.stats

from grain_jax.evaluation.ranking import wilson_interval
from grain_jax.evaluation.retrieval import KS, retrieval, unique_texts


def unit(values) -> np.ndarray:
    values = np.asarray(values, np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def by_loops(image, text, text_rows, image_rows) -> dict[str, float]:
    """The rule spelled out, for data without ties."""
    results = {}
    pairs = set(zip(text_rows.tolist(), image_rows.tolist(), strict=True))
    for k in KS:
        hits = []
        for n in range(len(image)):
            order = sorted(range(len(text)), key=lambda t: -float(image[n] @ text[t]))
            hits.append(any((t, n) in pairs for t in order[:k]))
        results[f"image_to_text/R@{k}"] = np.mean(hits)
        hits = []
        for t in text_rows:
            order = sorted(range(len(image)), key=lambda n: -float(text[t] @ image[n]))
            hits.append(any((t, n) in pairs for n in order[:k]))
        results[f"text_to_image/R@{k}"] = np.mean(hits)
    return results


def recalls(image, text, **rows) -> dict[str, float]:
    """Those of `retrieval` by the end of their keys."""
    results = retrieval(image, text, dataset="a", **rows)
    counts = {"image_to_text": len(image), "text_to_image": len(rows["text_rows"])}
    for result in results:
        assert result.n == (None if "random" in result.metric else counts.get(result.method))
    return {result.key.removeprefix("a/retrieval/"): result.value for result in results}


@pytest.mark.parametrize("seed", range(4))
def test_recall_against_loops_with_shared_and_several_captions(seed, monkeypatch):
    monkeypatch.setattr("grain_jax.evaluation.retrieval.CHUNK_ROWS", 7)
    generator = np.random.default_rng(seed)
    captions = [
        [f"text {generator.integers(40)}" for _ in range(generator.integers(1, 5))]
        for _ in range(30)
    ]
    texts, text_rows, image_rows = unique_texts(captions)
    image, text = unit(generator.normal(size=(30, 6))), unit(generator.normal(size=(len(texts), 6)))
    results = recalls(image, text, text_rows=text_rows, image_rows=image_rows)
    for name, expected in by_loops(image, text, text_rows, image_rows).items():
        assert results[name] == pytest.approx(expected), name
    both = results["image_to_text/R@1"] + results["text_to_image/R@1"]
    assert results["mean_R@1"] == pytest.approx(both / 2)


def test_perfect_embeddings_find_everything():
    image = np.eye(12, dtype=np.float32)
    texts, text_rows, image_rows = unique_texts([[f"a {i}", f"b {i}"] for i in range(12)])
    text = np.eye(12, dtype=np.float32)[[int(t.split()[1]) for t in texts]]
    results = recalls(image, text, text_rows=text_rows, image_rows=image_rows)
    baselines = {name: value for name, value in results.items() if "random" in name}
    assert baselines == {
        "image_to_text/random_R@1": pytest.approx(2 / 24),
        "text_to_image/random_R@1": pytest.approx(1 / 12),
    }
    counted = {"images": 12, "texts": 24}
    assert {name: results.pop(name) for name in counted} == counted
    assert {value for name, value in results.items() if name not in baselines} == {1.0}


def test_random_embeddings_are_at_chance():
    generator = np.random.default_rng(0)
    rows = np.arange(2_000)
    results = recalls(
        unit(generator.normal(size=(2_000, 8))),
        unit(generator.normal(size=(2_000, 8))),
        text_rows=rows,
        image_rows=rows,
    )
    assert results["image_to_text/R@10"] == pytest.approx(10 / 2_000, abs=0.004)
    assert results["text_to_image/R@10"] == pytest.approx(10 / 2_000, abs=0.004)


def test_a_constant_model_is_exactly_at_chance():
    same = np.tile(unit([1.0, 2.0]), (20, 1))
    rows = np.arange(20)
    results = recalls(same, same, text_rows=rows, image_rows=rows)
    for k in KS:
        assert results[f"image_to_text/R@{k}"] == pytest.approx(k / 20)
        assert results[f"text_to_image/R@{k}"] == pytest.approx(k / 20)


def test_chance_is_what_a_constant_model_gets_with_shared_captions():
    captions = [["a", "b"], ["a"], ["c", "c", "d"], ["b", "d", "e"]]
    texts, text_rows, image_rows = unique_texts(captions)
    same = unit([1.0, 2.0])
    results = recalls(
        np.tile(same, (4, 1)),
        np.tile(same, (len(texts), 1)),
        text_rows=text_rows,
        image_rows=image_rows,
    )
    for way in ("image_to_text", "text_to_image"):
        assert results[f"{way}/R@1"] == pytest.approx(results[f"{way}/random_R@1"])


def test_equal_texts_are_one_text_and_right_for_all_their_images():
    texts, text_rows, image_rows = unique_texts([["A  dog"], ["a dog"], ["a cat"]])
    assert texts == ["A  dog", "a cat"]
    assert text_rows.tolist() == [0, 0, 1]
    image = unit([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    text = unit([[1.0, 0.0], [0.0, 1.0]])
    results = recalls(image, text, text_rows=text_rows, image_rows=image_rows)
    assert results["image_to_text/R@1"] == 1.0
    assert results["text_to_image/R@1"] == 1.0  # the dog of image 1 may be found in image 0


def test_images_without_captions_are_refused():
    eye = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="without captions"):
        recalls(eye, eye[:2], text_rows=np.array([0, 1]), image_rows=np.array([0, 1]))


def noisy_pairs(count: int) -> dict[str, np.ndarray]:
    """Images with one to five captions each, some easy to find and some not."""
    generator = np.random.default_rng(5)
    captions = [[f"text {i} {j}" for j in range(generator.integers(1, 6))] for i in range(count)]
    _, text_rows, image_rows = unique_texts(captions)
    image = generator.normal(size=(count, 16))
    noise = generator.uniform(0.5, 2.5, count)[image_rows, None]
    text = image[image_rows] + noise * generator.normal(size=(len(image_rows), 16))
    rows = {"text_rows": text_rows, "image_rows": image_rows}
    return {"image": unit(image), "text": unit(text), **rows}


def test_intervals_are_those_of_drawing_images_with_all_their_captions():
    pairs = noisy_pairs(150)
    found = {(r.method, r.metric): r for r in retrieval(**pairs, dataset="a")}
    image_rows = pairs["image_rows"]
    cosines = pairs["image"] @ pairs["text"].T  # every text is of one image
    own = np.arange(150)[:, None] == image_rows
    best = np.where(own, cosines, -2).max(axis=1, keepdims=True)
    finds_text = {k: (cosines > best).sum(axis=1) < k for k in KS}
    right = cosines[image_rows, np.arange(len(image_rows))]
    finds_image = {k: (cosines > right).sum(axis=0) < k for k in KS}

    def theirs(statistic):
        return scipy.stats.bootstrap(
            (np.arange(150),),
            statistic,
            vectorized=False,
            method="percentile",
            n_resamples=3_000,
            rng=np.random.default_rng(0),
        ).confidence_interval

    def of_captions(k, images):
        return np.concatenate([finds_image[k][image_rows == image] for image in images]).mean()

    expected = {("retrieval", "mean_R@1"): theirs(
        lambda images: (finds_text[1][images].mean() + of_captions(1, images)) / 2
    )}  # fmt: skip
    for k in KS:
        expected["image_to_text", f"R@{k}"] = theirs(lambda i, k=k: finds_text[k][i].mean())
        expected["text_to_image", f"R@{k}"] = theirs(lambda i, k=k: of_captions(k, i))
    for key, interval in expected.items():
        one, width = found[key], interval.high - interval.low
        assert one.low < one.value < one.high
        assert one.low == pytest.approx(interval.low, abs=0.08 * width), key
        assert one.high == pytest.approx(interval.high, abs=0.08 * width), key
    assert {r.metric for r in found.values() if r.low is None} == {
        "random_R@1", "images", "texts"
    }  # fmt: skip


def test_what_all_images_find_is_not_certain():
    rows = np.arange(12)
    eye = np.eye(12, dtype=np.float32)
    results = retrieval(eye, eye, text_rows=rows, image_rows=rows, dataset="a")
    recalled = [r for r in results if r.metric in ("R@1", "R@5", "R@10", "mean_R@1")]
    assert {(r.low, r.high) for r in recalled} == {wilson_interval(1.0, 12)}


def test_intervals_of_training_have_no_bounds():
    results = retrieval(**noisy_pairs(20), dataset="a", intervals=False)
    assert {(r.low, r.high) for r in results} == {(None, None)}
    assert [(r.key, r.value, r.n) for r in results] == [
        (r.key, r.value, r.n) for r in retrieval(**noisy_pairs(20), dataset="a")
    ]
