"""Random batches of the configured shapes, for timing: no data set, no tokenizer."""

import jax.numpy as jnp
import numpy as np

from grain_jax.benchmarking.flops import TextPositions
from grain_jax.config import TrainConfig, validate
from grain_jax.data.batch import Batch
from grain_jax.data.region_coverage import needs_descriptions
from grain_jax.models.text_stream import kept_lengths, stream_shape

REGIONS = (3, 2, 4, 3, 5, 1, 3, 3)  # real regions of each image in turn, 3 on average
MAX_CAPTION = 24  # tokens of the longest caption, end of text included
MAX_DESCRIPTION = 14  # likewise of a description


def synthetic_batch(config: TrainConfig) -> Batch:
    """Pixels, texts and boxes of one global batch; 1 to 5 real regions an image.

    Captions have 4 to 24 tokens and descriptions 4 to 14, then padding.
    """
    rng = np.random.default_rng(0)
    size, count, most = config.model.image_size, config.batch_size, config.data.max_regions
    regions = np.minimum(np.resize(REGIONS, count), most)
    mask = np.arange(most) < regions[:, None]
    corner = rng.uniform(0.2, 0.7, (count, most, 2))
    extent = rng.uniform(0.1, 0.3, (count, most, 2))
    boxes = np.concatenate([corner, extent], -1) * mask[..., None]
    length = config.data.description_length
    descriptions = _tokens(rng, config, count * most, length, MAX_DESCRIPTION)
    descriptions = descriptions.reshape(count, most, -1) * mask[..., None]
    return Batch(
        images=rng.integers(0, 256, (count, size, size, 3), np.uint8),
        captions=_tokens(rng, config, count, config.data.caption_length, MAX_CAPTION),
        caption_key=np.arange(count, dtype=np.uint32),
        descriptions=descriptions.astype(np.int32),
        description_key=np.arange(count * most, dtype=np.uint32).reshape(count, most),
        boxes=boxes.astype(np.float32),
        region_mask=mask,
        index=np.arange(count, dtype=np.int32),
        replaced=np.zeros(count, bool),
        truncated=np.zeros(count, np.int32),
    )


def text_positions(batch: Batch, config: TrainConfig, *, num_shards: int = 1) -> TextPositions:
    """Numbers of texts and positions of a batch that are text and not padding.

    Descriptions are counted where a loss needs them, so that the text tower encodes them. Of texts
    laid end to end those that are encoded, on devices of which `num_shards` have rows.
    """
    captions = (np.asarray(batch.captions) != 0).sum(-1)
    descriptions = (np.asarray(batch.descriptions) != 0).sum(-1)
    mask = np.asarray(batch.region_mask)
    if not needs_descriptions(config):
        descriptions, mask = descriptions[:, :0], mask[:, :0]
    if config.model.text_tokens_per_image:
        captions, descriptions = _kept(captions, descriptions, config, num_shards)
    descriptions = descriptions[mask]
    return TextPositions(
        captions=float(len(captions)),
        caption_positions=float(captions.mean()),
        caption_pairs=float((captions**2).mean()),
        descriptions=float(len(descriptions)),
        description_positions=float(descriptions.mean()) if len(descriptions) else 0.0,
        description_pairs=float((descriptions**2).mean()) if len(descriptions) else 0.0,
    )


def _kept(
    captions: np.ndarray, descriptions: np.ndarray, config: TrainConfig, num_shards: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each text, [B] and [B, M], that are left in the streams of a step."""
    parts, (images, regions) = config.optim.grad_cache_chunks, descriptions.shape
    longest = config.data.caption_length
    if regions:
        longest = max(longest, config.data.description_length)
    share = images // (num_shards * parts)
    blocks, length = stream_shape(config.model.text_tokens_per_image, images=share, longest=longest)
    lengths = np.concatenate([captions[:, None], descriptions], axis=1)
    # Each of k micro-batches has every k-th of a device's rows.
    streams = lengths.reshape(num_shards, share, parts, 1 + regions).swapaxes(1, 2)
    kept = kept_lengths(
        jnp.asarray(streams.reshape(num_shards * parts, -1)), room=blocks * length, longest=longest
    )
    found = np.asarray(kept).reshape(streams.shape).swapaxes(1, 2).reshape(lengths.shape)
    return found[:, 0], found[:, 1:]


def _tokens(
    rng: np.random.Generator, config: TrainConfig, count: int, length: int, longest: int
) -> np.ndarray:
    """Token ids [count, length]; the highest id ends a text, 0 pads."""
    vocabulary = config.model.text.vocab_size
    tokens = rng.integers(1, vocabulary - 1, (count, length), np.int32)
    ends = rng.integers(3, min(longest, length), count)[:, None]
    place = np.arange(length)
    found = np.where(place < ends, tokens, np.where(place == ends, vocabulary - 1, 0))
    return found.astype(np.int32)


def validate_without_data(config: TrainConfig) -> None:
    """Checks the settings of a step on random weights and a random batch, for which a data set need
    not be named. Raises ValueError.
    """
    if config.pretrained:
        raise ValueError(
            f"pretrained = {config.pretrained!r}: this takes random weights. Add --pretrained= and "
            "the settings of its towers."
        )
    if config.data.dataset == "tfds" and not (config.data.data_dir or config.data.mixture):
        config.data.data_dir = "not read"
    validate(config)
