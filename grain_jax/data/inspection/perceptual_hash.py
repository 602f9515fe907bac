"""Perceptual hashes of many images at once, and the pairs of two sets that are close.

The hash is pHash: which of the 8 x 8 lowest frequencies of the cosine transform of a gray image of
32 x 32 pixels are above their median. It is that of the library ImageHash, bit by bit.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import scipy.fft
from jaxtyping import Int, UInt8, UInt64
from PIL import Image

from grain_jax.data.inspection.near_duplicates import BITS, MAX_DISTANCE

SIDE, FREQUENCIES = 32, 8
MAX_CANDIDATES = 1 << 22  # pairs that are compared at once: bounds the memory


def perceptual_hashes(pixels: UInt8[np.ndarray, "N H W 3"]) -> UInt64[np.ndarray, "N"]:
    """The 64-bit pHash of each image."""
    gray = np.empty((len(pixels), SIDE, SIDE), np.float64)
    for row, image in enumerate(pixels):
        shrunk = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        gray[row] = np.asarray(shrunk)
    low = scipy.fft.dctn(gray, axes=(1, 2))[:, :FREQUENCIES, :FREQUENCIES].reshape(-1, BITS)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


class HashIndex:
    """Finds the hashes of a set that are close to others. The search is exact.

    Two hashes that differ in at most d bits are equal in one of d + 1 bands of bits, so that only
    hashes that share a band are compared. Raises ValueError for a distance outside 0 to
    `MAX_DISTANCE`.
    """

    def __init__(self, hashes: UInt64[np.ndarray, "T"], max_distance: int) -> None:
        if not 0 <= max_distance <= MAX_DISTANCE:
            raise ValueError(f"A distance of {max_distance} bits is not from 0 to {MAX_DISTANCE}.")
        self._hashes, self._max_distance = hashes, max_distance
        edges = np.linspace(0, BITS, max_distance + 2).round().astype(int).tolist()
        self._masks = [
            np.uint64((1 << high) - (1 << low)) for low, high in itertools.pairwise(edges)
        ]
        self._orders = [np.argsort(hashes & mask, kind="stable") for mask in self._masks]
        self._sorted = [
            (hashes & mask)[order] for mask, order in zip(self._masks, self._orders, strict=True)
        ]

    def pairs(
        self, others: UInt64[np.ndarray, "N"]
    ) -> Iterator[tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"], Int[np.ndarray, "P"]]]:
        """Blocks of (row of the set, row of `others`, bits that differ), each pair once."""
        for band, mask in enumerate(self._masks):
            values = others & mask
            first = np.searchsorted(self._sorted[band], values, side="left")
            counts = np.searchsorted(self._sorted[band], values, side="right") - first
            shared = np.flatnonzero(counts)
            for rows in _in_blocks(shared, counts[shared]):
                own = counts[rows]
                before = np.cumsum(own) - own
                within = np.arange(own.sum()) - np.repeat(before, own)
                found = self._orders[band][np.repeat(first[rows], own) + within]
                other = np.repeat(rows, own)
                differ = self._hashes[found] ^ others[other]
                bits = np.bitwise_count(differ)
                near = bits <= self._max_distance
                for earlier in self._masks[:band]:  # which have found the pair
                    near &= (differ & earlier) != 0
                if near.any():
                    yield found[near], other[near], bits[near].astype(np.int64)


def _in_blocks(
    rows: Int[np.ndarray, "R"], counts: Int[np.ndarray, "R"]
) -> Iterator[Int[np.ndarray, "B"]]:
    """Runs of rows whose counts sum up to `MAX_CANDIDATES` at most, but for single rows."""
    totals = np.cumsum(counts)
    start = 0
    while start < len(rows):
        done = int(totals[start - 1]) if start else 0
        stop = int(np.searchsorted(totals, done + MAX_CANDIDATES, side="right"))
        stop = max(stop, start + 1)
        yield rows[start:stop]
        start = stop
