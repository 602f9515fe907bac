"""Images of classes that are clusters, and class texts that point near them: for tests of methods
that learn from images without labels.
"""

from dataclasses import dataclass

import numpy as np

from grain_jax.zero_shot.method import ClassBanks, Images
from grain_jax.zero_shot.scorers import TextBank, make_class_texts


@dataclass(frozen=True)
class Clusters:
    banks: ClassBanks
    images: Images
    labels: np.ndarray

    @property
    def vectors(self) -> np.ndarray:
        """u(mean text) of each class, in float64."""
        bank = self.banks["names"]
        return unit64(np.stack([bank.embed[rows].mean(axis=0) for rows in bank.members]))


def unit64(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def make_clusters(
    *,
    num_classes: int = 6,
    per_class: int = 20,
    width: int = 16,
    spread: float = 0.35,
    text_error: float = 0.8,
    templates: int = 3,
    scale: float = 20.0,
    seed: int = 1,
) -> Clusters:
    """Clusters of images of spread `spread`; texts away from their centres by `text_error`, and all
    of them by the gap between texts and images, which also have a direction in common.
    """
    rng = np.random.default_rng(seed)
    centres = unit64(rng.normal(size=(num_classes, width)))
    gap, common = unit64(rng.normal(size=(2, width)))
    labels = rng.permutation(np.repeat(np.arange(num_classes), per_class))
    noise = rng.normal(size=(len(labels), width)) / np.sqrt(width)
    images = unit64(centres[labels] + common - gap + spread * noise).astype(np.float32)
    error = text_error * rng.normal(size=(num_classes, width)) / np.sqrt(width)
    apart = 0.3 * rng.normal(size=(num_classes, templates, width)) / np.sqrt(width)
    embed = unit64((centres + common + gap + error)[:, None] + apart).reshape(-1, width)
    members = tuple(np.arange(num_classes * templates).reshape(num_classes, templates))
    texts = make_class_texts(
        [f"class {k}" for k in range(num_classes)],
        templates=[f"{{}} {p}" for p in range(templates)],
        descriptions={},
    )
    banks = ClassBanks(texts, {"names": TextBank(embed.astype(np.float32), members)})
    return Clusters(ClassBanks(texts, banks.banks, logit_scale=scale), Images(images), labels)


def softmax64(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return exponents / exponents.sum(axis=axis, keepdims=True)
