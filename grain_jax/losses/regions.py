"""Losses that bring descriptions to where they belong: to a region, and to the image as a whole."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from grain_jax.losses.log_sum_exp import DENSE, LogitsForm, log_sum_exp
from grain_jax.losses.masked_mean import Metrics, masked_mean
from grain_jax.losses.pairs import make_columns, make_rows, paired_cosines


def region_loss(
    region_embed: Float[Array, "B M E"],
    description_embed: Float[Array, "B M E"],
    logit_scale: Float[Array, ""],
    *,
    matched: Bool[Array, "B M"],
    described: Bool[Array, "B M"],
    label: Int[Array, "B M"],
    key: Integer[Array, "B M"] | None,
    empty: str = "zero",
    form: LogitsForm = DENSE,
) -> tuple[Float[Array, ""], Metrics]:
    """InfoNCE from each matched region to its description, negatives all others of the batch.

    `region_embed` holds the query matched to each region; `described` are the real descriptions,
    all of which compete; `label` is the slot, in the same image, of a region's description. `key`:
    descriptions with equal keys are no negatives; None counts them as negatives, as official.
    """
    batch, regions = matched.shape
    label_key = None if key is None else jnp.take_along_axis(key, label, axis=1)
    by_region, _ = log_sum_exp(
        make_rows(
            region_embed,
            own=label + regions * jnp.arange(batch)[:, None],
            key=None if label_key is None else label_key[:, :, None],
        ),
        make_columns(description_embed, key=key, real=described),
        logit_scale,
        form=form,
    )
    labelled = jnp.take_along_axis(description_embed, label[:, :, None], axis=1)
    positive = logit_scale * paired_cosines(region_embed, labelled)
    loss, metric = masked_mean(by_region.reshape(matched.shape) - positive, matched, empty=empty)
    return loss, {"region": metric}


def image_description_loss(
    image_embed: Float[Array, "B E"],
    description_embed: Float[Array, "B M E"],
    logit_scale: Float[Array, ""],
    *,
    described: Bool[Array, "B M"],
    key: Integer[Array, "B M"] | None,
    empty: str = "zero",
    form: LogitsForm = DENSE,
) -> tuple[Float[Array, ""], Metrics]:
    """InfoNCE from an image to each of its descriptions, negatives those of other images.

    An image's other descriptions are neither; `key` leaves out the same text at another image too.
    """
    owner = jnp.broadcast_to(jnp.arange(len(described))[:, None], described.shape)
    negatives, _ = log_sum_exp(
        make_rows(image_embed, key=key, has_key=None if key is None else described),
        make_columns(description_embed, number=owner, key=key, real=described),
        logit_scale,
        form=form,
        with_own=False,
    )
    positive = logit_scale * paired_cosines(image_embed[:, None, :], description_embed)  # [B, M]
    per_description = jnp.logaddexp(negatives[:, None], positive) - positive
    loss, metric = masked_mean(per_description, described, empty=empty)
    return loss, {"image_description": metric}
