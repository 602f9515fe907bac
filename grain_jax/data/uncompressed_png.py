"""Pixels as an uncompressed PNG, which every reader of PNG opens and this one without decoding.

zlib takes data as it is in "stored" blocks (RFC 1951, section 3.2.4). Here each row of pixels is
one block, with PNG's filter 0 ("none"), so that rows lie in the file at equal distances: the pixels
are a view of the bytes, in the order of an array [H, W, 3].
"""

import functools
import struct
import zlib

import numpy as np
from jaxtyping import UInt8

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ZLIB_HEADER = b"\x78\x01"  # deflate, window of 32 KiB, fastest
_COLOUR = bytes((8, 2, 0, 0, 0))  # 8 bits, RGB, deflate, the standard filters, not interlaced
_PIXELS_AT = 43  # signature, IHDR, and the start of IDAT with its zlib header
_AROUND = _PIXELS_AT + 20  # and behind the rows: Adler-32, CRC of IDAT, IEND
_BEFORE_ROW = 6  # of a row: header of its block (5), filter (1)
MAX_WIDTH = (2**16 - 2) // 3  # pixels of a row that fit into one block


def uncompressed_size(height: int, width: int) -> int:
    """Bytes of the file of an image."""
    return _AROUND + height * (_BEFORE_ROW + 3 * width)


def encode_uncompressed(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The PNG file of an image of at most `MAX_WIDTH` pixels in a row."""
    height, width, _ = pixels.shape
    assert pixels.dtype == np.uint8
    assert 0 < width <= MAX_WIDTH
    assert height > 0
    rows = np.empty((height, _BEFORE_ROW + 3 * width), np.uint8)
    rows[:, :_BEFORE_ROW] = _row_starts(height, width)
    rows[:, _BEFORE_ROW:] = pixels.reshape(height, 3 * width)
    sum_of_rows = zlib.adler32(rows[:, _BEFORE_ROW - 1 :].tobytes())  # with the filters
    data = _ZLIB_HEADER + rows.tobytes() + struct.pack(">I", sum_of_rows)
    header = struct.pack(">II", width, height) + _COLOUR
    return _SIGNATURE + b"".join(
        _chunk(*chunk) for chunk in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


def view_uncompressed(data: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """The pixels of such a file as a read-only view of `data`; None for every other file.

    A PNG of another writer with the same layout is one too: the layout decides on the pixels.
    Checksums are not compared; those of the records on disk are.
    """
    if len(data) <= _AROUND or data[:16] != _SIGNATURE + b"\0\0\0\x0dIHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    if data[24:29] != _COLOUR or not 0 < width <= MAX_WIDTH:
        return None
    stride = _BEFORE_ROW + 3 * width
    if len(data) != _AROUND + height * stride:
        return None
    length = struct.pack(">I", len(_ZLIB_HEADER) + height * stride + 4)
    if data[33:_PIXELS_AT] != length + b"IDAT" + _ZLIB_HEADER:
        return None
    rows = np.frombuffer(data, np.uint8, height * stride, _PIXELS_AT).reshape(height, stride)
    if not np.array_equal(rows[:, :_BEFORE_ROW], _row_starts(height, width)):
        return None
    return rows[:, _BEFORE_ROW:].reshape(height, width, 3)


@functools.lru_cache(maxsize=256)  # images of one data set have few sizes
def _row_starts(height: int, width: int) -> UInt8[np.ndarray, "H 6"]:
    """What stands before the pixels of each row; not to be changed."""
    length = 1 + 3 * width
    start = struct.pack("<BHHB", 0, length, length ^ 0xFFFF, 0)
    starts = np.tile(np.frombuffer(start, np.uint8), (height, 1))
    starts[-1, 0] = 1  # the last block of the stream
    return starts


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
