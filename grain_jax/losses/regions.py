"""Losses that bring descriptions to where they belong: to a region, and to the image as a whole."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from grain_jax.losses.contrastive import MASKED, similarity
from grain_jax.losses.masked_mean import Metrics, masked_mean


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
) -> tuple[Float[Array, ""], Metrics]:
    """InfoNCE from each matched region to its description, negatives all others of the batch.

    `region_embed` holds the query matched to each region; `described` are the real descriptions,
    all of which compete; `label` is the slot, in the same image, of a region's description. `key`:
    descriptions with equal keys are no negatives; None counts them as negatives, as official.
    """
    batch, regions = matched.shape
    size = batch * regions
    logits = logit_scale * similarity(
        region_embed.reshape(size, -1), description_embed.reshape(size, -1)
    )  # [B*M, B*M]
    label = (label + regions * jnp.arange(batch)[:, None]).reshape(size)
    is_label = label[:, None] == jnp.arange(size)[None, :]
    out = ~described.reshape(1, size)
    if key is not None:
        flat = key.reshape(size)
        out = out | (flat[label][:, None] == flat[None, :]) & ~is_label
    positive = jnp.where(is_label, logits, 0.0).sum(axis=1)
    per_region = jax.nn.logsumexp(jnp.where(out, MASKED, logits), axis=1) - positive
    loss, metric = masked_mean(per_region, matched.reshape(size), empty=empty)
    return loss, {"region": metric}


def image_description_loss(
    image_embed: Float[Array, "B E"],
    description_embed: Float[Array, "B M E"],
    logit_scale: Float[Array, ""],
    *,
    described: Bool[Array, "B M"],
    key: Integer[Array, "B M"] | None,
    empty: str = "zero",
) -> tuple[Float[Array, ""], Metrics]:
    """InfoNCE from an image to each of its descriptions, negatives those of other images.

    An image's other descriptions are neither; `key` leaves out the same text at another image too.
    """
    batch, regions = described.shape
    size = batch * regions
    flat = description_embed.reshape(size, -1)
    logits = logit_scale * similarity(image_embed, flat)  # [B, B*M]
    owner = jnp.repeat(jnp.arange(batch), regions)[None, :]
    own = jnp.arange(batch)[:, None] == owner
    out = own | ~described.reshape(1, size)
    if key is not None:
        same = key[:, :, None] == key.reshape(1, 1, size)  # [B, M, B*M]
        out = out | (same & described[:, :, None]).any(axis=1)
    negatives = jax.nn.logsumexp(jnp.where(out, MASKED, logits), axis=1)  # [B]
    positive = jnp.where(own, logits, 0.0).reshape(batch, batch, regions).sum(axis=1)  # [B, M]
    per_description = jnp.logaddexp(negatives[:, None], positive) - positive
    loss, metric = masked_mean(per_description, described, empty=empty)
    return loss, {"image_description": metric}
