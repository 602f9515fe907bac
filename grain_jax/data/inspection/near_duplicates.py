"""Images that look alike: perceptual hashes of 64 bits that differ in a few bits.

The search is exact. Two hashes that differ in at most d bits are equal in one of d + 1 bands of
bits, so that only hashes that share a band are compared, in blocks.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from grain_jax.data.transforms import fit_image

HASHED_SIDE = 64  # pixels that an image is shrunk to before its hash; the hash itself takes 32
BITS = 64
MAX_DISTANCE = 7  # bits; more bands than 8 would be of less than 8 bits, and compare everything
BLOCK = 2_048  # hashes that are compared with as many others at once
MAX_LINKS = 1_000_000  # pairs in memory before they are merged into groups


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of images that look alike; positions in the order that hashes were given in."""

    groups: tuple[tuple[int, ...], ...]  # at least two images each, largest first

    @property
    def images(self) -> int:
        """Images that look like another."""
        return sum(map(len, self.groups))


def can_hash() -> bool:
    """Whether the optional library ImageHash is installed."""
    try:
        import imagehash  # noqa: F401
    except ImportError:
        return False
    return True


def perceptual_hash(image: bytes) -> int:
    """64-bit pHash of an encoded image, upright, its aspect ignored.

    Raises `ImageError` where it cannot be decoded, and ImportError without ImageHash.
    """
    import imagehash
    from PIL import Image

    pixels = fit_image(image, HASHED_SIDE, interpolation="bicubic")
    bits = imagehash.phash(Image.fromarray(pixels)).hash
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def near_duplicates(hashes: UInt64[np.ndarray, "N"], max_distance: int) -> NearDuplicates:
    """Groups of images whose hashes are linked by steps of at most `max_distance` bits.

    Raises ValueError for a distance outside 0 to `MAX_DISTANCE`.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"A distance of {max_distance} bits is not from 0 to {MAX_DISTANCE}.")
    distinct, inverse = np.unique(hashes, return_inverse=True)
    labels = _linked(distinct, max_distance)[inverse]
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    groups = [tuple(group.tolist()) for group in np.split(order, cuts) if len(group) > 1]
    return NearDuplicates(tuple(sorted(groups, key=lambda group: (-len(group), group))))


def _linked(hashes: UInt64[np.ndarray, "H"], max_distance: int) -> Int[np.ndarray, "H"]:
    """A label of each distinct hash, equal for those that steps link."""
    links: list[np.ndarray] = []
    labels, waiting = np.arange(len(hashes)), 0
    edges = np.linspace(0, BITS, max_distance + 2).round().astype(int)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if high - low == BITS:  # distance 0: distinct hashes have no links
            break
        bands = (hashes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        order = np.argsort(bands, kind="stable")
        cuts = np.flatnonzero(np.diff(bands[order])) + 1
        starts, stops = np.append(0, cuts), np.append(cuts, len(hashes))
        several = stops - starts > 1
        for start, stop in zip(starts[several], stops[several], strict=True):
            for pairs in _near_pairs(hashes, order[start:stop], max_distance):
                links.append(pairs)
                waiting += len(pairs)
                if waiting > MAX_LINKS:
                    labels, links, waiting = _joined(labels, links), [], 0
    return _joined(labels, links)


def _near_pairs(
    hashes: UInt64[np.ndarray, "H"], members: Int[np.ndarray, "G"], max_distance: int
) -> list[Int[np.ndarray, "P 2"]]:
    """Pairs of members whose hashes differ in at most `max_distance` bits."""
    found = []
    for first in range(0, len(members), BLOCK):
        rows = members[first : first + BLOCK]
        for second in range(first, len(members), BLOCK):
            columns = members[second : second + BLOCK]
            distance = np.bitwise_count(hashes[rows][:, None] ^ hashes[columns][None, :])
            near = np.argwhere(distance <= max_distance)
            near = near[rows[near[:, 0]] != columns[near[:, 1]]]
            if len(near):
                found.append(np.stack([rows[near[:, 0]], columns[near[:, 1]]], axis=1))
    return found


def _joined(labels: Int[np.ndarray, "H"], links: list[np.ndarray]) -> Int[np.ndarray, "H"]:
    """The labels after the pairs in `links` have been linked as well."""
    if not links:
        return labels
    first, second = labels[np.concatenate(links)].T
    ones = np.ones(len(first), bool)  # repeated pairs stay true
    graph = coo_array((ones, (first, second)), shape=(len(labels), len(labels)))
    return connected_components(graph, directed=False)[1][labels]
