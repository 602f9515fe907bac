"""The whole model from its config: GRAIN, or CLIP from the same towers."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, UInt8

from grain_jax.config import ModelConfig, TrainConfig
from grain_jax.config.validation import validate_model
from grain_jax.models.decoder import RegionDecoder
from grain_jax.models.layers import named, normal
from grain_jax.models.outputs import ImageOutput, Output
from grain_jax.models.packing import capacity, pack, unpack
from grain_jax.models.pooling import AttentionPool
from grain_jax.models.text import TextTransformer
from grain_jax.models.text_stream import stream_of_batch, texts_of_batch
from grain_jax.models.vit import VisionTransformer
from grain_jax.models.weights import as_weight, product

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def normalize_images(
    images: UInt8[Array, "B H W 3"],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: Any = jnp.float32,
) -> Float[Array, "B H W 3"]:
    """uint8 pixels to (pixel / 255 - mean) / std per channel, computed in float32."""
    mean_row = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, 3)
    std_row = jnp.asarray(std, jnp.float32).reshape(1, 1, 1, 3)
    return ((images.astype(jnp.float32) / 255 - mean_row) / std_row).astype(dtype)


class ImageTextModel(nn.Module):
    """Vision and text towers and, for GRAIN, the region decoder. All texts share one tower."""

    config: ModelConfig
    sigmoid: bool = False  # with a scale and a bias for loss.image_caption="sigmoid"

    def setup(self) -> None:
        config = self.config
        scan, remat, dtype = config.scan_layers, config.remat, DTYPES[config.dtype]
        attention: Any = config.attention
        types = (dtype, self.gradient_dtype)
        self.vision = VisionTransformer(
            config.vision, config.image_size, scan, remat, attention, *types
        )
        self.text = TextTransformer(config.text, config.embed_dim, scan, remat, attention, *types)
        if config.type == "grain":
            self.decoder = RegionDecoder(config.decoder, config.embed_dim, scan, remat, *types)
        else:
            width = config.vision.width
            if config.vision.pooling == "map":
                self.attention_pool = AttentionPool(config.vision, *types)
            self.image_projection = self.param(
                "image_projection",
                named(normal(width**-0.5), "embed", "joint"),
                (width, config.embed_dim),
                jnp.float32,
            )

        def constant(value: float) -> Any:
            return lambda key: jnp.asarray(value, jnp.float32)

        of_softmax = constant(math.log(config.init_logit_scale))
        of_sigmoid = constant(math.log(config.init_sigmoid_scale))
        self.logit_scale = self.param("logit_scale", of_sigmoid if self.sigmoid else of_softmax)
        if self.sigmoid:
            self.logit_bias = self.param("logit_bias", constant(config.init_logit_bias))
        if config.region_logit_scale == "own":
            self.region_logit_scale = self.param("region_logit_scale", of_softmax)

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        captions: Integer[Array, "B L"],
        descriptions: Integer[Array, "B M L2"] | None = None,
        *,
        train: bool = False,
        auxiliary_boxes: bool = False,
        rows: Int[Array, "B"] | None = None,
    ) -> Output:
        """Normalised images and token ids to all that the losses need.

        `train`: with dropout, whose masks are functions of `rows`, the numbers of the rows in the
        global batch (default: their places here). `auxiliary_boxes`: boxes of the earlier decoder
        layers too.
        """
        texts = self._encode_texts(captions, descriptions)
        scale, region_scale = self.logit_scales()
        return Output(
            image=self.encode_images(
                images, train=train, auxiliary_boxes=auxiliary_boxes, rows=rows
            ),
            logit_scale=scale,
            region_logit_scale=region_scale,
            logit_bias=self.logit_bias if self.sigmoid else None,
            **texts,
        )

    def encode_images(
        self,
        images: Float[Array, "B H W 3"],
        *,
        train: bool = False,
        auxiliary_boxes: bool = False,
        rows: Int[Array, "B"] | None = None,
    ) -> ImageOutput:
        """Normalised images to embeddings and, for GRAIN, regions; arguments as of a call."""
        tokens = self.vision(images)
        if self.config.type == "clip":
            pooled = (
                self.attention_pool(tokens) if self.config.vision.pooling == "map" else tokens[:, 0]
            )
            kernel = as_weight(self.image_projection, tokens.dtype, self.gradient_dtype)
            projected = product(pooled, kernel)
            return ImageOutput(tokens=tokens, image_embed=projected.astype(jnp.float32))
        decoded = self.decoder(tokens, train=train, auxiliary_boxes=auxiliary_boxes, rows=rows)
        return ImageOutput(
            tokens=tokens,
            image_embed=decoded.image_embed,
            region_embed=decoded.region_embed,
            boxes=decoded.boxes,
            auxiliary_boxes=decoded.auxiliary_boxes,
        )

    @property
    def gradient_dtype(self) -> Any:
        """Of the gradients of weights; None where it is that of the computation."""
        config = self.config
        same = config.gradient_dtype in ("compute", config.dtype)
        return None if same else DTYPES[config.gradient_dtype]

    def encode_texts(self, tokens: Integer[Array, "N L"]) -> Float[Array, "N E"]:
        """Token ids to embeddings, not normalised."""
        return self.text(tokens)

    def logit_scales(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The scales of images and of regions, the same unless regions learn one of their own."""
        scale = self._scale(self.logit_scale)
        own = self.config.region_logit_scale == "own"
        return scale, self._scale(self.region_logit_scale) if own else scale

    def _encode_texts(self, captions: Array, descriptions: Array | None) -> dict[str, Any]:
        """The fields of `Output` that are about texts."""
        room = self.config.text_tokens_per_image
        if room and not self.is_initializing():  # parameters are the same either way
            return self._encode_in_stream(captions, descriptions, room)
        embed = kept = None
        if descriptions is not None:
            embed, kept = self._encode_descriptions(descriptions)
        return {
            "caption_embed": self.text(captions),
            "description_embed": embed,
            "description_kept": kept,
        }

    def _encode_in_stream(
        self, captions: Array, descriptions: Array | None, room: float
    ) -> dict[str, Any]:
        images = len(captions)
        stream = stream_of_batch(captions, descriptions, tokens_per_image=room)
        caption_embed, description_embed = texts_of_batch(self.text(stream), images=images)

        def of_image(values: Array) -> Array:
            of_caption, of_descriptions = texts_of_batch(values, images=images)
            return of_caption + of_descriptions.sum(axis=1)

        return {
            "caption_embed": caption_embed,
            "description_embed": None if descriptions is None else description_embed,
            "text_tokens": of_image(stream.lengths),
            "texts_cut": of_image(stream.cut.astype(jnp.int32)),
        }

    def _encode_descriptions(self, tokens: Array) -> tuple[Array, Array | None]:
        batch, regions, length = tokens.shape
        flat = tokens.reshape(batch * regions, length)
        rows = capacity(self.config.description_capacity_factor, len(flat))
        if rows == len(flat):
            return self.text(flat).reshape(batch, regions, -1), None
        packed, place, kept = pack(flat, rows=rows)
        embed = unpack(self.text(packed), place, kept)
        return embed.reshape(batch, regions, -1), kept.reshape(batch, regions)

    def _scale(self, log_scale: Float[Array, ""]) -> Float[Array, ""]:
        # Straight-through: beyond the bounds there must still be a gradient to bring it back.
        clipped = jnp.clip(log_scale, 0.0, math.log(self.config.max_logit_scale))
        return jnp.exp(log_scale + jax.lax.stop_gradient(clipped - log_scale))


def build_model(config: ModelConfig, *, sigmoid: bool = False) -> ImageTextModel:
    """The model of a copy of `config`, `sigmoid` with a bias of image-caption logits.

    Raises ValueError for what cannot be built.
    """
    validate_model(config)
    return ImageTextModel(copy.deepcopy(config), sigmoid)


def model_of_run(config: TrainConfig) -> ImageTextModel:
    """The model that a run with these settings trains. Raises ValueError as `build_model`."""
    return build_model(config.model, sigmoid=config.loss.image_caption == "sigmoid")


def abstract_params(
    config: ModelConfig, *, scan_layers: bool | None = None, sigmoid: bool = False
) -> dict[str, Any]:
    """Shapes and dtypes of the parameters, computed without any array; `scan_layers` overrides."""
    config = copy.deepcopy(config)
    config.scan_layers = config.scan_layers if scan_layers is None else scan_layers
    config.attention = "xla"  # shapes are the same, and it may be traced anywhere
    model, size = build_model(config, sigmoid=sigmoid), config.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    texts = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images, texts)
    return nn.unbox(variables["params"])
