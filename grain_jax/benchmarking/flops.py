"""Floating-point operations of a training step, counted from the shapes of its matrix products.

A product of [m, k] and [k, n] counts 2 m k n; everything else (norms, activations, softmax,
matching, the optimizer) counts nothing, as is usual for model FLOPs utilization (Chowdhery et al.,
2022, appendix B). The backward pass counts twice the forward pass, but for the patch embedding,
whose input has no gradient. Recomputation (remat) and causality count nothing: attention is counted
whole.
"""

from dataclasses import dataclass

from grain_jax.config import TrainConfig
from grain_jax.data.region_coverage import needs_descriptions
from grain_jax.models.packing import capacity
from grain_jax.models.text_stream import stream_shape

FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class StepFlops:
    """Of one step on the global batch, forward and backward."""

    vision: float
    captions: float
    descriptions: float
    decoder: float
    losses: float
    text_streams: float = 0.0  # of captions and descriptions laid end to end, padding included

    @property
    def texts(self) -> float:
        """All of the text tower."""
        return self.captions + self.descriptions + self.text_streams

    @property
    def total(self) -> float:
        """All parts."""
        return self.vision + self.texts + self.decoder + self.losses


@dataclass(frozen=True)
class TextPositions:
    """Numbers of texts and of token positions a text; fractions are means over a batch."""

    captions: float
    caption_positions: float
    caption_pairs: float  # positions squared: the mean of squares, where lengths differ
    descriptions: float
    description_positions: float
    description_pairs: float
    # Of texts laid end to end, in all streams: positions, keys that one of them is compared with,
    # and texts that are read from them
    streamed: float = 0.0
    streamed_keys: float = 0.0
    streamed_texts: float = 0.0


def padded_positions(config: TrainConfig, *, num_shards: int = 1) -> TextPositions:
    """Those that a step computes, padding included, on devices of which `num_shards` have rows."""
    if config.model.text_tokens_per_image:
        return _streamed_positions(config, num_shards * config.optim.grad_cache_chunks)
    batch, data = config.batch_size, config.data
    caption, description = float(data.caption_length), float(data.description_length)
    encoded = capacity(config.model.description_capacity_factor, batch * data.max_regions)
    return TextPositions(
        float(batch), caption, caption**2, float(encoded), description, description**2
    )


def _streamed_positions(config: TrainConfig, streams: int) -> TextPositions:
    batch, data = config.batch_size, config.data
    longest, texts = data.caption_length, batch
    if needs_descriptions(config):
        longest, texts = max(longest, data.description_length), batch * (1 + data.max_regions)
    blocks, length = stream_shape(
        config.model.text_tokens_per_image, images=batch // streams, longest=longest
    )
    return TextPositions(
        *(0.0,) * 6,
        streamed=float(streams * blocks * length),
        streamed_keys=float(length if blocks == 1 else 2 * length),
        streamed_texts=float(texts),
    )


def step_flops(
    config: TrainConfig, positions: TextPositions, *, with_descriptions: bool
) -> StepFlops:
    """FLOPs of a step with these texts: `padded_positions`, or those that are text.

    `with_descriptions` is `needs_descriptions(config)`.
    """
    model, batch, data = config.model, config.batch_size, config.data
    region_texts = positions.descriptions if with_descriptions else 0
    return StepFlops(
        vision=batch * _vision(config),
        captions=positions.captions
        * _text(config, positions.caption_positions, positions.caption_pairs),
        descriptions=region_texts
        * _text(config, positions.description_positions, positions.description_pairs),
        decoder=batch * _decoder(config) if model.type == "grain" else 0.0,
        losses=FORWARD_AND_BACKWARD * _logits(config, batch, batch * data.max_regions),
        text_streams=_streams(config, positions),
    )


def image_flops(config: TrainConfig) -> float:
    """Of encoding one image, forward."""
    model = config.model
    patches = (model.image_size // model.vision.patch_size) ** 2
    embedding = 2.0 * patches * 3 * model.vision.patch_size**2 * model.vision.width
    towers = (_vision(config) - 2 * embedding) / FORWARD_AND_BACKWARD + embedding
    return towers + (_decoder(config) / FORWARD_AND_BACKWARD if model.type == "grain" else 0.0)


def _block(positions: float, pairs: float, width: int, mlp_dim: int) -> float:
    """One pre-norm block, forward."""
    linear = 2 * positions * (4 * width**2 + 2 * width * mlp_dim)
    return linear + 4 * pairs * width


def _vision(config: TrainConfig) -> float:
    vision, size = config.model.vision, config.model.image_size
    patches = (size // vision.patch_size) ** 2
    tokens = float(patches + (vision.pooling == "cls"))
    mlp_dim = round(vision.width * vision.mlp_ratio)
    embedding = 2.0 * patches * 3 * vision.patch_size**2 * vision.width
    blocks = vision.depth * _block(tokens, tokens**2, vision.width, mlp_dim)
    head = 0.0
    if config.model.type == "clip":
        head = 2.0 * vision.width * config.model.embed_dim
        if vision.pooling == "map":  # one query attends to all tokens, then an MLP
            head += 2 * (2 * vision.width**2 + 2 * vision.width * mlp_dim)
            head += 2 * tokens * 2 * vision.width**2 + 4 * tokens * vision.width
    return 2 * embedding + FORWARD_AND_BACKWARD * (blocks + head)


def _text(config: TrainConfig, positions: float, pairs: float) -> float:
    text = config.model.text
    mlp_dim = round(text.width * text.mlp_ratio)
    blocks = text.depth * _block(positions, pairs, text.width, mlp_dim)
    return FORWARD_AND_BACKWARD * (blocks + 2 * text.width * config.model.embed_dim)


def _streams(config: TrainConfig, positions: TextPositions) -> float:
    text, count = config.model.text, positions.streamed
    mlp_dim = round(text.width * text.mlp_ratio)
    blocks = text.depth * _block(count, count * positions.streamed_keys, text.width, mlp_dim)
    heads = 2 * positions.streamed_texts * text.width * config.model.embed_dim
    return FORWARD_AND_BACKWARD * (blocks + heads)


def _decoder(config: TrainConfig) -> float:
    model, decoder = config.model, config.model.decoder
    vision, width = model.vision, decoder.width
    tokens = (model.image_size // vision.patch_size) ** 2 + (vision.pooling == "cls")
    queries = decoder.num_queries + 1
    memory = 2.0 * tokens * vision.width * width
    self_attention = 2 * queries * 4 * width**2 + 4 * queries**2 * width
    cross_attention = (
        2 * queries * 2 * width**2 + 2 * tokens * 2 * width**2 + 4 * queries * tokens * width
    )
    mlp = 4 * queries * width * decoder.mlp_dim
    heads = 2 * decoder.num_queries * (2 * width**2 + 4 * width)
    heads *= decoder.depth if config.loss.auxiliary_box_weight else 1
    projections = 2 * queries * width * model.embed_dim
    layers = decoder.depth * (self_attention + cross_attention + mlp)
    return FORWARD_AND_BACKWARD * (memory + layers + heads + projections)


def _logits(config: TrainConfig, images: int, regions: int) -> float:
    pairs = float(images * images)
    if config.model.type == "grain" and config.loss.region_weight:
        pairs += regions * regions
    if config.loss.image_description_weight:
        pairs += images * regions
    return 2 * pairs * config.model.embed_dim
