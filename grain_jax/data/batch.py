"""The batch of a training step."""

from typing import no_type_check

import flax.struct
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt32


@no_type_check  # under tree_map its leaves become device arrays, shardings or shape structs
@flax.struct.dataclass
class Batch:
    """The input of one training step, with static shapes.

    `caption_key` and `description_key` are hashes of the tokens, by which the losses find
    duplicates: texts with the same tokens have the same key. Padded regions have `region_mask`
    False, zero boxes, zero keys and all-zero tokens.
    """

    images: UInt8[np.ndarray, "B H W 3"]  # normalised on the device
    captions: Int[np.ndarray, "B L"]  # int32 token ids, 0 after end-of-text
    caption_key: UInt32[np.ndarray, "B"]
    descriptions: Int[np.ndarray, "B M L"]
    description_key: UInt32[np.ndarray, "B M"]
    boxes: Float[np.ndarray, "B M 4"]  # float32 cxcywh in [0, 1]
    region_mask: Bool[np.ndarray, "B M"]
    index: Int[np.ndarray, "B"]  # int32 index of the record in its source
    replaced: Bool[np.ndarray, "B"]  # True where a corrupt image was replaced by another
    truncated: Int[np.ndarray, "B"]  # int32 number of texts of this sample cut to the static length
