"""Scores do not depend on the sizes of blocks, none of which divides the counts here."""

from collections.abc import Sequence

import numpy as np
import pytest

from grain_jax.data.image_variants import VARIANTS
from grain_jax.zero_shot.arithmetic import best_columns
from grain_jax.zero_shot.method import CaptionBank, Images, Support
from grain_jax.zero_shot.methods import METHODS, FittedMethods, encode_banks
from grain_jax.zero_shot.scorers import make_class_texts

CLASSES, IMAGES, WIDTH, SHOTS = 13, 45, 8, 5
WITHOUT_BLOCKS = {"icis", "head"}  # which train on all classes, and on batches
NAMES = tuple(f"class {k}" for k in range(CLASSES))
# What is held of each, in numbers of the arrays below; 13 classes and 45 images are no multiples.
SMALL = {
    "unlabeled.BLOCK_CELLS": 7 * CLASSES,
    "neighbours.KEY_BLOCK": 17,
    "propagation.BLOCK_CELLS": 4 * (CLASSES + IMAGES),
    "propagation.COLUMN_BLOCK": 5,
    "arithmetic.MAX_CELLS": 1000,
    "scorers.MAX_CELLS": 1000,
    "by_adapter.MAX_CELLS": 400,
    "label_sets.MAX_CELLS": 11 * WIDTH,
}


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def encode(texts: Sequence[str], *, kind: str = "caption") -> np.ndarray:
    seeds = [[len(kind), *text.encode()] for text in texts]
    return unit(np.stack([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds]))


def texts_of_every_kind():
    others = {name: NAMES[k + 1 : k + 5] for k, name in enumerate(NAMES)}
    return make_class_texts(
        NAMES,
        templates=("a {}", "the {}", "one {}"),
        descriptions={name: [f"{name} a", f"{name} b"] for name in NAMES},
        further={
            kind: {
                name: [f"{name} {kind} {i}" for i in range(1 + k % 3)]
                for k, name in enumerate(NAMES)
            }
            for kind in ("cupl", "subclasses", "synonyms")
        },
        shared={"reject": [["on land", "on water"]]},
        pairs={
            name: {other: [f"{name} not {other} {i}" for i in range(1 + k % 2)] for other in rest}
            for k, (name, rest) in enumerate(others.items())
            if rest
        },
    )


def scores_of(name: str) -> dict:
    texts, rng = texts_of_every_kind(), np.random.default_rng(3)
    without = 3 if "classes_without_images" in METHODS[name].needs else 0
    labels = np.repeat(np.arange(CLASSES - without), SHOTS)
    shown, captioned = unit(rng.normal(size=(2, len(labels), WIDTH)))
    support = Support(shown, labels, captioned)
    captions = tuple(f"caption {i}" for i in range(53))
    shown_with = unit(rng.normal(size=(len(captions), WIDTH)))
    bank = CaptionBank(captions, encode(captions), lambda: shown_with, encode)
    image, regions = (
        unit(rng.normal(size=(IMAGES, WIDTH))),
        unit(rng.normal(size=(IMAGES, 3, WIDTH))),
    )
    variants = {
        kind: unit(rng.normal(size=(IMAGES, one.count(num_boxes=3), WIDTH)))
        for kind, one in VARIANTS.items()
    }
    images = Images(image, regions, variants)
    fitted = FittedMethods(
        encode_banks(encode, texts, methods=(name,), has_regions=True),
        methods=(name,),
        alphas=(0.5,),
        has_regions=True,
        bank=bank,
        support=support,
        unlabeled=images,
        variants=VARIANTS,
    )
    return fitted(images)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in WITHOUT_BLOCKS])
def test_scores_are_those_of_one_block(name, monkeypatch):
    whole = scores_of(name)
    for constant, size in SMALL.items():
        monkeypatch.setattr(f"grain_jax.zero_shot.{constant}", size)
    found = scores_of(name)
    assert found.keys() == whole.keys()
    assert found
    for key, values in whole.items():
        np.testing.assert_allclose(found[key], values, atol=2e-5)


@pytest.mark.parametrize("count", [1, 4, 9, 12])
def test_best_columns_are_those_of_a_stable_sort(count):
    """Few different values, so that rows tie for the last place too."""
    values = np.random.default_rng(0).integers(4, size=(50, 9)).astype(np.float32)
    expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(best_columns(values, count), expected)
