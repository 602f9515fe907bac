"""Many images on a page, each with its boxes and what they are said to show.

A single box has no number, which would hide a small one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from grain_jax.visualize.boxes import TAG, NumberedBox, colour_of, draw_boxes, draw_tag
from grain_jax.visualize.canvas import ESCAPED, FAINT, INK, PALETTE, Canvas, Measure

ACROSS = 3
DPI = 100
PANEL, MARGIN = 3.0, 0.2  # inches: longer side of an image, gaps
TEXT_SIZE, LINE = 9.5, 0.2  # points; inches of a line
MAX_BOXES = 6  # of an image
CAPTION_LINES, DESCRIPTION_LINES, TITLE_LINES = 3, 2, 2
SINGLE = PALETTE[5]  # colour of a box without a number
MIN_SIDE = 0.5  # inches of a very long image


@dataclass(frozen=True)
class SheetImage:
    """An image with its boxes in the order of their importance; of many the first are drawn."""

    image: UInt8[np.ndarray, "H W 3"]
    title: str
    caption: str = ""
    boxes: tuple[tuple[Float[np.ndarray, "4"], str], ...] = ()  # xyxy in [0, 1], description
    heading: str = ""  # begins a new row under it


@dataclass(frozen=True)
class _Cell:
    """An image with its lines of text, ready to be drawn."""

    shown: SheetImage
    size: tuple[float, float]  # inches
    title: list[str]
    caption: list[str]
    key: list[tuple[int, list[str]]]  # number and lines of each box
    more: str

    @property
    def num_lines(self) -> int:
        key = sum(len(lines) for _, lines in self.key)
        return len(self.title) + len(self.caption) + key + bool(self.more)

    @property
    def height(self) -> float:
        return self.size[1] + 0.06 + LINE * self.num_lines + MARGIN


def draw_contact_sheet(images: Sequence[SheetImage], path: Path) -> None:
    """Writes all images as one page. Raises ValueError where there are none."""
    if not images:
        raise ValueError("There is no image to draw.")
    measure = Measure(DPI)
    rows = _rows([_laid_out(image, measure) for image in images])
    tops = [*itertools.accumulate(map(_row_height, rows), initial=MARGIN)]
    note = LINE if measure.escaped else 0.0
    canvas = Canvas.blank(ACROSS * (PANEL + MARGIN) + MARGIN, tops[-1] + note, dpi=DPI)
    for row, top in zip(rows, tops, strict=False):
        if heading := row[0].shown.heading:
            canvas.text(MARGIN, top + 0.2, heading, size=12.0, weight="bold")
            top += 0.36
        for column, cell in enumerate(row):
            _draw_cell(canvas, cell, MARGIN + column * (PANEL + MARGIN), top)
    if measure.escaped:
        canvas.text(MARGIN, canvas.height - 0.1, ESCAPED, size=TEXT_SIZE, colour=FAINT)
    canvas.figure.savefig(path)


def _rows(cells: Sequence[_Cell]) -> list[list[_Cell]]:
    rows: list[list[_Cell]] = []
    for cell in cells:
        if not rows or cell.shown.heading or len(rows[-1]) == ACROSS:
            rows.append([])
        rows[-1].append(cell)
    return rows


def _row_height(row: Sequence[_Cell]) -> float:
    return max(cell.height for cell in row) + (0.36 if row[0].shown.heading else 0.0)


def _laid_out(shown: SheetImage, measure: Measure) -> _Cell:
    height, width = shown.image.shape[:2]
    scale = PANEL / max(height, width)
    size = max(scale * width, MIN_SIDE), max(scale * height, MIN_SIDE)
    indent = 0.0 if len(shown.boxes) == 1 else TAG[0] + 0.08
    key = [
        (
            number,
            measure.wrapped(text, PANEL - indent, size=TEXT_SIZE, max_lines=DESCRIPTION_LINES),
        )
        for number, (_, text) in enumerate(shown.boxes[:MAX_BOXES], start=1)
    ]
    left_out = len(shown.boxes) - MAX_BOXES
    return _Cell(
        shown,
        size,
        measure.wrapped(shown.title, PANEL, size=TEXT_SIZE, weight="bold", max_lines=TITLE_LINES),
        measure.wrapped(shown.caption, PANEL, size=TEXT_SIZE, max_lines=CAPTION_LINES)
        if shown.caption
        else [],
        key,
        f"and {left_out} more, not drawn" if left_out > 0 else "",
    )


def _draw_cell(canvas: Canvas, cell: _Cell, left: float, top: float) -> None:
    axes = canvas.panel(cell.shown.image, left, top, size=cell.size)
    single = len(cell.shown.boxes) == 1
    boxes = [
        NumberedBox(xyxy, None if single else number, SINGLE if single else colour_of(number))
        for number, (xyxy, _) in enumerate(cell.shown.boxes[:MAX_BOXES], start=1)
    ]
    draw_boxes(axes, boxes, size=cell.size)
    baseline = top + cell.size[1] + 0.06 + 0.13
    baseline = canvas.lines(left, baseline, cell.title, step=LINE, size=TEXT_SIZE, weight="bold")
    baseline = canvas.lines(left, baseline, cell.caption, step=LINE, size=TEXT_SIZE, colour=FAINT)
    for number, lines in cell.key:
        indent = left
        if not single:
            draw_tag(canvas, left, baseline, number, colour_of(number))
            indent += TAG[0] + 0.08
        baseline = canvas.lines(indent, baseline, lines, step=LINE, size=TEXT_SIZE, colour=INK)
    canvas.text(left, baseline, cell.more, size=TEXT_SIZE, colour=FAINT)
