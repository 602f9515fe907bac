"""AdamW as the official code sets it up: schedule, weight-decay groups, clipping."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from grain_jax.config import OptimConfig, TrainConfig
from grain_jax.training.rounded_moments import in_bfloat16

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]
LOGIT_SCALES = ("logit_scale", "region_logit_scale")


def num_steps(config: TrainConfig, num_images: int) -> int:
    """Steps of the whole run: `steps`, or `epochs` over `num_images`."""
    if config.steps:
        return config.steps
    return max(1, round(config.epochs * num_images / config.batch_size))


def num_warmup_steps(config: TrainConfig, num_images: int) -> int:
    """Steps of the warm-up: `warmup_steps`, or `warmup_epochs` over `num_images`."""
    if config.optim.warmup_steps:
        return config.optim.warmup_steps
    return round(config.optim.warmup_epochs * num_images / config.batch_size)


def make_schedule(config: OptimConfig, *, steps: int, warmup_steps: int) -> Schedule:
    """Learning rate of step 0, 1, ...: linear to `learning_rate`, then cosine to the final one.

    Step for step the official schedule (train_utils.py, cosine_scheduler): the warm-up reaches its
    peak with its last step, the cosine starts from it again.
    """
    peak, final = config.learning_rate, config.final_learning_rate

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        at = step.astype(jnp.float32)
        rising = config.warmup_start + (peak - config.warmup_start) * at / max(warmup_steps - 1, 1)
        progress = jnp.clip((at - warmup_steps) / max(steps - warmup_steps, 1), 0.0, 1.0)
        falling = final + 0.5 * (peak - final) * (1.0 + jnp.cos(jnp.pi * progress))
        return jnp.where(at < warmup_steps, rising, falling)

    return schedule


def learning_rate(config: OptimConfig, step: int, *, steps: int, warmup_steps: int) -> float:
    """That of `make_schedule` after `step` steps, for people to read."""
    schedule = make_schedule(config, steps=steps, warmup_steps=warmup_steps)
    return float(schedule(jnp.asarray(step, jnp.int32)))


def decay_mask(params: Any, groups: str) -> Any:
    """True for each parameter that weight decay applies to.

    "matrices": all but biases, norms and other vectors, counted without the axis of scanned layers.
    "official": its two groups. In the backbone as above, except that the CLS token, a 1 x 1 x D
    tensor there, decays. In the decoder only what is called ".bias" is spared, so norm scales and
    the fused projections' "in_proj_bias" decay (32 vectors at depth 6).
    """

    def decays(path: tuple[Any, ...], value: Any) -> bool:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        in_decoder, last, holder = names[0] == "decoder", names[-1], names[max(len(names) - 2, 0)]
        if groups == "official" and in_decoder:
            return last != "bias" or holder in ("self_attention", "cross_attention")
        if groups == "official" and last == "cls":
            return True
        # A bias of a fused projection is stored [3, heads, size]: names tell, dimensions do not.
        return last not in ("bias", "scale") and value.ndim - ("layers" in names) >= 2

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """AdamW without its learning rate: a step adds `-schedule(step)` times the update.

    The rate is kept out so that it follows the step even where a step is skipped. The state has the
    same structure with and without clipping, and with either type of its moments.
    """
    clip = config.clip_grad_norm
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        in_bfloat16(adam) if config.moments_dtype == "bfloat16" else adam,
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: decay_mask(params, config.weight_decay_mask)
        ),
    )


def clamp_logit_scales(params: Any, *, max_scale: float) -> Any:
    """Log scales kept in [0, log(max_scale)], as the official code does after each step."""
    limit = math.log(max_scale)
    return {
        name: jnp.clip(value, 0.0, limit) if name in LOGIT_SCALES else value
        for name, value in params.items()
    }
