"""Images that look alike are found as comparing all pairs finds them."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prepared_records import noise_image

from grain_jax.data.inspection import near_duplicates as module
from grain_jax.data.inspection.near_duplicates import (
    MAX_DISTANCE,
    near_duplicates,
    perceptual_hash,
)
from grain_jax.data.transforms import ImageError


def groups_of(hashes: list[int], distance: int) -> list[tuple[int, ...]]:
    """By comparing all pairs, and painting over."""
    colour = list(range(len(hashes)))
    for a, b in itertools.combinations(range(len(hashes)), 2):
        if (hashes[a] ^ hashes[b]).bit_count() <= distance:
            colour = [colour[a] if each == colour[b] else each for each in colour]
    found = [
        tuple(i for i, each in enumerate(colour) if each == one) for one in dict.fromkeys(colour)
    ]
    return sorted((g for g in found if len(g) > 1), key=lambda group: (-len(group), group))


@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    flips=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 63), max_size=9)), max_size=25
    ),
    distance=st.integers(0, MAX_DISTANCE),
    block=st.integers(1, 6),
)
def test_as_all_pairs(seeds, flips, distance, block) -> None:
    hashes = list(seeds)
    for which, bits in flips:
        hashes.append(hashes[which % len(seeds)])
        for bit in bits:
            hashes[-1] ^= 1 << bit
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(module, "BLOCK", block)
        changed.setattr(module, "MAX_LINKS", block)
        found = near_duplicates(np.asarray(hashes, np.uint64), distance)
    assert list(found.groups) == groups_of(hashes, distance)
    assert found.images == sum(map(len, found.groups))


def test_many_links_of_one_group() -> None:
    """More pairs than fit a byte, which a sum of ones in a byte would take for none."""
    base = np.uint64(0x0123456789ABCDEF)
    hashes = base ^ np.arange(256, dtype=np.uint64)
    assert near_duplicates(hashes, MAX_DISTANCE).groups == (tuple(range(256)),)


def test_other_distances_are_refused() -> None:
    for distance in (-1, MAX_DISTANCE + 1):
        with pytest.raises(ValueError, match=f"{distance} bits"):
            near_duplicates(np.zeros(2, np.uint64), distance)


def test_the_hash_is_that_of_the_library() -> None:
    imagehash = pytest.importorskip("imagehash")
    for seed in range(20):
        data = noise_image(seed, (400, 300), "JPEG")
        expected = int(str(imagehash.phash(Image.open(io.BytesIO(data)))), 16)
        assert (perceptual_hash(data) ^ expected).bit_count() <= 4  # shrunk in two steps


def test_a_smaller_copy_looks_alike_and_another_image_does_not() -> None:
    pytest.importorskip("imagehash")
    hashes = [perceptual_hash(noise_image(seed, (400, 300), "JPEG")) for seed in range(10)]
    hashes += [perceptual_hash(noise_image(seed, (120, 90), "JPEG")) for seed in range(10)]
    found = near_duplicates(np.asarray(hashes, np.uint64), 3)
    assert set(found.groups) == {(i, i + 10) for i in range(10)}


def test_an_image_that_does_not_decode_is_named() -> None:
    pytest.importorskip("imagehash")
    with pytest.raises(ImageError):
        perceptual_hash(b"no image")
