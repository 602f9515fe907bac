"""The visualization of one image: labels with probabilities, and regions with the texts
that match them best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from grain_jax.visualize.boxes import TAG, NumberedBox, colour_of, draw_boxes, draw_tag
from grain_jax.visualize.canvas import ESCAPED, FAINT, INK, Canvas, Measure, rectangle

DPI = 120
LONG_SIDE, MARGIN = 6.4, 0.12  # inches
TEXT_SIZE, SMALL, LINE = 10.0, 8.5, 0.2  # points; inches
PROBABILITY, SCORE = 1.35, 0.65  # inches of the columns at the right
CERTAIN, LIKELY = 0.5, 0.05  # confidence from which a label is bold, and from which it is not faint
MAX_ENTRIES = 24  # texts under the image


@dataclass(frozen=True)
class LabelRow:
    """A label with its probability among all labels given; `match`: the description of it that
    the image matches best, with its cosine, or its name where it is `named` alone.
    """

    label: str
    probability: float
    score: float
    match: tuple[str, float] | None = None
    named: bool = False


@dataclass(frozen=True)
class TextRow:
    """A text and its cosine with the region it matches best; without a box where there is none,
    for the reason `why`.
    """

    text: str
    cosine: float
    xyxy: Float[np.ndarray, "4"] | None = None  # in [0, 1] of the image
    why: str = ""


@dataclass(frozen=True)
class TextSection:
    """Texts under the image with the heading of their column."""

    heading: str
    texts: tuple[TextRow, ...]


@dataclass
class _Line:
    """A line of text; `columns` are right-aligned at inches from the left edge."""

    text: str = ""
    left: float = MARGIN
    size: float = TEXT_SIZE
    colour: str = INK
    weight: str = "normal"
    columns: tuple[tuple[float, str], ...] = ()
    tag: int | None = None
    bar: tuple[float, float] | None = None  # probability, and that of a random guess
    height: float = LINE
    after: float = 0.0  # inches left below it


def confidence(probability: float, num_labels: int) -> float:
    """From 0 at a random guess (or below, or with a single label) to 1 where a label is certain."""
    if num_labels < 2:
        return 0.0
    guess = 1 / num_labels
    return max(0.0, (probability - guess) / (1 - guess))


def draw_prediction(
    image: UInt8[np.ndarray, "H W 3"],
    *,
    title: str,
    labels: Sequence[LabelRow],
    num_labels: int,
    sections: Sequence[TextSection],
    others_xyxy: Float[np.ndarray, "n 4"],
    crop_xyxy: Float[np.ndarray, "4"],
    path: Path,
) -> None:
    """Writes one image (PNG) with the boxes in which texts were found; xyxy in [0, 1] of it.

    Above it the highest-scoring of `num_labels` labels, bold where one is far above a random guess
    and faint where it is near; below it the texts of each section in full, under the number of
    their box, which texts may share. Other regions are grey and dashed, and what lies outside
    `crop_xyxy`, which the model did not see, is pale.
    """
    height, width = image.shape[:2]
    scale = LONG_SIDE / max(height, width)
    # Of very long images, the short side stays wide enough to see.
    size = max(scale * width, 0.8), max(scale * height, 0.8)
    measure = Measure(DPI)
    shortened = measure.shortened(title, LONG_SIDE, size=11.0, weight="bold")
    above = [_Line(shortened, size=11.0, weight="bold", height=0.26)]
    above += _label_lines(labels, num_labels, measure)
    boxes: list[NumberedBox] = []
    below = _section_lines(sections, boxes, measure)
    if measure.escaped:
        below.append(_Line(measure.shortened(ESCAPED, LONG_SIDE, size=SMALL), size=SMALL))
    top = MARGIN + sum(line.height for line in above) + 0.06
    page = (
        LONG_SIDE + 2 * MARGIN,
        top + size[1] + sum(line.height + line.after for line in below) + 2 * MARGIN,
    )
    canvas = Canvas.blank(*page, dpi=DPI)
    _draw_lines(canvas, above, MARGIN)
    axes = canvas.panel(_shrunk(image), MARGIN + (LONG_SIDE - size[0]) / 2, top, size=size)
    _pale_outside(axes, crop_xyxy)
    others = [NumberedBox(box, dashed=True) for box in others_xyxy]
    draw_boxes(axes, [*others, *boxes], size=size)
    _draw_lines(canvas, below, top + size[1] + MARGIN)
    canvas.figure.savefig(path, format="png")


def _label_lines(labels: Sequence[LabelRow], num_labels: int, measure: Measure) -> list[_Line]:
    if not labels:
        return []
    right = MARGIN + LONG_SIDE
    of = f"highest-scoring of {num_labels:,} labels" if num_labels > 1 else "the only label"
    columns = ((right - PROBABILITY, "score"), (right, "probability"))
    lines = [_Line(of, size=SMALL, colour=FAINT, columns=columns)]
    room = LONG_SIDE - PROBABILITY - SCORE
    for one in labels:
        sure = confidence(one.probability, num_labels)
        weight = "bold" if sure >= CERTAIN else "normal"
        colour = INK if sure >= LIKELY else FAINT
        wrapped = measure.wrapped(one.label, room, size=TEXT_SIZE, weight=weight)
        lines += [_Line(text, colour=colour, weight=weight) for text in wrapped]
        first = lines[-len(wrapped)]
        first.columns = (
            (right - PROBABILITY, f"{one.score:.3f}"),
            (right, f"{100 * one.probability:.1f} %"),
        )
        first.bar = (one.probability, 1 / num_labels)
        if one.match is not None:
            what = "compared by name" if one.named else "best-matching description"
            text = f"{what}: {one.match[0]} ({one.match[1]:.2f})"
            for part in measure.wrapped(text, room - 0.15, size=SMALL, max_lines=3):
                lines.append(
                    _Line(part, left=MARGIN + 0.15, size=SMALL, colour=FAINT, height=0.165)
                )
    if num_labels > 1:
        guess = f"random guess: {100 / num_labels:.2g} % (the line across a bar)"
        lines.append(_Line(guess, size=SMALL, colour=FAINT))
    return lines


def _section_lines(
    sections: Sequence[TextSection], boxes: list[NumberedBox], measure: Measure
) -> list[_Line]:
    """The key; adds the boxes it numbers to `boxes`, one for texts that share one."""
    right, left = MARGIN + LONG_SIDE, MARGIN + TAG[0] + 0.1
    numbers: dict[tuple[float, ...], int] = {}
    lines: list[_Line] = []
    shown, total = 0, sum(len(section.texts) for section in sections)
    for section in sections:
        texts = section.texts[: MAX_ENTRIES - shown]
        shown += len(texts)
        if not texts:
            continue
        if lines:
            lines[-1].after += 0.06
        heading = measure.shortened(section.heading, LONG_SIDE - SCORE, size=SMALL)
        cosine = ((right, "cosine"),)
        lines.append(_Line(heading, size=SMALL, colour=FAINT, columns=cosine, height=0.22))
        for one in texts:
            tag = None
            if one.xyxy is not None:
                corners = tuple(one.xyxy.tolist())
                if corners not in numbers:
                    numbers[corners] = len(numbers) + 1
                    number = numbers[corners]
                    boxes.append(NumberedBox(one.xyxy, number, colour_of(number)))
                tag = numbers[corners]
            text = f"{one.why}: {one.text}" if one.why else one.text
            colour = FAINT if one.why == NOT_FOUND else INK
            wrapped = measure.wrapped(text, LONG_SIDE - SCORE - (left - MARGIN), size=TEXT_SIZE)
            added = [_Line(part, left=left, colour=colour) for part in wrapped]
            added[0].columns, added[0].tag = ((right, f"{one.cosine:.2f}"),), tag
            added[-1].after = 0.03
            lines += added
    if total > shown:
        lines.append(_Line(f"and {total - shown} more", colour=FAINT))
    return lines


NOT_FOUND, WHOLE = "not found", "whole image"  # why a text has no box


def _draw_lines(canvas: Canvas, lines: Sequence[_Line], top: float) -> None:
    for line in lines:
        baseline = top + line.height - 0.05
        styled: dict[str, Any] = {"size": line.size, "colour": line.colour, "weight": line.weight}
        canvas.text(line.left, baseline, line.text, **styled)
        for right, text in line.columns:
            canvas.text(right, baseline, text, ha="right", **styled)
        if line.tag is not None:
            draw_tag(canvas, MARGIN, baseline, line.tag, colour_of(line.tag))
        if line.bar is not None:
            _draw_bar(canvas, baseline, *line.bar, colour=line.colour)
        top += line.height + line.after


def _draw_bar(
    canvas: Canvas, baseline: float, probability: float, guess: float, *, colour: str
) -> None:
    """A bar as long as the probability, with a random guess as a line across it."""
    left, length = MARGIN + LONG_SIDE - PROBABILITY + 0.12, PROBABILITY - 0.75

    def add(x: float, width: float, tall: float, fill: str) -> None:
        low = 1 - (baseline - 0.05 + tall / 2) / canvas.height
        part = rectangle(
            (x / canvas.width, low),
            width / canvas.width,
            tall / canvas.height,
            color=fill,
            linewidth=0,
        )
        part.set_transform(canvas.figure.transFigure)
        canvas.figure.add_artist(part)

    add(left, length, 0.09, "#e3e5e8")
    add(left, length * probability, 0.09, colour)
    add(left + length * guess - 0.006, 0.012, 0.15, INK)


def _shrunk(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """No more pixels than the visualization has: smoothing a photograph takes seconds otherwise."""
    shrunk = Image.fromarray(image)
    shrunk.thumbnail((LONG_SIDE * DPI, LONG_SIDE * DPI), Image.Resampling.LANCZOS)
    return np.asarray(shrunk)


def _pale_outside(axes: Any, crop_xyxy: Float[np.ndarray, "4"]) -> None:
    x0, y0, x1, y1 = crop_xyxy.tolist()
    for left, top, right, bottom in (
        (0, 0, x0, 1),
        (x1, 0, 1, 1),
        (x0, 0, x1, y0),
        (x0, y1, x1, 1),
    ):
        if right - left > 1e-3 and bottom - top > 1e-3:
            axes.add_patch(
                rectangle(
                    (left, top), right - left, bottom - top, color="white", alpha=0.6, linewidth=0
                )
            )
