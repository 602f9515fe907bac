"""One training step: a single jitted function, no host callback, no look at the result."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.linen import spmd
from jax.sharding import Mesh
from jaxtyping import Array

from grain_jax.config import TrainConfig
from grain_jax.data.records import Batch
from grain_jax.losses.total import total_loss
from grain_jax.models.build import DTYPES, normalize_images
from grain_jax.models.outputs import Output
from grain_jax.training.optimizer import Schedule, clamp_logit_scales, rate_factors
from grain_jax.training.sharding import batch_sharding, replicated
from grain_jax.training.state import TrainState

Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, weight): exact means over any window
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    config: TrainConfig,
    *,
    mesh: Mesh,
    abstract: TrainState,
) -> TrainStep:
    """Compiles on first call, within `use_mesh(mesh)`. The given state is consumed (donated).

    Parameters whose rate factor is 0 get no gradient at all, so that nothing is computed for them.
    """
    factors = rate_factors(abstract.params, config.optim.rate_factors)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_fn(params: Any) -> tuple[Array, Metrics]:
            params = jax.tree.map(
                lambda p, factor: p if factor else jax.lax.stop_gradient(p), params, factors
            )
            return batch_loss(model, params, batch, config, rng=rng)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        rate = schedule(state.step)
        updated = _update(optimizer, state, grads, rate=rate, factors=factors, config=config)
        # A bad step changes nothing but the counters.
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, state)
        bad = (~good).astype(jnp.int32)
        new_state = dataclasses.replace(
            kept,
            step=state.step + 1,
            skipped=state.skipped + bad,
            bad_streak=jnp.where(good, 0, state.bad_streak + 1),
        )
        one = jnp.ones((), jnp.float32)
        metrics = metrics | {
            "grad_norm": (grad_norm, one),
            "logit_scale": (jnp.exp(state.params["logit_scale"]), one),
        }
        metrics = jax.tree.map(lambda value: jnp.where(good, value, 0.0), metrics)
        metrics = metrics | {
            "learning_rate": (rate, one),
            "bad_steps": (bad.astype(jnp.float32), one),
            "bad_streak": (new_state.bad_streak.astype(jnp.float32), one),
            "replaced_images": (batch.replaced.sum().astype(jnp.float32), one),
            "truncated_texts": (batch.truncated.sum().astype(jnp.float32), one),
        }
        return new_state, metrics

    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        step,
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),
        donate_argnums=0,
    )


def batch_loss(
    model: nn.Module, params: Any, batch: Any, config: TrainConfig, *, rng: Array
) -> tuple[Array, Metrics]:
    """Loss of a `Batch` of device arrays with its (sum, weight) terms.

    Micro-batches do not change it: with `optim.accumulate` = k > 1 the batch is encoded
    in k parts, one after the other, and the backward pass encodes each part again (GradCache, arXiv
    2101.06983). Activations of one part at a time, negatives of the whole batch, exact gradient.
    """
    regions_learn = config.model.kind == "grain" and config.loss.region_weight > 0
    needs_descriptions = regions_learn or config.loss.image_description_weight > 0

    def encode(images: Array, captions: Array, descriptions: Array, key: Array) -> Output:
        pixels = normalize_images(
            images, config.data.mean, config.data.std, DTYPES[config.model.dtype]
        )
        output: Any = model.apply(
            {"params": params},
            pixels,
            captions,
            descriptions if needs_descriptions else None,
            train=True,
            auxiliary_boxes=config.loss.auxiliary_box_weight > 0,
            rngs={"dropout": key},
        )
        # The losses need no tokens, and stacked over micro-batches they would be the largest array.
        return dataclasses.replace(output, image=dataclasses.replace(output.image, tokens=None))

    inputs = (batch.images, batch.captions, batch.descriptions)
    k = config.optim.accumulate
    if k == 1:
        output = encode(*inputs, rng)
    else:
        micro_batches = tuple(_split(values, k) for values in inputs)
        keys = jax.random.split(rng, k)
        stacked = jax.lax.map(lambda part: jax.checkpoint(encode)(*part), (*micro_batches, keys))
        output = _join_output(stacked)
    return total_loss(
        output,
        caption_key=batch.caption_key,
        description_key=batch.description_key,
        boxes=batch.boxes,
        region_mask=batch.region_mask,
        config=config.loss,
    )


def _update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    grads: Any,
    *,
    rate: Array,
    factors: Any,
    config: TrainConfig,
) -> TrainState:
    with jax.numpy_dtype_promotion("standard"):  # optax's own code relies on it
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(
        lambda p, u, factor: p - (factor * rate).astype(p.dtype) * u if factor else p,
        state.params,
        updates,
        factors,
    )
    params = clamp_logit_scales(params, max_scale=config.model.max_logit_scale)
    ema_params = state.ema_params
    if ema_params is not None:
        count = state.step.astype(jnp.float32)
        # A young average forgets its random start: the decay rises to the one asked for.
        decay = jnp.minimum(config.optim.ema_decay, (1.0 + count) / (10.0 + count))
        ema_params = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema_params, params)
    return dataclasses.replace(state, params=params, opt_state=opt_state, ema_params=ema_params)


def _split(values: Array, k: int) -> Array:
    """[B, ...] to [k, B/k, ...]: every k-th row, so that each part spans all devices as it lies."""
    parts = values.reshape(values.shape[0] // k, k, *values.shape[1:]).swapaxes(0, 1)
    return spmd.with_logical_constraint(parts, (None, "batch", *(None,) * (values.ndim - 1)))


def _join(parts: Array, *, axis: int = 0) -> Array:
    """Undoes `_split`; the rows are on `axis` of a part."""
    rows = jnp.moveaxis(parts, 0, axis + 1)  # [..., B/k, k, ...]
    size = rows.shape[axis] * rows.shape[axis + 1]
    return rows.reshape(*rows.shape[:axis], size, *rows.shape[axis + 2 :])


def _join_output(stacked: Output) -> Output:
    image = stacked.image
    auxiliary = image.auxiliary_boxes
    joined = jax.tree.map(_join, dataclasses.replace(image, auxiliary_boxes=None))
    if auxiliary is not None:
        boxes = _join(auxiliary, axis=1)
        joined = dataclasses.replace(joined, auxiliary_boxes=boxes)
    return Output(
        image=joined,
        caption_embed=_join(stacked.caption_embed),
        description_embed=jax.tree.map(_join, stacked.description_embed),
        description_kept=jax.tree.map(_join, stacked.description_kept),
        # Equal in all parts; the mean gives each its share of the gradient.
        logit_scale=stacked.logit_scale.mean(),
        region_logit_scale=stacked.region_logit_scale.mean(),
    )
