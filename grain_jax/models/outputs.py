"""What the model returns.

Embeddings are float32 and not normalised; boxes are float32 (cx, cy, w, h) in [0, 1] of the image.
"""

from typing import TYPE_CHECKING, Any

import flax.struct
import jax

# Tree maps put shapes, shardings or None where the arrays are, so the type cannot hold at run time.
if TYPE_CHECKING:
    Leaf = jax.Array
else:
    Leaf = Any


@flax.struct.dataclass
class DecoderOutput:
    """What the region decoder makes of the image tokens."""

    image_embed: Leaf  # [B, E]
    region_embed: Leaf  # [B, Q, E]
    boxes: Leaf  # [B, Q, 4]
    auxiliary_boxes: Leaf | None = None  # [B, A, Q, 4] of the A earlier layers, if asked for


@flax.struct.dataclass
class ImageOutput:
    """The image side. Everything about regions is None for the CLIP baseline."""

    tokens: Leaf  # [B, P, D] of the vision tower, CLS first, in the compute dtype
    image_embed: Leaf  # [B, E]
    region_embed: Leaf | None = None  # [B, Q, E]
    boxes: Leaf | None = None  # [B, Q, 4]
    auxiliary_boxes: Leaf | None = None  # [B, A, Q, 4] of the A earlier layers, if asked for


@flax.struct.dataclass
class Output:
    """A batch of images with their texts."""

    image: ImageOutput
    caption_embed: Leaf  # [B, E]
    logit_scale: Leaf  # [], already exponentiated and at most `max_logit_scale`
    region_logit_scale: Leaf  # [], the same unless the model learns one of its own
    logit_bias: Leaf | None = None  # []; None where images and captions meet in a softmax
    description_embed: Leaf | None = None  # [B, M, E]; None where no descriptions were given
    description_kept: Leaf | None = None  # [B, M], real and within the capacity; None: all were
    # Of texts laid end to end (None: they were not): tokens of an image's texts, [B], and how many
    # of its texts were cut for lack of room, [B]; int32
    text_tokens: Leaf | None = None
    texts_cut: Leaf | None = None
