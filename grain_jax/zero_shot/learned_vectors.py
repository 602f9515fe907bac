"""Class vectors that are learned from images without labels by gradient descent: InMaP, and a head
with POUF's objective. Both are jitted, on the default device, and score by cosine.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grain_jax.zero_shot.arithmetic import log_softmax
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Images, Score, Support
from grain_jax.zero_shot.priors import matched_log_weights, similarities
from grain_jax.zero_shot.unlabeled import blocks, class_vectors, images_to_fit

STEP_CELLS = 1 << 24  # images x classes of a full-batch step: 16,000 images of 1,000 classes
INMAP_STEPS, INMAP_RATE, INMAP_CERTAIN = 2000, 10.0, 0.6
INMAP_TEMPERATURE = 4.0  # of proxies, relative to CLIP's: 0.04 to 0.01
SMALLEST_RATE = 1e-6  # steps by less change no float32
HEAD_STEPS, HEAD_BATCH, HEAD_RATE, HEAD_MOMENTUM, HEAD_INFORMATION = 500, 1024, 0.01, 0.9, 0.3


def inmap(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """InMaP, Qian, Xu & Hu 2023, arXiv 2310.19752: proxies of classes among the images, learned
    from CLIP's predictions with all classes made equally frequent (Sinkhorn), those over 0.6 made
    certain.

    Fitted to drawn images, images times classes at most `STEP_CELLS`. Temperatures are
    1 and 4 over the logit scale: the published 0.01 and 0.04 for CLIP's.
    """
    classes = class_vectors(texts)
    images = images_to_fit(unlabeled, len(classes.vectors), max_cells=STEP_CELLS)
    scale = texts.logit_scale
    labels = balanced_labels(images, classes.vectors, scale, classes.fractions)
    proxies = learn_proxies(images, classes.vectors, labels, INMAP_TEMPERATURE / scale)
    return lambda images, alpha: classes.expand(images.image @ proxies.T)


def head(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """Class vectors, from the texts' on, trained by `head_loss`, POUF's objective: Tanwisuth et
    al. 2023, arXiv 2305.00350. POUF tunes the towers or the prompts; this only moves the vectors.

    500 steps of gradient descent with momentum, batches of 1,024 images.
    """
    classes = class_vectors(texts)
    images = images_to_fit(unlabeled, 1)
    trained = train_head(images, classes.vectors, texts.logit_scale, classes.fractions)
    return lambda images, alpha: classes.expand(images.image @ trained.T)


def balanced_labels(
    images: Float[np.ndarray, "N E"],
    vectors: Float[np.ndarray, "D E"],
    scale: float,
    fractions: Float[np.ndarray, "D"],
) -> Float[np.ndarray, "N D"]:
    """CLIP's probabilities with the mean of each class its fraction; certain ones are 0 and 1."""
    matched = matched_log_weights(similarities(images, vectors), scale, fractions)
    shift = matched.logs.astype(np.float32)
    labels = np.empty((len(images), len(vectors)), np.float32)
    for rows in blocks(*labels.shape):
        labels[rows] = np.exp(log_softmax(np.float32(scale) * (images[rows] @ vectors.T) + shift))
    best = labels.argmax(axis=1)
    certain = np.nonzero(labels.max(axis=1) > INMAP_CERTAIN)[0]
    labels[certain] = 0.0
    labels[certain, best[certain]] = 1.0
    return labels


def learn_proxies(
    images: Float[np.ndarray, "N E"],
    start: Float[np.ndarray, "D E"],
    labels: Float[np.ndarray, "N D"],
    temperature: float,
    *,
    steps: int = INMAP_STEPS,
) -> Float[np.ndarray, "D E"]:
    """Unit vectors whose softmax over cosines has least cross-entropy to the labels.

    Gradient descent on all images; the rate halves whenever the gradient grows, and it ends after
    `steps` or when the rate has become negligible.
    """
    arrays = (jnp.asarray(one) for one in (images, start, labels, np.float32(temperature)))
    return np.asarray(_descend(*arrays, steps=steps))


@functools.partial(jax.jit, static_argnames="steps")
def _descend(
    images: Float[Array, "N E"],
    start: Float[Array, "D E"],
    labels: Float[Array, "N D"],
    temperature: Float[Array, ""],
    *,
    steps: int,
) -> Float[Array, "D E"]:
    with jax.default_matmul_precision("float32"):
        wanted = labels.T @ images
        step_size = 1.0 / (len(images) * temperature)

        def unfinished(state):
            count, _, rate, _ = state
            return (count < steps) & (rate > SMALLEST_RATE)

        def step(state):
            count, vectors, rate, before = state
            predicted = jax.nn.softmax(images @ vectors.T / temperature, axis=1)
            gradient = predicted.T @ images - wanted
            size = jnp.linalg.norm(gradient)
            rate = jnp.where(size > before, rate / 2, rate)
            return count + 1, _unit(vectors - rate * step_size * gradient), rate, size

        first = (0, start, jnp.float32(INMAP_RATE), jnp.float32(jnp.inf))
        return jax.lax.while_loop(unfinished, step, first)[1]


def head_loss(
    vectors: Float[Array, "D E"],
    images: Float[Array, "b E"],
    scale: Float[Array, ""],
    fractions: Float[Array, "D"],
) -> Float[Array, ""]:
    """Bidirectional transport between images and classes, less 0.3 of the mutual information.

    Transport: 1 - cosine, expected over the classes of each image (softmax over classes), plus
    expected over the images of each class (softmax over images).
    """
    cosine = images @ _unit(vectors).T
    logs = jax.nn.log_softmax(scale * cosine, axis=1)
    of_image, of_class = jnp.exp(logs), jax.nn.softmax(scale * cosine, axis=0)
    cost = 1.0 - cosine
    to_classes = (of_image * cost).sum(axis=1).mean()
    to_images = fractions @ (of_class * cost).sum(axis=0)
    mean = of_image.mean(axis=0)
    information = (of_image * logs).sum(axis=1).mean() - mean @ jnp.log(mean + 1e-30)
    return to_classes + to_images - HEAD_INFORMATION * information


def train_head(
    images: Float[np.ndarray, "N E"],
    start: Float[np.ndarray, "D E"],
    scale: float,
    fractions: Float[np.ndarray, "D"],
    *,
    steps: int = HEAD_STEPS,
) -> Float[np.ndarray, "D E"]:
    """Unit vectors after `steps` on batches of the images, drawn with one seed."""
    batch = min(HEAD_BATCH, len(images))
    rng = np.random.default_rng(0)
    per_epoch = len(images) // batch
    epochs = [
        rng.permutation(len(images))[: per_epoch * batch].reshape(per_epoch, batch)
        for _ in range(-(-steps // per_epoch))
    ]
    rows = np.concatenate(epochs)[:steps].astype(np.int32)
    rates = HEAD_RATE * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    arrays = (images, start, rows, rates.astype(np.float32), fractions, np.float32(scale))
    return np.asarray(_train(*(jnp.asarray(one) for one in arrays)))


@jax.jit
def _train(
    images: Float[Array, "N E"],
    start: Float[Array, "D E"],
    rows: Int[Array, "steps b"],
    rates: Float[Array, "steps"],
    fractions: Float[Array, "D"],
    scale: Float[Array, ""],
) -> Float[Array, "D E"]:
    def step(state, batch):
        (vectors, momentum), (chosen, rate) = state, batch
        gradient = jax.grad(head_loss)(vectors, images[chosen], scale, fractions)
        momentum = HEAD_MOMENTUM * momentum + gradient
        return (vectors - rate * momentum, momentum), None

    with jax.default_matmul_precision("float32"):
        (vectors, _), _ = jax.lax.scan(step, (start, jnp.zeros_like(start)), (rows, rates))
    return _unit(vectors)


def _unit(vectors: Float[Array, "D E"]) -> Float[Array, "D E"]:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
