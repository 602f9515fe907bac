"""InfoNCE between images and captions over the whole batch, as CLIP (Radford et al., 2021)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from grain_jax.losses.log_sum_exp import DENSE, LogitsForm, log_sum_exp
from grain_jax.losses.masked_mean import Metrics
from grain_jax.losses.pairs import make_columns, make_rows, paired_cosines


def contrastive_loss(
    image_embed: Float[Array, "B E"],
    caption_embed: Float[Array, "B E"],
    logit_scale: Float[Array, ""],
    *,
    key: Integer[Array, "B"] | None,
    form: LogitsForm = DENSE,
) -> tuple[Float[Array, ""], Metrics]:
    """Symmetric InfoNCE, the mean of image-to-text and text-to-image, negatives the whole batch.

    `key`: captions with equal keys are no negatives of each other's images; None counts them as
    negatives, as official.
    """
    by_image, by_text = log_sum_exp(
        make_rows(image_embed, key=None if key is None else key[:, None]),
        make_columns(caption_embed, key=key),
        logit_scale,
        form=form,
        by_column=True,
    )
    positive = logit_scale * paired_cosines(image_embed, caption_embed)
    total = ((by_image + by_text) / 2 - positive).sum()
    count = jnp.asarray(image_embed.shape[0], jnp.float32)
    return total / count, {"contrastive": (total, count)}
