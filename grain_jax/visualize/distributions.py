"""Bars of how often values occur: lengths of texts, boxes of images, sizes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grain_jax.visualize.canvas import FAINT, PALETTE, Canvas, Measure

DPI = 100
# Inches: a panel, the axes in it, their distance from its left and its top.
PANEL, AXES, LEFT, TOP = (4.8, 3.3), (3.95, 2.2), 0.65, 0.55
MAX_BARS = 60  # of a panel; more values share bars
BAR, MARK = PALETTE[0], PALETTE[5]
TITLE_SIZE, TEXT_SIZE = 11.0, 9.0


@dataclass(frozen=True)
class Bars:
    """A panel of bars."""

    title: str
    label: str  # of the horizontal axis
    heights: Mapping[float, float]  # value -> percent; each bar is centred on its value
    width: int | float = 1  # of a bar, in values
    ticks: Mapping[float, str] = field(default_factory=dict)  # value -> name; {}: numbers
    marks: Mapping[float, str] = field(default_factory=dict)  # value -> name of a line across


def binned(counts: Mapping[int, int], *, most: int | None = None) -> tuple[dict[float, float], int]:
    """Percent of what was counted, by the middle of each of at most `MAX_BARS` bins of whole
    numbers, and the width of the bins. Numbers above `most` count as `most`.

    Raises ValueError where nothing was counted.
    """
    if not (total := sum(counts.values())):
        raise ValueError("Nothing was counted.")
    top = max(counts) if most is None else min(most, max(counts))
    low = min(min(counts), top)
    width = math.ceil((top - low + 1) / MAX_BARS)
    heights: dict[float, float] = {}
    for number, count in counts.items():
        first = low + (min(number, top) - low) // width * width
        middle = first + (width - 1) / 2
        heights[middle] = heights.get(middle, 0.0) + 100 * count / total
    return heights, width


def draw_distributions(panels: Sequence[Bars], path: Path) -> None:
    """Writes the panels beside each other, as one image.

    Raises ValueError where there are none.
    """
    if not panels:
        raise ValueError("There is nothing to draw.")
    canvas = Canvas.blank(PANEL[0] * len(panels), PANEL[1], dpi=DPI)
    measure = Measure(DPI)
    for number, bars in enumerate(panels):
        _draw_panel(canvas, bars, number * PANEL[0], measure)
    canvas.figure.savefig(path)


def _draw_panel(canvas: Canvas, bars: Bars, left: float, measure: Measure) -> None:
    low = 1 - (TOP + AXES[1]) / canvas.height
    place = ((left + LEFT) / canvas.width, low, AXES[0] / canvas.width, AXES[1] / canvas.height)
    axes = canvas.figure.add_axes(place)
    gap = 0.9 if len(bars.heights) <= 30 else 1.0
    axes.bar(
        list(bars.heights), list(bars.heights.values()), width=gap * bars.width, color=BAR, zorder=2
    )
    axes.set_ylim(bottom=0)
    middle = (min(bars.heights) + max(bars.heights)) / 2
    half = max((max(bars.heights) - min(bars.heights)) / 2 + 0.6 * bars.width, 4 * bars.width)
    axes.set_xlim(middle - half, middle + half)
    if bars.ticks:
        axes.set_xticks(list(bars.ticks), list(bars.ticks.values()))
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(bars.label, color=FAINT, fontsize=TEXT_SIZE)
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.8, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=FAINT, length=0, labelsize=TEXT_SIZE)
    axes.tick_params(axis="x", pad=6)
    title = measure.shortened(bars.title, PANEL[0] - LEFT, size=TITLE_SIZE, weight="bold")
    canvas.text(left + LEFT, 0.26, title, size=TITLE_SIZE, weight="bold")
    _draw_marks(axes, bars.marks)


def _draw_marks(axes: Any, marks: Mapping[float, str]) -> None:
    """A line across at each value, its name above the axes."""
    low, high = axes.get_xlim()
    for value, name in marks.items():
        if not low <= value <= high:
            continue
        axes.axvline(value, color=MARK, linewidth=1.4, linestyle="--", zorder=3)
        right = value > (low + high) / 2
        axes.annotate(
            name,
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if right else 4, 3),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=TEXT_SIZE,
            color=MARK,
        )
