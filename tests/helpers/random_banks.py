"""Class texts with random embeddings, and images, for tests of zero-shot methods."""

from collections.abc import Sequence

import numpy as np

from grain_jax.zero_shot.method import ClassBanks, Images
from grain_jax.zero_shot.methods import METHODS, encode_banks
from grain_jax.zero_shot.scorers import make_class_texts

WIDTH = 8


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def embedding(text: str, kind: str = "caption") -> np.ndarray:
    """A direction of its own for each text of each kind."""
    return unit(np.random.default_rng([len(kind), *text.encode()]).normal(size=WIDTH))


def encode(texts: Sequence[str], *, kind: str) -> np.ndarray:
    return np.stack([embedding(text, kind) for text in texts])


def random_images(count: int = 6, *, seed: int = 0) -> Images:
    rng = np.random.default_rng(seed)
    return Images(unit(rng.normal(size=(count, WIDTH))), unit(rng.normal(size=(count, 4, WIDTH))))


def banks_of(method: str, names: Sequence[str], *, logit_scale: float = 5.0, **texts) -> ClassBanks:
    """What the method compares images with, for classes with these texts."""
    made = make_class_texts(
        names, **({"templates": ("a {}.", "the {}", "one {}"), "descriptions": {}} | texts)
    )
    return encode_banks(encode, made, methods=(method,), has_regions=True, logit_scale=logit_scale)


def scores_of(
    method: str, names: Sequence[str], images: Images, alpha: float | None = None, **texts
) -> np.ndarray:
    return METHODS[method].fit(banks_of(method, names, **texts))(images, alpha)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of a vector, in float64."""
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum())
