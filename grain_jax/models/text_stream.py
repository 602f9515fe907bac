"""Texts laid end to end, without the padding of a row each.

Captions and descriptions are short, and padded to a static length they cost the text tower as much
as if they were long. Here the texts of some images lie one after the other in one stream of a
static length, and a token attends to its own text alone, at the positions that it would have in a
row of its own: in a causal tower pooled at end-of-text, which looks at no padding, every embedding
and gradient is that of the padded form. (Krell et al., arXiv 2107.02027, pack sequences into rows,
which leaves a gap at the end of each. A stream has none, and is made by sums alone: no text is
sorted or fitted anywhere.)

A stream is cut into blocks as long as the longest text, so that a text lies in one block or in two
that follow each other; `attention.attend_in_stream` has a block look at itself and the one before,
and a TPU's kernel (`pallas_stream`) has windows of its own.

Each device has a stream of the texts of its own images, and so moves none of theirs. Where a stream
is too short, the longest of its texts are cut, as a tokenizer would cut them to a static length:
they keep their end-of-text, and are counted.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen import spmd
from jaxtyping import Array, Bool, Int, Integer

from grain_jax.models.mesh_axes import num_parts
from grain_jax.models.outputs import Leaf

BLOCK_MULTIPLE = 8  # of a block's tokens, which a TPU stores by eights


@flax.struct.dataclass
class TextStream:
    """The texts of S shards of a batch, N in each, in K blocks of C tokens a shard."""

    tokens: Leaf  # int32 [S, K, C], 0 where no text is
    positions: Leaf  # int32 [S, K, C], of the token in its text; 0 where no text is
    ends: Leaf  # int32 [S, N], place of a text's last token in the K * C of its stream
    lengths: Leaf  # int32 [S, N], tokens of a text, 0 for an empty one
    cut: Leaf  # bool [S, N], texts that lost tokens
    longest: int = flax.struct.field(pytree_node=False)  # tokens that a text may have


def stream_shape(tokens_per_image: float, *, images: int, longest: int) -> tuple[int, int]:
    """(K, C): blocks of a shard of `images`, and the tokens of each.

    There is room for `tokens_per_image` tokens of each image, and a little more, as it is rounded
    up. `longest`: the tokens of the longest text.
    """
    room = math.ceil(tokens_per_image * images)
    blocks = max(room // longest, 1)
    return blocks, BLOCK_MULTIPLE * math.ceil(room / blocks / BLOCK_MULTIPLE)


def num_shards(images: int) -> int:
    """Shards of a batch: one for each device of the mesh that has rows of its own.

    Axes over which a caller has mapped by hand are not counted: it sees its own rows only.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return math.gcd(images, num_parts(mesh, dict(nn.get_logical_axis_rules()).get("batch")))


def kept_lengths(lengths: Int[Array, "S N"], *, room: int, longest: int) -> Int[Array, "S N"]:
    """Lengths that fit into `room` together: each at most the largest number with which all do."""
    limits = jnp.arange(1, longest + 1, dtype=jnp.int32)
    totals = jnp.minimum(lengths[:, :, None], limits[None, None]).sum(axis=1)  # rises along L
    limit = (totals <= room).sum(axis=1, dtype=jnp.int32)
    return jnp.minimum(lengths, limit[:, None])


def lay_end_to_end(tokens: Integer[Array, "S N L"], *, blocks: int, length: int) -> TextStream:
    """The stream of each shard's texts, in order, with the first `blocks` * `length` tokens.

    A text ends with its highest id, wherever in its row that is first; one of zeros is empty.
    """
    shards, count, longest = tokens.shape
    tokens = tokens.astype(jnp.int32)
    room = blocks * length
    filled = (tokens != 0).any(axis=2)
    full = jnp.where(filled, tokens.argmax(axis=2).astype(jnp.int32) + 1, 0)
    lengths = kept_lengths(full, room=room, longest=longest)
    stops = jnp.cumsum(lengths, axis=1, dtype=jnp.int32)  # where the next text starts
    place = jnp.arange(room, dtype=jnp.int32)
    # How many texts have stopped before it is the number of the text at a place.
    stopped: Bool[Array, "S N T"] = stops[:, :, None] <= place[None, None]
    segments = stopped.sum(axis=1, dtype=jnp.int32)

    def of_text(values: Int[Array, "S N"]) -> Int[Array, "S T"]:
        return jnp.take_along_axis(values, jnp.minimum(segments, count - 1), axis=1)

    position = place[None] - of_text(stops - lengths)
    positions = jnp.where(segments < count, position, 0)
    found = jnp.take_along_axis(
        tokens.reshape(shards, count * longest),
        jnp.minimum(segments, count - 1) * longest + positions,
        axis=1,
    )
    last = positions == of_text(lengths) - 1
    found = jnp.where(last, of_text(tokens.max(axis=2)), found)
    found = jnp.where(segments < count, found, 0)
    shape = (shards, blocks, length)
    return TextStream(
        tokens=found.reshape(shape),
        positions=positions.reshape(shape),
        ends=jnp.maximum(stops - 1, 0),
        lengths=lengths,
        cut=lengths < full,
        longest=longest,
    )


def stream_of_batch(
    captions: Integer[Array, "B L"],
    descriptions: Integer[Array, "B M L2"] | None,
    *,
    tokens_per_image: float,
) -> TextStream:
    """Captions and then descriptions of each device's images, with room for `tokens_per_image`."""
    images, longest = captions.shape
    regions = 0
    if descriptions is not None:
        regions, longest = descriptions.shape[1], max(longest, descriptions.shape[2])
    shards = num_shards(images)

    def of_shard(tokens: Array, texts: int) -> Array:
        padding = longest - tokens.shape[-1]
        rows = tokens.reshape(shards, images // shards * texts, tokens.shape[-1])
        return jnp.pad(rows, ((0, 0), (0, 0), (0, padding)))

    parts = [of_shard(captions, 1)]
    if descriptions is not None:
        parts.append(of_shard(descriptions, regions))
    texts = spmd.with_logical_constraint(jnp.concatenate(parts, axis=1), ("batch", None, None))
    blocks, length = stream_shape(tokens_per_image, images=images // shards, longest=longest)
    return lay_end_to_end(texts, blocks=blocks, length=length)


def texts_of_batch(values: Array, *, images: int) -> tuple[Array, Array]:
    """What belongs to the texts of `stream_of_batch`, [S, N, ...]: [B, ...] of captions, and
    [B, M, ...] of descriptions.
    """
    shards, count, *rest = values.shape
    shard = images // shards
    captions, descriptions = values[:, :shard], values[:, shard:]
    regions = count // shard - 1
    return captions.reshape(images, *rest), descriptions.reshape(images, regions, *rest)
