"""Every kind of image file that people have: orientations, colour modes, bit depths, damage."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from grain_jax.data.build_dataset import build_split
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.tfds_records import RecordSource
from grain_jax.data.transforms import ImageError, decode_image, fit_image, image_shape, upright_rgb

ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(image: Image.Image, kind: str, orientation: int, **options) -> bytes:
    """The stored pixels of `image`, to be shown turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, kind, exif=exif, **options)


# What each orientation says of the stored rows and columns (EXIF 2.3, tag 0x0112).
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}
KINDS = {
    "TIFF": {},
    "TIFF, compressed": {"compression": "tiff_lzw"},
    "PNG": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 100, "subsampling": 0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", SHOWN)
def test_each_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = np.zeros((16, 24, 3), np.uint8)  # blocks of 8, which JPEG keeps
    stored[:8, :8], stored[:8, 8:16], stored[8:, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    data = turned(Image.fromarray(stored), kind.partition(",")[0], orientation, **KINDS[kind])
    shown = SHOWN[orientation](stored)
    pixels = decode_image(data)
    assert pixels.shape == shown.shape
    assert image_shape(data) == shown.shape[:2]
    np.testing.assert_allclose(pixels.astype(int), shown, atol=4 if kind == "JPEG" else 0)
    # One that somebody opened, and perhaps looked at, before.
    opened = Image.open(io.BytesIO(data))
    opened.getexif()
    np.testing.assert_array_equal(np.asarray(upright_rgb(opened)), pixels)
    np.testing.assert_array_equal(
        fit_image(data, 8, interpolation="bicubic"), fit_image(pixels, 8, interpolation="bicubic")
    )


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG"])
def test_prepare_stores_a_turned_image_upright_with_its_boxes(tmp_path: Path, kind: str) -> None:
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:, :8] = 255  # a third at the left; turned a quarter clockwise, at the top
    (tmp_path / "a").write_bytes(turned(Image.fromarray(stored), kind, 6))
    (tmp_path / "in.jsonl").write_text(
        '{"image": "a", "captions": ["x"], "bbox_unit": "pixel",'
        ' "regions": [{"bbox": [0, 0, 16, 8], "description": "the white part"}]}\n',
        encoding="utf-8",
    )
    plan = DatasetBuildSpec("jsonl", tmp_path / "in.jsonl", tmp_path, tmp_path / "out")
    build_split(plan, workers=1)
    record = RecordSource(tmp_path / "out", "train")[0]
    assert record.regions[0].box_xyxy == pytest.approx((0, 0, 1, 1 / 3))
    pixels = decode_image(record.image)
    assert pixels.shape == (24, 16, 3)
    assert pixels[:8].min() > 250
    assert pixels[8:].max() < 5


# Colour modes and bit depths


def tiff(values: np.ndarray, bits: int, *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A TIFF of one row of gray. `photometric` 0: the value 0 is white."""
    data = values.tobytes()
    width = values.size if bits != 12 else values.size * 8 // 12
    tags = [
        *[(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 0)],
        *[(277, 1), (278, 1), (279, len(data)), (339, sample_format)],
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags
    )
    count = struct.pack("<H", len(tags))
    return b"II*\0" + struct.pack("<I", 8) + count + entries + struct.pack("<I", 0) + data


def png(pixels: bytes, size: tuple[int, int], depth: int, colour: int, **chunks: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    content = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


def row(data: bytes) -> list[int]:
    pixels = decode_image(data)
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()  # gray
    return pixels[0, :, 0].tolist()


U16 = np.array([0, 255, 32768, 65535], "<u2")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(U16, 16), [0, 0, 128, 255]),
        (tiff(U16, 16, photometric=0), [255, 255, 127, 0]),
        (tiff(np.array([0, 100, 255], "u1"), 8, photometric=0), [255, 155, 0]),
        (tiff(np.array([0x00, 0x0F, 0xFF], "u1"), 12), [0, 255]),  # 0 and 4095
        (tiff(np.array([0, 65535], "<i4"), 32, sample_format=2), [0, 255]),
        (tiff(np.array([0, 51, 255], "<i4"), 32, sample_format=2), [0, 51, 255]),
        (tiff(np.array([0, 0.2, 1], "<f4"), 32, sample_format=3), [0, 51, 255]),
        (tiff(np.array([-0.01, 0.2, 0.6], "<f4"), 32, sample_format=3), [0, 51, 153]),
        (tiff(np.array([0, 51, 255], "<f4"), 32, sample_format=3), [0, 51, 255]),
        (encoded(Image.fromarray(U16[None]), "PNG"), [0, 0, 128, 255]),
        # Nearly black stays so: its depth counts, not its content.
        (encoded(Image.fromarray(U16[None, :2]), "PNG"), [0, 0]),
        (png(b"\0" + bytes([0x1B]), (4, 1), 2, 0), [0, 85, 170, 255]),
        (png(b"\0" + struct.pack(">2H", 9, 0), (2, 1), 16, 0, tRNS=b"\0\x09"), [255, 0]),
    ],
)
def test_gray_of_any_depth_is_scaled(data: bytes, expected: list[int]) -> None:
    assert row(data) == expected


@pytest.mark.parametrize("values", [[0, 1e6], [np.nan, 1], [0, np.inf]])
def test_gray_without_a_known_white_is_refused(values: Sequence[float]) -> None:
    with pytest.raises(ImageError, match="expected 0 to 1, 255 or 65535"):
        decode_image(tiff(np.array(values, "<f4"), 32, sample_format=3))


def test_sixteen_bits_of_colour_are_scaled() -> None:
    colour = struct.pack(">3H", 0x8000, 0x00FF, 0xFFFF)
    assert decode_image(png(b"\0" + colour, (1, 1), 16, 2))[0, 0].tolist() == [128, 0, 255]


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "CMYK", "RGBX", "PA", "P"])
def test_colours_survive_their_mode(mode: str) -> None:
    colour = (204, 51, 51)  # which the palette has
    image = Image.new("RGB", (8, 8), colour)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    else:
        image = image.convert("RGBA").convert("P").convert("PA") if mode == "PA" else image
        image = image.convert(mode)
    pixels = decode_image(encoded(image, "TIFF"))
    assert abs(pixels.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    pixels = decode_image(encoded(first, kind, save_all=True, append_images=[second]))
    assert abs(pixels.astype(int) - (255, 0, 0)).max() <= 4


def test_profiles_and_gamma_are_not_applied() -> None:
    pixels = np.full((2, 2, 3), (200, 100, 50), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(Image.fromarray(pixels), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(decode_image(data), pixels)
    raw = b"\0" + bytes([200, 100, 50])
    plain = png(raw, (1, 1), 8, 2, gAMA=struct.pack(">I", 100_000))
    assert decode_image(plain)[0, 0].tolist() == [200, 100, 50]


@pytest.mark.torch
def test_the_exported_processor_decodes_alike() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from grain_jax.formats.torch_grain import processing_grain

    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    files = [turned(Image.fromarray(pixels), "TIFF", orientation) for orientation in SHOWN]
    files += [tiff(U16, 16, photometric=0), tiff(np.array([0, 15, 255], "u1"), 12)]
    files += [tiff(np.array([0, 0.2, 1], "<f4"), 32, sample_format=3)]
    files += [encoded(Image.fromarray(U16[None, :2]), "PNG")]
    for data in files:
        opened = Image.open(io.BytesIO(data))
        opened.getexif()
        theirs = np.asarray(processing_grain.upright_rgb(opened))
        np.testing.assert_array_equal(theirs, decode_image(data))


# Shapes and damage


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, (9, 9, 9)), "PNG")
    assert image_shape(data) == size[::-1]
    assert (fit_image(data, 16, interpolation="bicubic") == 9).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (bytes(100), "all zero bytes"),
        (b"<!DOCTYPE html><html><body>404", "an HTML page, so the download failed"),
        (b'\n<svg width="3">', "an SVG drawing"),
        (b'<?xml version="1.0"?><Error>denied', "an XML text"),
        (b'{"error": "not found"}', "a JSON text"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"%PDF-1.7", "PDF"),
        (b"\x1f\x8b\x08\0", "gzip"),
    ],
)
def test_files_that_are_not_images_are_named(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_image(data)


def test_the_format_is_detected_by_content(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.jpg", "PNG")
    assert decode_image((tmp_path / "a.jpg").read_bytes())[0, 0].tolist() == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # which Pillow says, and goes on
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0garbage", b"Exif\0\0"]
)
def test_a_jpeg_with_damaged_exif_is_read(exif: bytes) -> None:
    data = encoded(Image.new("RGB", (8, 4), "white"), "JPEG", exif=exif)
    assert decode_image(data).shape == (4, 8, 3)
    assert image_shape(data) == (4, 8)
