"""The sheet of images: boxes are where they belong, headings begin rows, nothing overlaps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grain_jax.visualize.contact_sheet import (
    ACROSS,
    DPI,
    MARGIN,
    MAX_BOXES,
    PANEL,
    SINGLE,
    SheetImage,
    draw_contact_sheet,
)

GREY = np.full((60, 120, 3), 200, np.uint8)
BOX = np.asarray([0.25, 0.25, 0.75, 0.75], np.float32)


def drawn(images: list[SheetImage], folder: Path) -> np.ndarray:
    draw_contact_sheet(images, folder / "sheet.png")
    return np.asarray(Image.open(folder / "sheet.png").convert("RGB"))


def test_a_single_box_is_outlined_where_it_is(tmp_path: Path) -> None:
    pixels = drawn([SheetImage(GREY, "a", boxes=((BOX, "a dog"),))], tmp_path)
    colour = [int(SINGLE[i : i + 2], 16) for i in (1, 3, 5)]
    rows, columns = np.nonzero((pixels == colour).all(axis=-1))
    left = top = MARGIN * DPI
    width, height = PANEL * DPI, PANEL * DPI / 2
    found = [columns.min() - left, columns.max() - left, rows.min() - top, rows.max() - top]
    expected = [0.25 * width, 0.75 * width, 0.25 * height, 0.75 * height]
    assert found == pytest.approx(expected, abs=3)


def test_rows_grow_with_their_texts(tmp_path: Path) -> None:
    short = drawn([SheetImage(GREY, "a")] * ACROSS, tmp_path)
    assert drawn([SheetImage(GREY, "a")], tmp_path).shape == short.shape
    boxes = tuple((BOX, f"thing {i}") for i in range(MAX_BOXES + 2))
    long = drawn([SheetImage(GREY, "a", "a caption " * 40, boxes), SheetImage(GREY, "b")], tmp_path)
    assert long.shape[0] > short.shape[0] + 20 * MAX_BOXES
    two = drawn([SheetImage(GREY, "a")] * (ACROSS + 1), tmp_path)
    assert two.shape[0] == pytest.approx(2 * short.shape[0] - MARGIN * DPI, abs=2)


def test_a_heading_begins_a_row(tmp_path: Path) -> None:
    one = drawn([SheetImage(GREY, "a"), SheetImage(GREY, "b")], tmp_path)
    two = drawn([SheetImage(GREY, "a"), SheetImage(GREY, "b", heading="More")], tmp_path)
    assert two.shape[0] > 1.8 * one.shape[0]


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1)])
def test_odd_images_and_texts_are_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    odd = SheetImage(
        np.zeros((*size, 3), np.uint8), "$x$\n" * 50, "\U0001f426" * 9, ((BOX, ""), (BOX, "b"))
    )
    pixels = drawn([odd], tmp_path)
    assert pixels.min() == 0


def test_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image"):
        draw_contact_sheet([], tmp_path / "sheet.png")
