"""Methods that look at captions of other images, against plain loops over the formulas."""

import math

import numpy as np
import pytest

from grain_jax.zero_shot import by_captions
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Images
from grain_jax.zero_shot.scorers import make_class_texts, text_bank

CLASSES, WIDTH, SCALE = ("owl", "wren", "jay"), 5, 10.0


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def encode(texts: list[str]) -> np.ndarray:
    seeds = [[*text.encode()] for text in texts]
    return unit(np.stack([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds]))


def banks() -> ClassBanks:
    texts = make_class_texts(CLASSES, templates=("a {}",), descriptions={})
    return ClassBanks(texts, {"names": text_bank(encode, texts.names)}, logit_scale=SCALE)


def unseen() -> np.ndarray:
    raise AssertionError("no method here looks at the images of a bank")


def captions(count: int) -> CaptionBank:
    names = tuple(f"caption {i}" for i in range(count))
    text = encode(list(names))
    return CaptionBank(names, text, unseen, lambda more: encode(list(more)))


def some_images(count: int = 6) -> np.ndarray:
    return unit(np.random.default_rng(9).normal(size=(count, WIDTH)))


def probabilities(vector: np.ndarray) -> list[float]:
    logits = [SCALE * float(vector @ encode([f"a {name}"])[0]) for name in CLASSES]
    powers = [math.exp(logit) for logit in logits]
    return [power / sum(powers) for power in powers]


def centroid(x: np.ndarray, bank: CaptionBank, count: int) -> np.ndarray:
    ranked = sorted(range(len(bank.text)), key=lambda i: -float(x @ bank.text[i]))
    mean = sum(bank.text[i].astype(float) for i in ranked[:count])
    return mean / math.sqrt(float(mean @ mean))


@pytest.mark.parametrize("count", [40, 8])  # more and fewer captions than are retrieved
def test_x_more_weighs_the_image_and_its_captions_by_their_confidence(count):
    bank, expected = captions(count), []
    for x in some_images().astype(float):
        both = [probabilities(x), probabilities(centroid(x, bank, 16))]
        weights = [1 + sum(p * math.log(p) for p in one) / math.log(3) for one in both]
        weights = [weight / sum(weights) for weight in weights]
        expected.append([weights[0] * both[0][k] + weights[1] * both[1][k] for k in range(3)])
    found = by_captions.by_x_more(banks(), bank=bank)(Images(some_images()), None)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_x_more_weighs_both_alike_where_neither_says_anything():
    """Names that are all the same: the uniform distribution has no confidence."""
    texts = make_class_texts(CLASSES, templates=("a {}",), descriptions={})
    same = text_bank(lambda names: encode(["a owl"] * len(names)), texts.names)
    found = by_captions.by_x_more(ClassBanks(texts, {"names": same}), bank=captions(20))
    np.testing.assert_allclose(found(Images(some_images()), None), 1 / 3, atol=1e-6)


def test_cased_mixes_the_image_with_the_captions_nearest_to_it():
    bank, expected = captions(40), []
    for x in some_images().astype(float):
        by_image, by_caption = probabilities(x), probabilities(centroid(x, bank, 10))
        expected.append([0.7 * by_image[k] + 0.3 * by_caption[k] for k in range(3)])
    found = by_captions.by_cased(banks(), bank=bank)(Images(some_images()), None)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_captions_are_retrieved_block_by_block(monkeypatch):
    bank, image = captions(40), some_images(12)
    whole = by_captions.caption_centroids(Images(image), bank, 4)
    monkeypatch.setattr("grain_jax.zero_shot.unlabeled.BLOCK_CELLS", 75)  # 5 images, 15 captions
    monkeypatch.setattr("grain_jax.zero_shot.neighbours.KEY_BLOCK", 15)
    found = by_captions.caption_centroids(Images(image), bank, 4)
    np.testing.assert_allclose(found, whole, atol=1e-6)
