"""CHiLS, FuDD, Loki and ConSE against loops over the published formulas, in float64."""

import numpy as np
import pytest
from random_banks import banks_of, embedding, log_softmax, random_images, scores_of

from grain_jax.zero_shot.methods import METHODS

TEMPLATES = ("a {}.", "the {}", "one {}")
NAMES = ("owl", "wren", "jay", "finch")


def named(name: str) -> np.ndarray:
    mean = np.mean([embedding(t.format(name)) for t in TEMPLATES], axis=0, dtype=np.float64)
    return mean / np.linalg.norm(mean)


SUBCLASSES = {"owl": ["barn", "Eagle Owl", "owl"], "wren": ["house"], "jay": ["blue", "green"]}


def test_chils_multiplies_the_class_with_its_best_subclass():
    images = random_images()
    found = scores_of("chils", NAMES, images, further={"subclasses": SUBCLASSES})
    every = {
        "owl": ["owl", "barn owl", "Eagle Owl"],
        "wren": ["wren", "house wren"],
        "jay": ["jay", "blue jay", "green jay"],
        "finch": ["finch"],
    }
    flat = [(parent, one) for parent, subclasses in every.items() for one in subclasses]
    for image, scores in zip(images.image.astype(np.float64), found, strict=True):
        of_class = log_softmax(np.array([5.0 * image @ named(name) for name in NAMES]))
        of_subclass = log_softmax(np.array([5.0 * image @ named(one) for _, one in flat]))
        product = [
            of_subclass[s] + of_class[NAMES.index(parent)] for s, (parent, _) in enumerate(flat)
        ]
        for k, name in enumerate(NAMES):
            own = [product[s] for s, (parent, _) in enumerate(flat) if parent == name]
            np.testing.assert_allclose(scores[k], max(own), atol=1e-5)
        assert NAMES[scores.argmax()] == flat[int(np.argmax(product))][0]


def test_chils_with_classes_as_their_own_subclasses_ranks_as_clip():
    images = random_images()
    found = scores_of("chils", NAMES, images, further={"subclasses": {"owl": ["owl"]}})
    by_name = images.image @ np.stack([named(name) for name in NAMES]).T
    np.testing.assert_array_equal(found.argsort(axis=1), by_name.argsort(axis=1))


def all_pairs(names) -> dict[str, dict[str, list[str]]]:
    """One to three texts for each pair, none for the first class against the last."""
    return {
        one: {
            other: [f"{one} not {other} {i}" for i in range(1 + (a + b) % 3)]
            for b, other in enumerate(names)
            if a != b and (a, b) != (0, len(names) - 1)
        }
        for a, one in enumerate(names)
    }


@pytest.mark.parametrize("num_classes", [4, 13])
def test_fudd_tells_the_nearest_classes_apart(num_classes):
    names = [f"bird {k}" for k in range(num_classes)]
    pairs, images = all_pairs(names), random_images(9)
    found = scores_of("fudd", names, images, pairs=pairs)
    for image, scores in zip(images.image.astype(np.float64), found, strict=True):
        by_name = np.array([image @ named(name) for name in names])
        nearest = sorted(range(num_classes), key=lambda k: -by_name[k])[:10]
        expected = {}
        for k in nearest:
            texts = [
                embedding(text)
                for other in nearest
                if other != k
                for text in pairs[names[k]].get(names[other], ())
            ]
            mean = np.mean(texts, axis=0, dtype=np.float64)
            expected[k] = image @ mean / np.linalg.norm(mean)
        np.testing.assert_allclose(
            [scores[k] for k in nearest], [expected[k] for k in nearest], atol=1e-5
        )
        rest = [k for k in range(num_classes) if k not in nearest]
        assert all(scores[k] < min(expected.values()) for k in rest)
        np.testing.assert_array_equal(
            sorted(rest, key=lambda k: -scores[k]), sorted(rest, key=lambda k: -by_name[k])
        )


@pytest.mark.parametrize("num_classes", [4, 13])
def test_fudd_compares_a_class_without_pairs_by_name(num_classes):
    names = [f"bird {k}" for k in range(num_classes)]
    pairs, images = {"bird 1": {"bird 2": ["big"]}}, random_images(9)
    found = scores_of("fudd", names, images, pairs=pairs)
    by_name = images.image @ np.stack([named(name) for name in names]).T
    near = found > -1.5  # candidates
    assert near.sum(axis=1).tolist() == [min(10, num_classes)] * 9
    other = near & (np.arange(num_classes) != 1)
    np.testing.assert_allclose(found[other], by_name[other], atol=1e-6)


def test_loki_minimises_the_expected_squared_distance():
    images = random_images()
    found = scores_of("loki", NAMES, images)
    labels = np.stack([named(name) for name in NAMES])
    for image, scores in zip(images.image.astype(np.float64), found, strict=True):
        probability = np.exp(log_softmax(5.0 * labels @ image))
        for c in range(len(NAMES)):
            expected = sum(
                probability[k] * np.sum((labels[k] - labels[c]) ** 2) for k in range(len(NAMES))
            )
            np.testing.assert_allclose(scores[c], -expected, atol=1e-5)


def test_loki_of_a_sure_model_is_clip():
    images = random_images()
    banks = banks_of("loki", NAMES, logit_scale=1000.0)
    found = METHODS["loki"].fit(banks)(images, None)
    by_name = images.image @ np.stack([named(name) for name in NAMES]).T
    np.testing.assert_array_equal(found.argmax(axis=1), by_name.argmax(axis=1))


def test_conse_combines_the_ten_most_probable_names():
    names = [f"bird {k}" for k in range(13)]
    images = random_images()
    found = scores_of("conse", names, images)
    labels = np.stack([named(name) for name in names])
    for image, scores in zip(images.image.astype(np.float64), found, strict=True):
        probability = np.exp(log_softmax(5.0 * labels @ image))
        top = sorted(range(13), key=lambda k: -probability[k])[:10]
        mean = sum(probability[k] * labels[k] for k in top)
        expected = [mean @ label / np.linalg.norm(mean) for label in labels]
        np.testing.assert_allclose(scores, expected, atol=1e-5)
