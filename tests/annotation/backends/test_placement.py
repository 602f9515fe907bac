"""A drawn square is found where it was drawn, whatever the aspect, in any detector's canvas.

The published faults of OWLv2 are all here: boxes that come out too high or too far left because the
image was padded to a square, or in which height and width were exchanged.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_detectors import image_processor

from grain_jax.annotation.backends.placement import (
    PadToSquare,
    ShortestEdge,
    Squash,
    canvas_to_image,
)

PLACEMENTS = {
    "owlv2": PadToSquare(96),
    "owlvit": Squash(96, 96),
    "grounding-dino": ShortestEdge(96, 160),
    "official": Squash(96, 96, "bilinear", via=224),
}
SIZES = [(100, 100), (60, 240), (240, 60), (97, 131), (333, 50), (500, 375), (30, 40)]


def image_with_square(height: int, width: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """Gray with a white square, well inside and off the centre, and its box in fractions."""
    side = min(height, width) // 2
    top, left = (height - side) * 3 // 4, (width - side) // 4
    image = np.full((height, width, 3), 60, np.uint8)
    image[top : top + side, left : left + side] = 255
    return image, (left / width, top / height, (left + side) / width, (top + side) / height)


def found_square(canvas: np.ndarray) -> np.ndarray:
    """Box in fractions of the canvas of what is nearer to white than to gray."""
    bright = canvas.mean(axis=-1) > (60 + 255) / 2
    rows, columns = np.nonzero(bright.any(axis=1))[0], np.nonzero(bright.any(axis=0))[0]
    height, width = bright.shape
    edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width)
    return np.array([*edges, (rows[-1] + 1) / height])


def assert_within_a_pixel(found, expected, canvas, extent):
    drawn = np.array([canvas.shape[1] * extent[0], canvas.shape[0] * extent[1]] * 2)
    np.testing.assert_allclose(found * drawn, np.array(expected) * drawn, atol=1.0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_square_is_found_where_it_was_drawn(name, size):
    image, box = image_with_square(*size)
    prepared = PLACEMENTS[name](image)
    found = canvas_to_image(found_square(prepared.pixels), prepared.extent)
    assert_within_a_pixel(found, box, prepared.pixels, prepared.extent)


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 400), st.integers(20, 400), st.sampled_from(sorted(PLACEMENTS)))
def test_a_square_is_found_at_every_aspect(height, width, name):
    image, box = image_with_square(height, width)
    prepared = PLACEMENTS[name](image)
    found = canvas_to_image(found_square(prepared.pixels), prepared.extent)
    assert_within_a_pixel(found, box, prepared.pixels, prepared.extent)


@pytest.mark.parametrize("size", [(60, 240), (240, 60)])
def test_fractions_of_the_padded_canvas_are_not_those_of_the_image(size):
    """What the reports show; were it not so, the tests above would prove nothing."""
    image, box = image_with_square(*size)
    shifted = found_square(PLACEMENTS["owlv2"](image).pixels)
    assert np.abs(shifted - box).max() > 0.3


@pytest.mark.torch
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["owlv2", "owlvit", "grounding-dino"])
def test_the_image_processor_of_transformers_places_it_there_too(name, size):
    image, box = image_with_square(*size)
    prepared = PLACEMENTS[name](image)
    canvas = processed_by_transformers(name, image)
    assert canvas.shape == prepared.pixels.shape
    found = canvas_to_image(found_square(canvas), prepared.extent)
    assert_within_a_pixel(found, box, canvas, prepared.extent)


@pytest.mark.torch
@pytest.mark.parametrize("size", [(96, 96), (96, 60), (60, 96), (300, 200), (150, 320)])
@pytest.mark.parametrize("name", ["owlv2", "owlvit", "grounding-dino"])
def test_pixels_are_those_of_the_image_processor(name, size):
    """OWLv2's blurs before it samples, where Pillow averages; the others are the same to a bit."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    smooth = np.stack(
        [127 + 120 * np.sin(rows / 17 + shift) * np.cos(columns / 23) for shift in (0, 1, 2)], -1
    ).astype(np.uint8)
    found = PLACEMENTS[name](smooth).pixels.astype(float)
    expected = processed_by_transformers(name, smooth)
    difference = np.abs(found - expected)
    assert difference.max() <= (1.01 if name != "owlv2" or max(size) == 96 else 40)
    assert difference.mean() < (0.6 if name != "owlv2" else 1.5)


def processed_by_transformers(name: str, image: np.ndarray) -> np.ndarray:
    """The canvas as 0 to 255, [H, W, 3], of the real image processor."""
    square = {"height": 96, "width": 96}
    sizes = {"owlv2": square, "owlvit": square}
    size = sizes.get(name, {"shortest_edge": 96, "longest_edge": 160})
    processor = image_processor(name)(size=size, do_center_crop=False)
    values = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    return (values * processor.image_std + processor.image_mean) * 255


def test_sizes_of_grounding_dino_are_rounded_as_in_detr():
    transformers = pytest.importorskip("transformers.image_transforms")
    place = ShortestEdge(800, 1333)
    rng = np.random.default_rng(0)
    for height, width in rng.integers(20, 3000, size=(300, 2)).tolist():
        expected = transformers.get_size_with_aspect_ratio((height, width), 800, 1333)
        assert place.size(height, width) == expected, (height, width)
