"""Boxes in pixels of the image as it was given."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toy_encoder import columns, toy_model

from grain_jax.data.transforms import Window, center_window


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.booleans(),
    st.lists(st.floats(0, 1), min_size=4, max_size=4, unique=True),
)
def test_boxes_of_a_window_go_back_to_where_they_came_from(height, width, flip, corners):
    whole = center_window(height, width)
    window = Window(whole.top, whole.left, whole.height, whole.width, flip)
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    inside = np.array([[x0, y0, x1, y1]])
    back = window.to_image(inside)
    seen = window.box(tuple(back[0]))
    if seen is not None:  # None: rounding made it empty
        np.testing.assert_allclose(seen, inside[0], atol=1e-9)
    low, high = window.left, window.left + window.width
    assert np.all((back[:, [0, 2]] > low - 1e-9) & (back[:, [0, 2]] < high + 1e-9))


@pytest.mark.parametrize(
    ("resize", "red", "blue", "view"),
    [
        ("squash", (0, 0, 40, 40), (40, 0, 80, 40), (0, 0, 80, 40)),
        ("crop", (20, 0, 40, 40), (40, 0, 60, 40), (20, 0, 60, 40)),
    ],
)
def test_boxes_are_in_pixels_of_the_image_given(resize, red, blue, view):
    """The toy's two queries look at the first two quarters of what it sees, and say the halves."""
    pixels = columns("red", "blue")
    if resize == "crop":  # the same in the centre, beside what is cut off
        pixels = columns("green", "green", "green", "green")
        pixels[:, 20:60] = columns("red", "blue", width=40)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by 90 degrees counter-clockwise
    Image.fromarray(np.rot90(pixels, -1)).save(turned, "PNG", exif=exif)
    model = toy_model(resize=resize)
    for grounding in model.ground([pixels, turned.getvalue()], ["blue part", "red part"]):
        assert (grounding.height, grounding.width) == (40, 80)
        first, second = grounding.phrases
        assert (first.query, second.query) == (1, 0)
        np.testing.assert_allclose(first.box_xyxy, blue, atol=1e-4)
        np.testing.assert_allclose(second.box_xyxy, red, atol=1e-4)
        np.testing.assert_allclose(grounding.boxes_xyxy, [red, blue], atol=1e-4)
        np.testing.assert_allclose(grounding.cosines, [[0, 1], [1, 0]], atol=0.15)  # bicubic
    np.testing.assert_allclose(model.embed_images(pixels).crop_xyxy, [view])
