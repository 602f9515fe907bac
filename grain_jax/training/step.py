"""One training step: a single jitted function, no host callback, no look at the result."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from grain_jax.config import TrainConfig
from grain_jax.data.batch import Batch
from grain_jax.data.region_coverage import needs_descriptions
from grain_jax.models.image_text import DTYPES, normalize_images
from grain_jax.models.outputs import Output
from grain_jax.models.packing import capacity, pack, unpack
from grain_jax.parallel.sharding import batch_sharding, replicated
from grain_jax.training.logits import logits_form
from grain_jax.training.micro_batches import encode_in_parts
from grain_jax.training.objective import total_loss
from grain_jax.training.optimizer import LOGIT_SCALES, Schedule, clamp_logit_scales
from grain_jax.training.state import TrainState
from grain_jax.training.trainable import join, lr_multipliers, split_frozen

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

    Frozen parameters get no gradient at all, so that nothing is computed and kept for them.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)

        trained, frozen = split_frozen(state.params, config.optim)

        def loss_fn(trained: Any) -> tuple[Array, Metrics]:
            return batch_loss(model, join(trained, frozen), batch, config, rng=rng)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        grad_norm = optax.tree.norm(grads)
        # A process whose data has failed sends rows without a record until all have stopped; such
        # a step changes nothing and is not counted.
        void = (batch.index < 0).any()
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & ~void
        rate = schedule(state.step)
        updated = _update(optimizer, state, grads, rate=rate, config=config)
        # A nonfinite step changes nothing but the counters.
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, state)
        nonfinite = (~good & ~void).astype(jnp.int32)
        new_state = dataclasses.replace(
            kept,
            step=state.step + (~void).astype(jnp.int32),
            nonfinite_steps=state.nonfinite_steps + nonfinite,
            consecutive_nonfinite=jnp.where(good, 0, state.consecutive_nonfinite + nonfinite),
        )
        one = jnp.ones((), jnp.float32)
        metrics = (
            metrics
            | {
                "grad_norm": (grad_norm, one),
            }
            | {
                name: (jnp.exp(state.params[name]), one)
                for name in LOGIT_SCALES
                if name in state.params
            }
            | {name: (state.params[name], one) for name in ("logit_bias",) if name in state.params}
        )
        metrics = jax.tree.map(lambda value: jnp.where(good, value, 0.0), metrics)
        metrics = metrics | {
            "learning_rate": (rate, one),
            "nonfinite_steps": (nonfinite.astype(jnp.float32), one),
            "consecutive_nonfinite": (new_state.consecutive_nonfinite.astype(jnp.float32), one),
            "replaced_images": (batch.replaced.sum().astype(jnp.float32), one),
            "truncated_texts": (batch.truncated.sum().astype(jnp.float32), one),
        }
        padded = not config.model.text_tokens_per_image
        if padded and config.model.text.pooling == "end":  # the others' texts fill all positions
            metrics = metrics | text_use(batch)
        return new_state, metrics

    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        step,
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),
        donate_argnums=0,
    )


def text_use(batch: Any) -> Metrics:
    """Fractions of what the text tower could be given that is text and not padding.

    Of a caption's positions, of a real description's positions, and of the places for descriptions:
    what data.caption_length, data.description_length and model.description_capacity_factor could
    spare.
    """

    def fraction(values: Array, weight: Array | None = None) -> tuple[Array, Array]:
        total = values.sum(dtype=jnp.float32)
        return total, jnp.asarray(values.size, jnp.float32) if weight is None else weight

    positions = batch.region_mask.sum(dtype=jnp.float32) * batch.descriptions.shape[2]
    return {
        "caption_positions_used": fraction(batch.captions != 0),
        "description_positions_used": fraction(batch.descriptions != 0, positions),
        "descriptions_used": fraction(batch.region_mask),
    }


def batch_loss(
    model: nn.Module, params: Any, batch: Any, config: TrainConfig, *, rng: Array
) -> tuple[Array, Metrics]:
    """Loss of a `Batch` of device arrays with its (sum, weight) terms.

    Neither micro-batches nor the mesh change it: with `optim.grad_cache_chunks` = k > 1 the batch
    is encoded in k parts (see `micro_batches`). Activations of one part at a time, negatives of the
    whole batch, exact gradient, and descriptions packed and dropout drawn as those of the whole
    batch.
    """
    encode = functools.partial(_encode, model, config)
    if config.optim.grad_cache_chunks == 1:
        output = encode(params, (batch.images, batch.captions, batch.descriptions, None), rng)
    else:
        output = _encode_in_parts(encode, model, params, batch, config, rng=rng)
    return total_loss(
        output,
        caption_key=batch.caption_key,
        description_key=batch.description_key,
        boxes=batch.boxes,
        region_mask=batch.region_mask,
        config=config.loss,
        form=logits_form(config, jax.sharding.get_abstract_mesh()),
    )


def _encode(
    model: nn.Module,
    config: TrainConfig,
    params: Any,
    inputs: tuple[Array, Array, Array | None, Array | None],
    rng: Array,
) -> Output:
    """Images, captions and, where the loss needs them, descriptions to what the losses take.

    The last of `inputs` are the rows' numbers in the global batch; None where it is whole.
    """
    images, captions, descriptions, rows = inputs
    pixels = normalize_images(images, config.data.mean, config.data.std, DTYPES[config.model.dtype])
    output: Any = model.apply(
        {"params": params},
        pixels,
        captions,
        descriptions if needs_descriptions(config) else None,
        train=True,
        auxiliary_boxes=config.loss.auxiliary_box_weight > 0,
        rows=rows,
        rngs={"dropout": rng},
    )
    # The losses need no tokens, and stacked over micro-batches they would be the largest array.
    return dataclasses.replace(output, image=dataclasses.replace(output.image, tokens=None))


def _encode_in_parts(
    encode: Callable[..., Output],
    model: Any,
    params: Any,
    batch: Any,
    config: TrainConfig,
    *,
    rng: Array,
) -> Output:
    k, regions = config.optim.grad_cache_chunks, batch.descriptions.shape[1]
    numbers = jnp.arange(len(batch.images), dtype=jnp.int32)
    if config.model.text_tokens_per_image:
        return _encode_streams_in_parts(encode, model, params, batch, numbers, num_parts=k, rng=rng)
    texts, place, kept = None, None, None
    if needs_descriptions(config):
        texts = batch.descriptions.reshape(-1, batch.descriptions.shape[2])
        rows = capacity(config.model.description_capacity_factor, len(texts), num_parts=k)
        if rows < len(texts):
            texts, place, kept = pack(texts, rows=rows)

    def encode_part(params: Any, inputs: tuple[Any, ...], rng: Array) -> tuple[Any, ...]:
        images, captions, texts, rows = inputs
        output = encode(params, (images, captions, None, rows), rng)
        embed = None
        if texts is not None:
            embed = model.apply({"params": params}, texts, method="encode_texts")
        return output.image, output.caption_embed, embed

    inputs = (batch.images, batch.captions, texts, numbers)
    image, caption_embed, embed = encode_in_parts(encode_part, params, inputs, rng, num_parts=k)
    if place is not None and kept is not None:
        embed = unpack(embed, place, kept)
        kept = kept.reshape(-1, regions)
    scale, region_scale = model.apply({"params": params}, method="logit_scales")
    return Output(
        image=image,
        caption_embed=caption_embed,
        description_embed=None if embed is None else embed.reshape(-1, regions, embed.shape[-1]),
        description_kept=kept,
        logit_scale=scale,
        region_logit_scale=region_scale,
        logit_bias=params.get("logit_bias"),
    )


def _encode_streams_in_parts(
    encode: Callable[..., Output],
    model: Any,
    params: Any,
    batch: Any,
    numbers: Array,
    *,
    num_parts: int,
    rng: Array,
) -> Output:
    """With the texts of each part's images laid end to end, in streams of its own."""

    def encode_part(params: Any, inputs: tuple[Any, ...], rng: Array) -> Output:
        nothing: Any = None  # scales and bias have no rows to be joined
        return dataclasses.replace(
            encode(params, inputs, rng),
            logit_scale=nothing,
            region_logit_scale=nothing,
            logit_bias=nothing,
        )

    inputs = (batch.images, batch.captions, batch.descriptions, numbers)
    output = encode_in_parts(encode_part, params, inputs, rng, num_parts=num_parts)
    scale, region_scale = model.apply({"params": params}, method="logit_scales")
    return dataclasses.replace(
        output,
        logit_scale=scale,
        region_logit_scale=region_scale,
        logit_bias=params.get("logit_bias"),
    )


def _update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    grads: Any,
    *,
    rate: Array,
    config: TrainConfig,
) -> TrainState:
    """`state` with its trained parameters moved along `grads`, which has these alone."""
    trained, frozen = split_frozen(state.params, config.optim)
    factors, _ = split_frozen(lr_multipliers(state.params, config.optim), config.optim)
    with jax.numpy_dtype_promotion("standard"):  # optax's own code relies on it
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = jax.tree.map(
        lambda p, u, factor: p - (factor * rate).astype(p.dtype) * u, trained, updates, factors
    )
    trained = clamp_logit_scales(trained, max_scale=config.model.max_logit_scale)
    ema_params = state.ema_params
    if ema_params is not None:
        count = state.step.astype(jnp.float32)
        # A young average forgets its random start: the decay rises to the one asked for.
        decay = jnp.minimum(config.optim.ema_decay, (1.0 + count) / (10.0 + count))
        average, unchanged = split_frozen(ema_params, config.optim)
        average = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, average, trained)
        ema_params = join(average, unchanged)
    return dataclasses.replace(
        state, params=join(trained, frozen), opt_state=opt_state, ema_params=ema_params
    )
