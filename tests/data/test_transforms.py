"""Transforms: decoding anything, the official resize, and boxes that stay on what they bound."""

import io
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from grain_jax.boxes import box_iou, box_to_cxcywh
from grain_jax.config import DataConfig
from grain_jax.data import transforms
from grain_jax.data.records import Region
from grain_jax.data.transforms import (
    FULL,
    IMAGE_FORMATS,
    ImageError,
    Preprocessing,
    Window,
    center_window,
    decode_image,
    fit_image,
    image_shape,
    random_window,
    select_regions,
    training_window,
)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


# Decoding


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (6, 4), "white").convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    pixels = decode_image(encoded(image, kind))
    assert pixels.shape == (4, 6, 3)
    assert pixels.dtype == np.uint8
    assert pixels.min() >= 240


def test_cmyk_jpeg_keeps_its_colours() -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    pixels = decode_image(encoded(image, "JPEG", quality=95))
    assert abs(pixels.astype(int) - (200, 30, 30)).max() < 12


def test_transparency_shows_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    palette = Image.new("P", (4, 4))
    assert (decode_image(encoded(image)) == 255).all()
    assert (decode_image(encoded(palette, transparency=0)) == 255).all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.full((4, 4), 128 << 8, np.uint16)
    assert (decode_image(encoded(Image.fromarray(values))) == 128).all()


def test_exif_orientation_is_applied() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255  # left half white
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: left becomes top
    data = encoded(image, exif=exif)
    upright = decode_image(data)
    assert upright.shape == (8, 4, 3)
    assert upright[:4].min() == 255
    assert upright[4:].max() == 0
    assert image_shape(data) == (8, 4)
    np.testing.assert_array_equal(
        fit_image(data, 4, interpolation="bilinear"),
        fit_image(upright, 4, interpolation="bilinear"),
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(orientation: int) -> None:
    image = Image.fromarray(noise(4, 8))
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encoded(image, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_image(data), expected)
    assert image_shape(data) == expected.shape[:2]


def test_an_image_with_damaged_metadata_is_read() -> None:
    image = Image.new("RGB", (8, 4), "white")
    data = encoded(image, "PNG", exif=b"Exif\0\0XX*\0\x08\0\0\0")
    assert decode_image(data).shape == (4, 8, 3)
    assert image_shape(data) == (4, 8)


@pytest.mark.parametrize("data", [b"", b"junk", encoded(Image.new("RGB", (50, 50)), "JPEG")[:300]])
def test_damage_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(data)
    with pytest.raises(ImageError):
        fit_image(data, 8, interpolation="bicubic")


@pytest.mark.parametrize("kind", [*IMAGE_FORMATS, "MPO"])
def test_common_formats_are_read(kind: str) -> None:
    data = encoded(Image.new("RGB", (6, 4), "white"), kind)
    assert decode_image(data).shape == (4, 6, 3)
    assert decode_image(data).min() >= 250
    assert image_shape(data) == (4, 6)


def test_formats_of_external_programs_are_not_opened() -> None:
    data = encoded(Image.new("RGB", (6, 4)), "EPS")
    for read in (decode_image, image_shape):
        with pytest.raises(ImageError, match="not an image of these: JPEG"):
            read(data)


def test_bombs_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "MAX_PIXELS", 99)
    decode_image(encoded(Image.new("RGB", (9, 11))))
    with pytest.raises(ImageError, match="10 x 10 pixels"):
        decode_image(encoded(Image.new("RGB", (10, 10))))


# Resizing


@pytest.mark.parametrize(("height", "width"), [(40, 60), (16, 16), (9, 200)])
def test_squash_is_the_official_resize(height: int, width: int) -> None:
    pixels = noise(height, width)
    expected = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC))
    got = fit_image(encoded(Image.fromarray(pixels)), 16, interpolation="bicubic")
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(fit_image(pixels, 16, interpolation="bicubic"), expected)


def test_flip_mirrors_the_pixels() -> None:
    pixels = noise(30, 20)
    flipped = fit_image(pixels, 8, interpolation="bilinear", window=Window(flip=True))
    plain = fit_image(pixels, 8, interpolation="bilinear")
    np.testing.assert_array_equal(flipped, plain[:, ::-1])


# Boxes. A white rectangle is drawn, the image transformed, and the rectangle found again.


def found_box(pixels: np.ndarray) -> tuple[float, float, float, float]:
    lit = pixels[..., 0] > 127
    rows, columns = np.nonzero(lit.any(1))[0], np.nonzero(lit.any(0))[0]
    height, width = lit.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


@given(
    height=st.integers(40, 240),
    width=st.integers(40, 240),
    corners=st.tuples(*[st.floats(0, 0.75)] * 2, *[st.floats(0.2, 0.9)] * 2),
    resize=st.sampled_from(["squash", "crop", "center"]),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=120, deadline=None)
def test_a_box_stays_on_its_object(height, width, corners, resize, flip, seed) -> None:
    top, left = int(corners[0] * height), int(corners[1] * width)
    bottom = min(height, top + max(8, int(corners[2] * height)))
    right = min(width, left + max(8, int(corners[3] * width)))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    box = (left / width, top / height, right / width, bottom / height)
    if resize == "center":
        window = center_window(height, width)
    else:
        config = DataConfig(resize=resize, crop_min_area=0.3, flip_probability=float(flip))
        window = training_window(config, pixels, random.Random(seed))
        assert window.flip == flip
    size = 64
    square = fit_image(pixels, size, interpolation="bilinear", window=window)
    expected = window.box(box)
    if expected is None:
        assert lit_fraction(window, box) < transforms.MIN_VISIBLE + 1e-6
        return
    sides = expected[2] - expected[0], expected[3] - expected[1]
    if min(sides) * size < 2:  # a sliver, which antialiasing may leave darker than the threshold
        return
    assert min(expected) >= 0
    assert max(expected) <= 1
    np.testing.assert_allclose(found_box(square), expected, atol=1.01 / size)


def lit_fraction(window: Window, box: tuple[float, ...]) -> float:
    """Fraction of the box that the window shows, worked out the other way round."""
    left, top, right, bottom = box
    width = max(min(right, window.left + window.width) - max(left, window.left), 0)
    height = max(min(bottom, window.top + window.height) - max(top, window.top), 0)
    return width * height / ((right - left) * (bottom - top))


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    min_area=st.floats(0.05, 1),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_random_window_is_a_square_inside_the_image(height, width, min_area, seed) -> None:
    window = random_window(height, width, min_area=min_area, rng=random.Random(seed))
    sides = window.height * height, window.width * width
    assert math.isclose(*sides)
    assert min_area * 0.999 <= (sides[0] / min(height, width)) ** 2 <= 1.001
    assert window.top >= 0
    assert window.left >= 0
    assert window.top + window.height <= 1 + 1e-9
    assert window.left + window.width <= 1 + 1e-9


def test_a_box_is_kept_down_to_a_quarter_of_its_area() -> None:
    window = Window(left=0.5, width=0.5)
    assert window.box((0.25, 0.0, 0.6, 1.0)) == pytest.approx((0.0, 0.0, 0.2, 1.0))
    assert window.box((0.0, 0.0, 0.65, 1.0)) is None
    assert window.box((0.0, 0.0, 0.5, 1.0)) is None
    assert FULL.box((0.1, 0.2, 0.3, 0.4)) == (0.1, 0.2, 0.3, 0.4)


def test_box_formats() -> None:
    assert box_to_cxcywh((0.2, 0.1, 0.8, 0.5)) == pytest.approx((0.5, 0.3, 0.6, 0.4))


# Regions

A, B, C = (0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 0.4), (0.5, 0.5, 1.0, 1.0)
REGIONS = [Region(C, "tail", 0.3), Region(A, "Red  crest", 0.9), Region(B, "red crest", 0.5)]


def test_regions_are_kept_by_score() -> None:
    chosen = select_regions([*REGIONS, Region(C, "leg", 0.3)], limit=3)
    assert [region.score for region in chosen] == [0.9, 0.5, 0.3]
    assert chosen[2].description == "tail"  # the earlier of equals
    assert select_regions([], limit=3) == []


def test_overlap_and_repeated_descriptions_are_dropped_on_request() -> None:
    assert box_iou(A, B) == pytest.approx(0.8)
    assert len(select_regions(REGIONS, limit=5, nms_iou=0.81)) == 3
    apart = select_regions(REGIONS, limit=5, nms_iou=0.79)
    assert [region.description for region in apart] == ["Red  crest", "tail"]
    different = select_regions(REGIONS, limit=5, unique_descriptions=True)
    assert [region.description for region in different] == ["Red  crest", "tail"]


# Preprocessing


def test_preprocessing_squashes_or_crops_the_centre() -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 255
    squash = Preprocessing(image_size=20)(encoded(Image.fromarray(pixels)))
    crop = Preprocessing(image_size=20, resize="crop")(pixels)
    assert crop.min() == 255
    assert 0.4 < (squash > 127).mean() < 0.6


def test_preprocessing_survives_json() -> None:
    config = DataConfig(resize="crop", interpolation="bilinear", mean=(0.1, 0.2, 0.3))
    preprocessing = Preprocessing.from_config(config, 48)
    assert Preprocessing.from_spec(json.loads(json.dumps(preprocessing.spec()))) == preprocessing
    with pytest.raises(ValueError, match="needs the fields"):
        Preprocessing.from_spec({"image_size": 3})
    with pytest.raises(ValueError, match="bicubic"):
        Preprocessing(interpolation="lanczos9")
    with pytest.raises(ValueError, match="squash"):
        Preprocessing(resize="stretch")
