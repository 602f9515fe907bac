"""ICIS (Christensen et al. 2023, arXiv 2308.10599): classifier weights of classes without images,
out of their names, learned from the classes that have images.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from grain_jax.zero_shot.arithmetic import mean_vectors, unit
from grain_jax.zero_shot.by_support import class_means
from grain_jax.zero_shot.method import (
    CaptionBank,
    ClassBanks,
    Images,
    Score,
    Support,
    labelled_images,
)
from grain_jax.zero_shot.text_kinds import NAMES

STEPS, LEARNING_RATE, HIDDEN = 300, 1e-3, 512

Params = dict[str, dict[str, Array]]


def by_classifier_injection(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """The cosine with a class's weights: the mean of its images where it has any, else what
    `injected_weights` makes of the class names.
    """
    support = labelled_images(support)
    counts = np.bincount(support.labels, minlength=texts.num_classes)
    weights = unit(class_means(support.image, support.labels, texts.num_classes))
    names, known = mean_vectors(texts[NAMES]), counts > 0
    if not known.all():
        weights[~known] = injected_weights(names[known], weights[known], names[~known])
    return lambda images, alpha: images.image @ weights.T


def injected_weights(
    descriptors: Float[np.ndarray, "K D"],
    weights: Float[np.ndarray, "K E"],
    new: Float[np.ndarray, "N D"],
    *,
    steps: int = STEPS,
) -> Float[np.ndarray, "N E"]:
    """Weights of unit length for classes with the descriptors `new`.

    Two encoders and two decoders of one layer each share a hidden space. They learn from the K
    known classes, all at once in each step, to make a class's descriptor and weights out of either,
    by the cosine. Starts from the same random numbers each time.
    """
    params = _train(
        jnp.asarray(descriptors, jnp.float32), jnp.asarray(weights, jnp.float32), steps=steps
    )
    made = _decode(params, "weights", _encode(params, "text", jnp.asarray(new, jnp.float32)))
    return unit(np.asarray(made, float))


@functools.partial(jax.jit, static_argnames="steps")
def _train(descriptors: Float[Array, "K D"], weights: Float[Array, "K E"], *, steps: int) -> Params:
    optimizer = optax.adam(LEARNING_RATE)
    params = _initial(descriptors.shape[1], weights.shape[1])

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(loss)(params, descriptors, weights)
        with jax.numpy_dtype_promotion("standard"):  # optax's own code relies on it
            updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)
    return params


def loss(
    params: Params, descriptors: Float[Array, "K D"], weights: Float[Array, "K E"]
) -> Float[Array, ""]:
    """Mean cosine distance, summed over both directions and both reconstructions."""
    total = jnp.zeros(())
    given = {"text": descriptors, "weights": weights}
    for source, values in given.items():
        hidden = _encode(params, source, values)
        for target, expected in given.items():
            total += (1.0 - _cosine(_decode(params, target, hidden), expected)).mean()
    return total


def _initial(text_width: int, weight_width: int) -> Params:
    widths = {"text": text_width, "weights": weight_width}
    params = {}
    for number, (name, width) in enumerate(widths.items()):
        keys = jax.random.split(jax.random.key(number))
        for key, part, shape in (
            (keys[0], "encode", (width, HIDDEN)),
            (keys[1], "decode", (HIDDEN, width)),
        ):
            kernel = jax.nn.initializers.lecun_normal()(key, shape, jnp.float32)
            params[f"{part}_{name}"] = {"kernel": kernel, "bias": jnp.zeros(shape[1])}
    return params


def _encode(params: Params, name: str, values: Float[Array, "K W"]) -> Float[Array, "K H"]:
    return jax.nn.relu(_linear(params[f"encode_{name}"], values))


def _decode(params: Params, name: str, hidden: Float[Array, "K H"]) -> Float[Array, "K W"]:
    return _linear(params[f"decode_{name}"], hidden)


def _linear(layer: dict[str, Array], values: Float[Array, "K W"]) -> Float[Array, "K V"]:
    return values @ layer["kernel"] + layer["bias"][None]


def _cosine(first: Float[Array, "K W"], second: Float[Array, "K W"]) -> Float[Array, "K"]:
    lengths = jnp.linalg.norm(first, axis=1) * jnp.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / jnp.maximum(lengths, 1e-6)
