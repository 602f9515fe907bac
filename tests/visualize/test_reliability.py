import numpy as np
import pytest
from PIL import Image

from grain_jax.visualize.reliability import Diagram, draw_reliability


def points(path):
    """Pixels of the colour of points, [H, W]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.abs(pixels - np.array([0x00, 0x72, 0xB2])).sum(axis=-1) < 30


def test_a_point_lies_where_its_confidence_and_accuracy_say(tmp_path):
    low, high = tmp_path / "low.png", tmp_path / "high.png"
    draw_reliability([Diagram("before", [(0.2, 0.2, 5)])], low)
    draw_reliability([Diagram("before", [(0.8, 0.9, 5)])], high)
    first, second = (np.argwhere(points(path)).mean(axis=0) for path in (low, high))
    assert second[0] < first[0] - 100  # higher on the page
    assert second[1] > first[1] + 100  # and further right
    both = tmp_path / "both.png"
    draw_reliability([Diagram("before", [(0.2, 0.2, 5)]), Diagram("after", [])], both)
    assert points(both).shape[1] == 2 * points(low).shape[1]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_reliability([], tmp_path / "a.png")
