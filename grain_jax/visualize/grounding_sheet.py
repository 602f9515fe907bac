"""The sheet of a run that shows what its regions found: grounding.png and further pages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from grain_jax.boxes import IOU_HIT, best_pairs, pairwise_iou
from grain_jax.data.captions import normalize_text
from grain_jax.visualize.boxes import TAG, NumberedBox, colour_of, draw_boxes, draw_tag
from grain_jax.visualize.canvas import ESCAPED, FAINT, INK, MISSED, RIGHT, Canvas, Measure

MAX_ROWS = 8  # boxes of an example
MAX_TEXTS = 6  # of one true box
EXAMPLES_PER_PAGE = 3
DPI = 100
WIDTH, MARGIN, PANEL = 10.0, 0.15, 3.0  # inches: page, gaps, side of an image
TEXT_SIZE, TITLE_SIZE, LINE = 10.5, 11.5, 0.2  # points; inches of a line
SCORE = 0.72  # inches of a cosine with its tick
LEGEND = (
    "Left: annotated boxes. Right: predicted boxes, each with the description, of all in the "
    "split, that its embedding matches best, and their cosine. Boxes of one number are a pair. "
    "Tick: the predicted box has a description of the annotated one. Grey and dashed: the two "
    "overlap too little (IoU below 0.5)."
)


@dataclass(frozen=True)
class NamedBox:
    """A box with what it is said to show, one or several texts; `score` is a cosine, None for
    ground truth.
    """

    xyxy: Float[np.ndarray, "4"]
    texts: tuple[str, ...]
    score: float | None = None


@dataclass(frozen=True)
class Example:
    """An image with its true boxes and the boxes the model predicts."""

    image: UInt8[np.ndarray, "H W 3"]
    title: str
    true: tuple[NamedBox, ...]
    predicted: tuple[NamedBox, ...]


def draw_grounding(examples: Sequence[Example], path: Path) -> list[Path]:
    """Writes pages of a few large examples each: `path`, then "<stem>-2.png" and so on; returns
    them. Pages of an earlier, longer sheet are removed.

    Annotated and predicted boxes that were matched to each other share a number. Where they
    overlap (IoU of at least 0.5) they share a colour, else the predicted one is grey and dashed; a
    tick says that its description is one of the annotated box's own.
    """
    written = []
    for start in range(0, len(examples), EXAMPLES_PER_PAGE):
        page = start // EXAMPLES_PER_PAGE + 1
        file = path if page == 1 else path.with_name(f"{path.stem}-{page}{path.suffix}")
        _draw_page(examples[start : start + EXAMPLES_PER_PAGE], file)
        written.append(file)
    for old in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        if old not in written and old.stem.removeprefix(f"{path.stem}-").isdigit():
            old.unlink()
    return written


@dataclass(frozen=True)
class _Line:
    """A line of an example's key, `left` of the start of the texts in inches."""

    text: str
    colour: str = INK
    weight: str = "normal"
    indent: float = 0.0
    tag: tuple[int, str] | None = None  # number and colour
    score: str = ""
    space: float = 0.0  # inches above it


@dataclass(frozen=True)
class _Layout:
    """An example with its boxes and its key, ready to be drawn."""

    example: Example
    title: list[str]
    true: list[NumberedBox]
    predicted: list[NumberedBox]
    key: list[_Line]

    @property
    def size(self) -> tuple[float, float]:
        """Inches of the image, its longer side that of a panel; a very long one stays visible."""
        height, width = self.example.image.shape[:2]
        scale = PANEL / max(height, width)
        return max(scale * width, 0.8), max(scale * height, 0.8)

    @property
    def height(self) -> float:
        key = sum(LINE + line.space for line in self.key)
        return LINE * (1.15 * len(self.title) + 1) + max(self.size[1], key) + 2 * MARGIN


def _draw_page(examples: Sequence[Example], path: Path) -> None:
    measure = Measure(DPI)
    legend = measure.wrapped(LEGEND, WIDTH - 2 * MARGIN, size=TEXT_SIZE)
    layouts = [_laid_out(example, measure) for example in examples]
    note = [ESCAPED] if measure.escaped else []
    head = MARGIN + LINE * (len(legend) + len(note)) + 0.1
    canvas = Canvas.blank(WIDTH, head + sum(layout.height for layout in layouts), dpi=DPI)
    canvas.lines(MARGIN, MARGIN + 0.12, legend + note, step=LINE, size=TEXT_SIZE, colour=FAINT)
    top = head
    for layout in layouts:
        _draw_example(canvas, layout, top)
        top += layout.height
    canvas.figure.savefig(path)


def _draw_example(canvas: Canvas, layout: _Layout, top: float) -> None:
    bold: dict[str, Any] = {"size": TITLE_SIZE, "weight": "bold"}
    canvas.lines(MARGIN, top + 0.14, layout.title, step=LINE * 1.15, **bold)
    top += LINE * (1.15 * len(layout.title) + 1)
    left = MARGIN + 2 * (PANEL + MARGIN)
    faint: dict[str, Any] = {"size": TEXT_SIZE, "colour": FAINT}
    canvas.text(left + TAG[0] + 0.1, top - 0.06, "annotated → predicted", **faint)
    canvas.text(WIDTH - MARGIN, top - 0.06, "cosine", ha="right", **faint)
    for column, (name, boxes) in enumerate(
        (("annotated", layout.true), ("predicted", layout.predicted))
    ):
        left = MARGIN + column * (PANEL + MARGIN)
        axes = canvas.panel(layout.example.image, left, top, size=layout.size)
        draw_boxes(axes, boxes, size=layout.size)
        canvas.text(left, top - 0.06, name, **faint)
    left, baseline = MARGIN + 2 * (PANEL + MARGIN), top + 0.14
    for line in layout.key:
        baseline += line.space
        if line.tag is not None:
            draw_tag(canvas, left, baseline, *line.tag)
        styled: dict[str, Any] = {"size": TEXT_SIZE, "colour": line.colour, "weight": line.weight}
        canvas.text(left + line.indent, baseline, line.text, **styled)
        canvas.text(WIDTH - MARGIN, baseline, line.score, ha="right", **styled)
        baseline += LINE


def _laid_out(example: Example, measure: Measure) -> _Layout:
    true: list[NumberedBox] = []
    predicted: list[NumberedBox] = []
    key: list[_Line] = []
    for number, row in enumerate(example_rows(example), start=1):
        colour = colour_of(number)
        found = row.true is not None and row.overlap >= IOU_HIT
        if row.true is not None:
            true.append(NumberedBox(row.true.xyxy, number, colour))
        if row.predicted is not None:
            shown = colour if found else MISSED
            predicted.append(NumberedBox(row.predicted.xyxy, number, shown, dashed=not found))
        key += _key(row, number, colour, measure, found=found)
    title = measure.wrapped(
        example.title, WIDTH - 2 * MARGIN, size=TITLE_SIZE, weight="bold", max_lines=2
    )
    return _Layout(example, title, true, predicted, key)


def _key(row: "Row", number: int, colour: str, measure: Measure, *, found: bool) -> Iterator[_Line]:
    """Lines of a pair: every text of the annotated box, then what was predicted there."""
    indent = TAG[0] + 0.1
    width = WIDTH - MARGIN - (MARGIN + 2 * (PANEL + MARGIN)) - indent
    texts = () if row.true is None else row.true.texts
    said = {normalize_text(text) for text in texts}
    entries = [
        (f"{chr(97 + i)}) {text}" if len(texts) > 1 else text)
        for i, text in enumerate(texts[:MAX_TEXTS])
    ]
    if len(texts) > MAX_TEXTS:
        entries.append(f"and {len(texts) - MAX_TEXTS} more")
    tag: tuple[int, str] | None = (number, colour if texts else MISSED)
    space = 0.08 if number > 1 else 0.0
    for entry in entries or ["no annotated box"]:
        for line in measure.wrapped(entry, width, size=TEXT_SIZE, max_lines=3):
            faded = INK if entries else FAINT
            yield _Line(line, colour=faded, indent=indent, tag=tag, space=space)
            tag, space = None, 0.0
    if row.predicted is None:
        yield _Line("→ no box is left for it", colour=FAINT, indent=indent)
        return
    right = found and normalize_text(row.predicted.texts[0]) in said
    colour = RIGHT if right else (INK if found else FAINT)
    score = f"{'✓ ' if right else ''}{row.predicted.score or 0.0:.2f}"
    lines = measure.wrapped(
        f"→ {row.predicted.texts[0]}", width - SCORE, size=TEXT_SIZE, max_lines=3
    )
    for number_of_line, line in enumerate(lines):
        shown = "" if number_of_line else score
        yield _Line(line, colour=colour, indent=indent, score=shown)


@dataclass(frozen=True)
class Row:
    """A line of the sheet: a true box, the prediction that goes with it, or one of them."""

    true: NamedBox | None
    predicted: NamedBox | None
    overlap: float  # IoU of the two


def example_rows(example: Example) -> list[Row]:
    """True boxes with the predictions matched to them (best sum of IoU), then what is left over.

    Of more than `MAX_ROWS`, true boxes that nothing is matched to are left out first.
    """
    true, predicted = example.true, example.predicted
    if not true or not predicted:
        rows = [Row(box, None, 0.0) for box in true] + [Row(None, p, 0.0) for p in predicted]
        return rows[:MAX_ROWS]
    iou = pairwise_iou(np.stack([t.xyxy for t in true]), np.stack([p.xyxy for p in predicted]))
    pairs = dict(zip(*(side.tolist() for side in best_pairs(iou)), strict=True))
    rows = [
        Row(box, predicted[pairs[i]], float(iou[i, pairs[i]]))
        for i, box in enumerate(true)
        if i in pairs
    ]
    rows += [Row(box, None, 0.0) for i, box in enumerate(true) if i not in pairs]
    rows = rows[: MAX_ROWS - (len(predicted) - len(pairs))]
    return rows + [Row(None, p, 0.0) for i, p in enumerate(predicted) if i not in pairs.values()]
