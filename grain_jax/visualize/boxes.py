"""An image with numbered boxes: what the visualizations and the grounding sheet draw alike.

A number, on its box and beside its text, says which box is meant; the colour only helps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from grain_jax.visualize.canvas import MISSED, PALETTE, Canvas, contrast, ink_on, rectangle

TAG = (0.21, 0.185)  # inches: width and height of a number on a box
TAG_TEXT = 8.5  # points


@dataclass(frozen=True)
class NumberedBox:
    """A box in [0, 1] of an image; `number` None for one that no text is about."""

    xyxy: Float[np.ndarray, "4"]
    number: int | None = None
    colour: str = MISSED
    dashed: bool = False


def colour_of(number: int) -> str:
    """Of box `number`, from 1 on."""
    return PALETTE[(number - 1) % len(PALETTE)]


def draw_boxes(axes: Any, boxes: Sequence[NumberedBox], *, size: tuple[float, float]) -> None:
    """Draws boxes and their numbers on the axes of `Canvas.panel`, which are of `size` inches."""
    for box in boxes:
        _draw_outline(axes, box)
    numbered = [box for box in boxes if box.number is not None]
    corners = [tuple(np.clip(box.xyxy, 0, 1).tolist()) for box in numbered]
    for box, (x, y) in zip(numbered, tag_places(corners, size), strict=True):
        wide, tall = TAG[0] / size[0], TAG[1] / size[1]
        edge: dict[str, Any] = {"edgecolor": ink_on(box.colour), "linewidth": 0.6}
        axes.add_patch(rectangle((x, y), wide, tall, facecolor=box.colour, zorder=4, **edge))
        axes.text(
            x + wide / 2,
            y + tall / 2,
            str(box.number),
            size=TAG_TEXT,
            weight="bold",
            color=ink_on(box.colour),
            ha="center",
            va="center_baseline",
            zorder=5,
        )


def draw_tag(canvas: Canvas, left: float, baseline: float, number: int, colour: str) -> None:
    """The number of a box, beside its text."""
    x, y = left / canvas.width, 1 - (baseline + 0.045) / canvas.height
    wide, tall = TAG[0] / canvas.width, TAG[1] / canvas.height
    tag = rectangle((x, y), wide, tall, facecolor=colour, edgecolor=ink_on(colour), linewidth=0.6)
    tag.set_transform(canvas.figure.transFigure)
    canvas.figure.add_artist(tag)
    middle = left + TAG[0] / 2
    ink: dict[str, Any] = {"colour": ink_on(colour), "weight": "bold", "ha": "center"}
    canvas.text(middle, baseline, str(number), size=TAG_TEXT, **ink)


def tag_places(
    boxes: Sequence[tuple[float, ...]], size: tuple[float, float]
) -> list[tuple[float, float]]:
    """Where each box's number goes, its top left corner in [0, 1] of the image: at a corner of
    the box, or along its edge, where no other number is yet.
    """
    wide, tall = TAG[0] / size[0], TAG[1] / size[1]
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


def _draw_outline(axes: Any, box: NumberedBox) -> None:
    x0, y0, x1, y1 = np.clip(box.xyxy, 0.004, 0.996)
    # A rim, to be seen on any image: dark around light colours, light around dark ones.
    rim = "#ffffff" if contrast(box.colour, "#ffffff") > 3 else "#202124"
    for colour, width in ((rim, 3.4), (box.colour, 1.9)):
        axes.add_patch(
            rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=colour,
                linewidth=width,
                linestyle=(0, (3, 2)) if box.dashed else "solid",
                zorder=2 if box.dashed else 3,  # what was found lies on top
                alpha=0.8 if colour == rim else 1.0,
            )
        )
