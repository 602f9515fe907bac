"""Uncompressed PNGs: other readers see the same pixels, and nothing else is taken for one."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from grain_jax.data.transforms import ImageError, decode_image, fit_image, image_shape
from grain_jax.data.uncompressed_png import (
    MAX_WIDTH,
    encode_uncompressed,
    uncompressed_size,
    view_uncompressed,
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_pillow_reads_the_pixels_and_the_view_has_them(height, width, seed):
    pixels = noise(height, width, seed)
    data = encode_uncompressed(pixels)
    assert len(data) == uncompressed_size(height, width)
    Image.open(io.BytesIO(data)).verify()  # which compares every checksum of a chunk
    opened = Image.open(io.BytesIO(data))
    assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", (width, height))
    np.testing.assert_array_equal(np.asarray(opened), pixels)
    np.testing.assert_array_equal(view_uncompressed(data), pixels)
    assert image_shape(data) == (height, width)


def test_the_stream_is_one_that_zlib_inflates():
    pixels = noise(7, 5)
    data = encode_uncompressed(pixels)
    (length,) = struct.unpack(">I", data[33:37])
    assert data[37:41] == b"IDAT"
    stream = zlib.decompressobj()
    rows = stream.decompress(data[41 : 41 + length])
    assert stream.eof  # its checksum is compared there
    assert not stream.unused_data
    rows = np.frombuffer(rows, np.uint8).reshape(7, 16)
    assert not rows[:, 0].any()  # PNG's filter "none"
    np.testing.assert_array_equal(rows[:, 1:].reshape(7, 5, 3), pixels)


def test_the_widest_row():
    pixels = noise(2, MAX_WIDTH)
    opened = Image.open(io.BytesIO(encode_uncompressed(pixels)))
    np.testing.assert_array_equal(np.asarray(opened), pixels)
    with pytest.raises(AssertionError):
        encode_uncompressed(noise(1, MAX_WIDTH + 1))


def test_a_view_copies_nothing():
    data = encode_uncompressed(noise(6, 4))
    view = view_uncompressed(data)
    assert np.shares_memory(view, np.frombuffer(data, np.uint8))
    assert not view.flags.writeable
    assert decode_image(data) is not None
    assert np.shares_memory(decode_image(data), np.frombuffer(data, np.uint8))
    whole = encode_uncompressed(noise(6, 6))
    fitted = fit_image(whole, 6, interpolation="bicubic")
    assert np.shares_memory(fitted, np.frombuffer(whole, np.uint8))


@settings(max_examples=300)
@given(st.data())
def test_a_changed_byte_is_no_other_image(data):
    """Where the view takes it, it is what Pillow would see, but for checksums."""
    encoded = bytearray(encode_uncompressed(noise(3, 4)))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    view = view_uncompressed(bytes(encoded))
    of_rows = place >= 43 and place < 43 + 3 * 18 and (place - 43) % 18 >= 6
    of_checksums = 29 <= place < 33 or place >= 43 + 3 * 18
    assert (view is not None) == (of_rows or of_checksums)


@given(st.binary(max_size=300))
def test_other_bytes_are_none(data):
    assert view_uncompressed(data) is None
    start = encode_uncompressed(noise(3, 4))[: len(data)]
    assert view_uncompressed(start + data) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_images_of_others_are_none_and_decoded_as_before(kind):
    out = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(out, kind)
    assert view_uncompressed(out.getvalue()) is None
    np.testing.assert_array_equal(
        decode_image(out.getvalue()), np.asarray(Image.open(out).convert("RGB"))
    )


def test_a_truncated_one_is_an_error():
    data = encode_uncompressed(noise(8, 8))
    for length in (10, 40, 100, len(data) - 40):
        with pytest.raises(ImageError):
            decode_image(data[:length])
