"""What stands for the content of an image in keys: the SHA-256 of its bytes, undecoded.

A source whose images are made from others, as crops are, may have `image_digests`: what stands for
the images of some of its rows, without making them.
"""

import hashlib
from collections.abc import Sequence
from typing import SupportsFloat

import numpy as np
from jaxtyping import UInt8


def image_digest(image: bytes | UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Of encoded bytes, or of the shape and pixels of a drawn image."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    found = hashlib.sha256(f"{image.dtype} {image.shape}\n".encode())
    found.update(np.ascontiguousarray(image).data)
    return found.digest()


def crop_digest(image: bytes, box: Sequence[SupportsFloat], *, rule: str) -> bytes:
    """Of the part `box` of an image whose digest is given; every bit of the numbers counts.

    `rule`: how a crop is made of the box, as the same numbers mean different pixels to different
    sources.
    """
    sides = ",".join(float(side).hex() for side in box)
    return hashlib.sha256(b"crop " + image + f" {sides} {rule}".encode()).digest()
