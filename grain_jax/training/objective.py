"""The loss that is trained on: contrastive + boxes + regions, on the global batch.

Written for the whole batch: under jit on a sharded batch the negatives and the normalisers are
those of all devices. Only the tiled form of the logits has collectives of its own.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from grain_jax.boxes import cxcywh_to_xyxy, smoothed_iou
from grain_jax.config import LossConfig
from grain_jax.losses.box_losses import box_loss, clip_boxes
from grain_jax.losses.contrastive import contrastive_loss
from grain_jax.losses.log_sum_exp import DENSE, LogitsForm
from grain_jax.losses.masked_mean import Metrics, masked_mean
from grain_jax.losses.matching import match, matching_cost
from grain_jax.losses.official import EMPTY_BATCH, shifted_labels
from grain_jax.losses.regions import image_description_loss, region_loss
from grain_jax.losses.sigmoid import sigmoid_loss
from grain_jax.models.outputs import Output


def total_loss(
    output: Output,
    *,
    caption_key: Integer[Array, "B"],
    description_key: Integer[Array, "B M"],
    boxes: Float[Array, "B M 4"],
    region_mask: Bool[Array, "B M"],
    config: LossConfig,
    form: LogitsForm = DENSE,
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted sum in float32, and each term's (sum, weight), which is not yet weighted.

    `boxes` are cxcywh of the real regions (`region_mask`); one without area after clipping to the
    image is not a target of boxes or regions, but its description stays a negative. A model without
    regions (CLIP) has only the terms on images. A term of weight 0 is not computed, except the
    first and the box terms, which are always reported.

    With `config.image_caption` "sigmoid" images and captions have the first scale and the bias
    alone. The terms on descriptions remain InfoNCE, both with the scale of regions: the sigmoid's
    scale tells pairs apart together with its bias, and is not the inverse of a temperature.
    """
    image, descriptions = output.image, output.description_embed
    total, metrics = _image_caption_loss(output, caption_key, config, form)
    sigmoid = config.image_caption == "sigmoid"
    total = config.contrastive_weight * total
    key = description_key if config.mask_duplicate_descriptions else None
    described = region_mask
    if output.description_kept is not None:
        described = region_mask & output.description_kept
        dropped, real = (
            mask.sum(dtype=jnp.float32) for mask in (region_mask & ~described, region_mask)
        )
        metrics = metrics | {"descriptions_dropped": (dropped, real)}

    if output.text_tokens is not None and output.texts_cut is not None:
        images = jnp.asarray(len(output.text_tokens), jnp.float32)
        metrics = metrics | {
            "text_tokens_per_image": (output.text_tokens.sum(dtype=jnp.float32), images),
            "texts_cut_per_image": (output.texts_cut.sum(dtype=jnp.float32), images),
        }

    if config.image_description_weight:
        loss, terms = image_description_loss(
            image.image_embed,
            _needed(descriptions),
            output.region_logit_scale if sigmoid else output.logit_scale,
            described=described,
            key=key,
            empty=EMPTY_BATCH[config.variant],
            form=form,
        )
        total, metrics = total + config.image_description_weight * loss, metrics | terms

    if image.boxes is not None and image.region_embed is not None:
        target, has_area = clip_boxes(boxes)
        matched = region_mask & has_area
        query = _matched_queries(image.boxes, target, matched, config)
        loss, terms = box_loss(
            _take(image.boxes, query), target, matched, empty=EMPTY_BATCH[config.variant]
        )
        total, metrics = total + config.box_weight * loss, metrics | terms
        metrics["match_iou"] = _match_iou(_take(image.boxes, query), target, matched)

        if config.auxiliary_box_weight and image.auxiliary_boxes is not None:
            loss, terms = _auxiliary_loss(image.auxiliary_boxes, target, matched, config)
            total, metrics = total + config.auxiliary_box_weight * loss, metrics | terms

        if config.region_weight:
            slots = jnp.arange(matched.shape[1])
            label = jnp.broadcast_to(slots[None], matched.shape)
            if config.variant == "official":
                label = shifted_labels(region_mask, matched)
            loss, terms = region_loss(
                _take(image.region_embed, query),
                _needed(descriptions),
                output.region_logit_scale,
                matched=matched & jnp.take_along_axis(described, label, axis=1),
                described=described,
                label=label,
                key=key,
                empty=EMPTY_BATCH[config.variant],
                form=form,
            )
            total, metrics = total + config.region_weight * loss, metrics | terms

    return total, {"loss": (total, jnp.ones((), jnp.float32)), **metrics}


def _image_caption_loss(
    output: Output, caption_key: Array, config: LossConfig, form: LogitsForm
) -> tuple[Array, Metrics]:
    embeddings = output.image.image_embed, output.caption_embed
    key = caption_key if config.mask_duplicate_captions else None
    if config.image_caption == "softmax":
        return contrastive_loss(*embeddings, output.logit_scale, key=key, form=form)
    if output.logit_bias is None:
        raise ValueError(
            'loss.image_caption = "sigmoid" needs a logit bias, and the model has none; build it '
            "with model_of_run(config), or build_model(config.model, sigmoid=True)."
        )
    return sigmoid_loss(*embeddings, output.logit_scale, output.logit_bias, key=key, form=form)


def _needed(description_embed: Array | None) -> Array:
    if description_embed is None:
        raise ValueError(
            "The loss has terms on descriptions, and the model was given none; pass descriptions, "
            "or set loss.region_weight and loss.image_description_weight to 0."
        )
    return description_embed


def _take(values: Array, query: Array) -> Array:
    """Values [B, Q, X] of the query matched to each region, [B, M, X]."""
    return jnp.take_along_axis(values, query[:, :, None], axis=1)


def _matched_queries(predicted: Array, target: Array, mask: Array, config: LossConfig) -> Array:
    cost = matching_cost(
        predicted, target, l1_cost=config.match_l1_cost, giou_cost=config.match_giou_cost
    )
    return match(cost, mask)


def _match_iou(predicted: Array, target: Array, mask: Array) -> tuple[Array, Array]:
    iou = smoothed_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target))
    _, metric = masked_mean(jax.lax.stop_gradient(iou), mask)
    return metric


def _auxiliary_loss(
    layers: Float[Array, "B A Q 4"], target: Array, mask: Array, config: LossConfig
) -> tuple[Array, Metrics]:
    """The box loss of each earlier layer, matched on its own, summed over layers as DETR does."""

    def layer_loss(predicted: Array) -> tuple[Array, Metrics]:
        query = _matched_queries(predicted, target, mask, config)
        return box_loss(_take(predicted, query), target, mask, empty=EMPTY_BATCH[config.variant])

    losses, terms = jax.vmap(layer_loss, in_axes=1)(layers)
    total = sum((total.sum() for total, _ in terms.values()), jnp.zeros((), jnp.float32))
    return losses.sum(), {"auxiliary_box": (total, mask.sum(dtype=jnp.float32))}
