"""InfoNCE between images and captions over the whole batch, as CLIP (Radford et al., 2021)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from grain_jax.losses.masked_mean import Metrics

MASKED = -1e30  # logit of a pair left out: finite, so that its gradient is 0 and not NaN


def normalize(x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
    """Unit length along the last axis, float32; zero stays zero."""
    x = x.astype(jnp.float32)
    squared = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def similarity(a: Float[Array, "N E"], b: Float[Array, "T E"]) -> Float[Array, "N T"]:
    """Cosines of all pairs, in full float32: a scale of 100 makes short mantissas visible."""
    return jnp.matmul(normalize(a), normalize(b).T, precision=jax.lax.Precision.HIGHEST)


def equal_pairs(key: Integer[Array, "N"]) -> Bool[Array, "N N"]:
    """Which different places hold the same text: equal keys, diagonal left out."""
    return (key[:, None] == key[None, :]) & ~jnp.eye(key.shape[0], dtype=bool)


def contrastive_loss(
    image_embed: Float[Array, "B E"],
    caption_embed: Float[Array, "B E"],
    logit_scale: Float[Array, ""],
    *,
    key: Integer[Array, "B"] | None,
) -> tuple[Float[Array, ""], Metrics]:
    """Symmetric InfoNCE, the mean of image-to-text and text-to-image, negatives the whole batch.

    `key`: captions with equal keys are no negatives of each other's images; None counts them as
    negatives, as official.
    """
    logits = logit_scale * similarity(image_embed, caption_embed)  # [B, B]
    # Row by row: on a mesh the diagonal is a gather, with indices of the whole batch.
    positive = logit_scale * (normalize(image_embed) * normalize(caption_embed)).sum(axis=-1)
    if key is not None:
        logits = jnp.where(equal_pairs(key), MASKED, logits)
    by_image, by_text = (jax.nn.logsumexp(logits, axis=axis) for axis in (1, 0))
    total = ((by_image + by_text) / 2 - positive).sum()
    count = jnp.asarray(logits.shape[0], jnp.float32)
    return total / count, {"contrastive": (total, count)}
