"""The card of one picture: what was asked of it, and the regions that answer."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from PIL import Image

from grain_jax.evaluation.pictures import COLOURS, FAINT, INK, MISSED, Canvas, NamedBox, draw_box

DPI = 120
LONG_SIDE, MARGIN = 6.4, 0.12  # inches
TEXT_SIZE, LINE = 10.0, 0.23  # points; inches
BADGE = (0.21, 0.19)  # inches: width and height of a number on a box
MAX_FOUND = 24  # lines under the picture


def draw_card(
    image: UInt8[np.ndarray, "H W 3"],
    *,
    title: str,
    answers: Sequence[tuple[str, str]],
    found: Sequence[NamedBox],
    others_xyxy: Float[np.ndarray, "n 4"],
    view_xyxy: Float[np.ndarray, "4"],
    path: Path,
    unfound: Sequence[tuple[str, float]] = (),
    whole: Sequence[tuple[str, float]] = (),
) -> None:
    """Writes one picture (PNG) with the boxes in which texts were found; xyxy in [0, 1] of it.

    Above it `answers`, each with its figure; below it a line for every text and its score, under
    the number and colour of its box, which texts may share; then the texts that were compared with
    the `whole` picture, and those that are `unfound`, with scores too low for a box. Other regions
    are grey and dashed, and what lies outside `view_xyxy`, which the model did not see, is pale.
    """
    height, width = image.shape[:2]
    scale = LONG_SIDE / max(height, width)
    # Of very long pictures, the short side stays wide enough to see.
    size = max(scale * width, 0.8), max(scale * height, 0.8)
    boxes = list(dict.fromkeys(_corners(one) for one in found))  # in the order of their texts
    shown = found[:MAX_FOUND]
    boxless = [(f"whole picture: {text}", score, INK) for text, score in whole]
    boxless += [(f"not found: {text}", score, FAINT) for text, score in unfound]
    rest = boxless[: MAX_FOUND - len(shown)]
    left_out = len(found) + len(boxless) - len(shown) - len(rest)
    lines = len(shown) + len(rest) + bool(left_out)
    top = MARGIN + LINE * (1 + len(answers)) + 0.1
    page = LONG_SIDE + 2 * MARGIN, top + size[1] + 0.1 + LINE * lines + MARGIN
    figure = Figure(figsize=page, dpi=DPI, facecolor="white")
    canvas = Canvas(figure, FigureCanvasAgg(figure).get_renderer(), *page)
    shortened = canvas.shortened(title, LONG_SIDE, size=11.0, weight="bold")
    canvas.text(MARGIN, MARGIN + 0.16, shortened, size=11.0, weight="bold")
    for number, (text, figures) in enumerate(answers, start=1):
        baseline = MARGIN + 0.16 + number * LINE
        weight = "bold" if number == 1 else "normal"
        _draw_line(canvas, MARGIN, baseline, text, figures, weight=weight)
    axes = canvas.panel(_shrunk(image), MARGIN + (LONG_SIDE - size[0]) / 2, top, size=size)
    axes.set_aspect(size[1] / size[0])
    _pale_outside(axes, view_xyxy)
    for box in others_xyxy:
        draw_box(axes, box, MISSED, dashed=True)
    for number, corners in enumerate(boxes):
        draw_box(axes, np.array(corners), _colour(number), dashed=False)
    for number, (x, y) in enumerate(_badge_places(boxes, size)):
        _draw_badge(axes, x, y, str(number + 1), _colour(number), size)
    baseline, left_of_texts = top + size[1] + 0.1 + 0.16, MARGIN + BADGE[0] + 0.1
    for one in shown:
        number = boxes.index(_corners(one))
        shown_score = "" if one.score is None else f"{one.score:.2f}"
        _draw_key(canvas, MARGIN, baseline, str(number + 1), _colour(number))
        _draw_line(canvas, left_of_texts, baseline, ", ".join(one.texts), shown_score)
        baseline += LINE
    for text, score, colour in rest:
        _draw_line(canvas, left_of_texts, baseline, text, f"{score:.2f}", colour=colour)
        baseline += LINE
    if left_out:
        canvas.text(MARGIN, baseline, f"and {left_out} more", colour=FAINT)
    figure.savefig(path, format="png")


def _shrunk(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """No more pixels than the card has: smoothing a photograph takes seconds otherwise."""
    picture = Image.fromarray(image)
    picture.thumbnail((LONG_SIDE * DPI, LONG_SIDE * DPI), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _pale_outside(axes: Any, view_xyxy: Float[np.ndarray, "4"]) -> None:
    x0, y0, x1, y1 = view_xyxy.tolist()
    for left, top, right, bottom in (
        (0, 0, x0, 1),
        (x1, 0, 1, 1),
        (x0, 0, x1, y0),
        (x0, y1, x1, 1),
    ):
        if right - left > 1e-3 and bottom - top > 1e-3:
            axes.add_patch(
                Rectangle(
                    (left, top), right - left, bottom - top, color="white", alpha=0.6, linewidth=0
                )
            )


def _corners(box: NamedBox) -> tuple[float, ...]:
    return tuple(box.xyxy.tolist())


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _draw_line(
    canvas: Canvas,
    left: float,
    baseline: float,
    text: str,
    figures: str,
    *,
    weight: str = "normal",
    colour: str = INK,
) -> None:
    """A text, and its figure at the right edge of the card."""
    right = MARGIN + LONG_SIDE
    taken = canvas.inches(figures, FontProperties(size=TEXT_SIZE, weight=weight)) + 0.15
    text = canvas.shortened(text, right - left - taken, size=TEXT_SIZE, weight=weight)
    canvas.text(left, baseline, text, size=TEXT_SIZE, weight=weight, colour=colour)
    canvas.text(right, baseline, figures, size=TEXT_SIZE, weight=weight, colour=colour, ha="right")


def _badge_places(
    boxes: Sequence[tuple[float, ...]], size: tuple[float, float]
) -> list[tuple[float, float]]:
    """Where each box's number goes, its top left corner in [0, 1] of the picture: at a corner of
    the box, or along its edge, where no other number is yet.
    """
    wide, tall = BADGE[0] / size[0], BADGE[1] / size[1]
    taken: list[tuple[float, float]] = []
    for x0, y0, x1, y1 in boxes:
        along = [x0 + step * wide for step in range(1, max(1, int((x1 - x0) / wide)))]
        corners = [(x0, y0), (x1 - wide, y0), (x0, y1 - tall), (x1 - wide, y1 - tall)]
        places = corners + [(x, y) for y in (y0, y1 - tall) for x in along]
        # Where small boxes coincide, the nearest place.
        grid = [(x * wide, y * tall) for y in range(int(1 / tall)) for x in range(int(1 / wide))]
        places += sorted(grid, key=lambda place: math.dist(place, (x0, y0)))
        inside = [(min(max(x, 0), 1 - wide), min(max(y, 0), 1 - tall)) for x, y in places]
        free = [
            (x, y)
            for x, y in inside
            if all(abs(x - a) >= wide - 1e-9 or abs(y - b) >= tall - 1e-9 for a, b in taken)
        ]
        taken.append((free or inside)[0])
    return taken


def _draw_badge(
    axes: Any, x: float, y: float, number: str, colour: str, size: tuple[float, float]
) -> None:
    wide, tall = BADGE[0] / size[0], BADGE[1] / size[1]
    axes.add_patch(Rectangle((x, y), wide, tall, color=colour, linewidth=0, zorder=4))
    axes.text(
        x + wide / 2,
        y + tall / 2,
        number,
        size=8.5,
        weight="bold",
        color="white",
        ha="center",
        va="center_baseline",
        zorder=5,
    )


def _draw_key(canvas: Canvas, left: float, baseline: float, number: str, colour: str) -> None:
    """The badge of a box, beside its text."""
    x, y = left / canvas.width, 1 - (baseline + 0.045) / canvas.height
    wide, tall = BADGE[0] / canvas.width, BADGE[1] / canvas.height
    badge = Rectangle((x, y), wide, tall, color=colour, linewidth=0)
    badge.set_transform(canvas.figure.transFigure)
    canvas.figure.add_artist(badge)
    middle = left + BADGE[0] / 2
    canvas.text(middle, baseline, number, size=8.5, colour="white", weight="bold", ha="center")
