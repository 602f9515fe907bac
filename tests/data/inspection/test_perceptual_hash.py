"""Hashes of batches are those of ImageHash, and close pairs are what comparing all pairs finds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grain_jax.data.inspection import perceptual_hash as module
from grain_jax.data.inspection.near_duplicates import MAX_DISTANCE
from grain_jax.data.inspection.perceptual_hash import HashIndex, perceptual_hashes


def test_hashes_are_those_of_imagehash():
    imagehash = pytest.importorskip("imagehash")
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (20, 9, 9, 3)).astype(np.uint8)
    pixels = np.stack([np.asarray(Image.fromarray(one).resize((64, 64))) for one in noise])
    expected = [
        int.from_bytes(np.packbits(imagehash.phash(Image.fromarray(one)).hash.ravel()).tobytes())
        for one in pixels
    ]
    assert perceptual_hashes(pixels).tolist() == expected


@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3),
    flips=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 63), max_size=9)),
        min_size=2,
        max_size=25,
    ),
    cut=st.integers(1, 24),
    distance=st.integers(0, MAX_DISTANCE),
    most=st.integers(1, 9),
)
def test_each_close_pair_is_found_once(seeds, flips, cut, distance, most):
    hashes = []
    for seed, positions in flips:
        value = seeds[seed % len(seeds)]
        for position in positions:
            value ^= 1 << position
        hashes.append(value)
    own, others = hashes[:cut], hashes[cut:]
    expected = sorted(
        (i, j, (a ^ b).bit_count())
        for (i, a), (j, b) in itertools.product(enumerate(own), enumerate(others))
        if (a ^ b).bit_count() <= distance
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CANDIDATES", most)
        index = HashIndex(np.array(own, np.uint64), distance)
        found = [
            row
            for block in index.pairs(np.array(others, np.uint64))
            for row in np.stack(block, axis=1).tolist()
        ]
    assert sorted(map(tuple, found)) == expected


def test_a_distance_that_would_compare_everything_is_refused():
    with pytest.raises(ValueError, match="8 bits is not from 0 to 7"):
        HashIndex(np.zeros(1, np.uint64), 8)
