"""Bars: what is counted is what is drawn."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grain_jax.visualize.distributions import DPI, MAX_BARS, PANEL, Bars, binned, draw_distributions


@given(st.lists(st.integers(0, 500), min_size=1), st.none() | st.integers(1, 300))
def test_each_number_counts_in_the_bar_that_it_lies_in(
    numbers: list[int], most: int | None
) -> None:
    heights, width = binned(Counter(numbers), most=most)
    assert len(heights) <= MAX_BARS
    assert sum(heights.values()) == pytest.approx(100)
    shown = [number if most is None else min(number, most) for number in numbers]
    for middle, height in heights.items():
        inside = [number for number in shown if abs(number - middle) <= (width - 1) / 2]
        assert height == pytest.approx(100 * len(inside) / len(numbers))


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Nothing was counted"):
        binned({})
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_distributions([], tmp_path / "a.png")


@pytest.mark.parametrize(
    "heights", [{3.0: 100.0}, {1.0: 10.0, 2.0: 90.0}, {0.5 * i: 1.0 for i in range(200)}]
)
def test_panels_are_beside_each_other(tmp_path: Path, heights) -> None:
    bars = Bars("$title$ " * 30, "x", heights, ticks={1.0: "1:1"}, marks={2.0: "mark", 900.0: "no"})
    draw_distributions([bars, bars], tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert pixels.shape[:2] == (round(PANEL[1] * DPI), round(2 * PANEL[0] * DPI))
    left, right = np.split(pixels, 2, axis=1)
    assert np.array_equal(left, right)
    blue = (left == (0x00, 0x72, 0xB2)).all(axis=-1)
    assert blue.sum() > 1000


def test_a_bar_is_as_high_as_its_percentage(tmp_path: Path) -> None:
    draw_distributions([Bars("a", "x", {0.0: 25.0, 5.0: 75.0})], tmp_path / "a.png")
    blue = (np.asarray(Image.open(tmp_path / "a.png").convert("RGB")) == (0, 0x72, 0xB2)).all(-1)
    columns = blue.sum(axis=0)
    found = sorted({int(count) for count in columns if count > 5}, key=int)
    assert found[0] / found[-1] == pytest.approx(1 / 3, abs=0.03)
