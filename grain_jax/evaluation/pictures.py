"""The picture of a run that shows what its regions found."""

import bisect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from scipy.optimize import linear_sum_assignment

from grain_jax.data.records import Source
from grain_jax.data.texts import normalize_text
from grain_jax.data.transforms import FULL, decode_image
from grain_jax.evaluation.annotations import read_annotations
from grain_jax.evaluation.encode import Encoder, evenly_spaced
from grain_jax.evaluation.grounding import IOU_HIT, cxcywh_to_xyxy, pairwise_iou

# Told apart by colour-blind readers too, and visible on photographs.
COLOURS = ("#e6194b", "#1f77ff", "#ffb000", "#00b894", "#c13bd8", "#ff7f50", "#12c2e9", "#8d6e63")
MISSED = "#9aa0a6"  # a predicted box that overlaps no true box enough
INK, FAINT, RIGHT = "#202124", "#6b7075", "#00805a"
MAX_POOL = 2_000  # descriptions of the split that a query may choose from
MAX_ROWS = 8  # boxes of a card
CARDS_ACROSS = 3
PANEL, LINE, MARGIN = 2.15, 0.155, 0.12  # inches: side of an image, height of a text line, gaps
TEXT_SIZE, SCORE = 7.6, 0.5  # points of a line; inches that a score with its tick takes
MAX_CHARACTERS = 200  # of a text: more than any line of a card holds
LEGEND = (
    "Left: ground truth. Right: what the model finds; each predicted box with the description, of "
    "all in the split, that it matches best, and their cosine. Green with a tick: the true box's "
    "own description. Grey and dashed: misses its true box (IoU below 0.5)."
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


def grounding_examples(encoder: Encoder, source: Source, num_pictures: int) -> list[Example]:
    """Some images of a held-out source; each predicted box gets the description of the whole split
    that it matches best. Empty for a model without regions.
    """
    pool = read_annotations(
        evenly_spaced(source, MAX_POOL // 4), encoder.preprocessing, caption_source="original"
    )
    texts = list(dict.fromkeys(phrase.text for phrase in pool.phrases))[:MAX_POOL]
    chosen = evenly_spaced(source, num_pictures)
    features = encoder.images(chosen)
    if features.boxes is None or features.regions is None or not texts:
        return []
    truth = read_annotations(chosen, encoder.preprocessing, caption_source="original")
    texts = list(dict.fromkeys([*texts, *(phrase.text for phrase in truth.phrases)]))
    similarity = features.regions @ encoder.texts(texts, kind="description").T  # [N, Q, T]
    best, boxes = similarity.argmax(axis=2), cxcywh_to_xyxy(features.boxes)
    examples = []
    for i in range(len(chosen)):
        record = chosen[i]
        squashed = encoder.preprocessing.window(record.image) == FULL
        image = decode_image(record.image) if squashed else encoder.preprocessing(record.image)
        caption = record.captions[0].text if record.captions else record.id
        named: dict[tuple[float, ...], list[str]] = {}  # paraphrases share a box
        for phrase in truth.phrases:
            if phrase.image == i:
                for box in phrase.boxes:
                    named.setdefault(tuple(box.tolist()), []).append(phrase.text)
        true = [NamedBox(np.array(box), tuple(said)) for box, said in named.items()]
        predicted = [
            NamedBox(box, (texts[row],), float(similarity[i, query, row]))
            for query, (box, row) in enumerate(zip(boxes[i], best[i], strict=True))
        ]
        examples.append(Example(image, caption, tuple(true), tuple(predicted)))
    return examples


def draw_grounding(examples: Sequence[Example], path: Path) -> None:
    """Writes a sheet of cards: ground truth on the left of each, predictions on the right.

    A line pairs a true box with the prediction matched to it. Where they overlap (IoU of at least
    0.5) they share a colour, else the predicted one is grey and dashed; a tick says that its
    description is the true box's own.
    """
    lines = max(len(_rows(example)) for example in examples)
    card_width, card_height = 2 * PANEL + 3 * MARGIN, PANEL + (lines + 2.6) * LINE + MARGIN
    across = min(CARDS_ACROSS, len(examples))
    down = -(-len(examples) // across)
    width = across * (card_width + MARGIN) + MARGIN
    legend = textwrap.wrap(LEGEND, int(width * 13.5))
    head = 0.25 + 0.18 * len(legend)
    figure = Figure(figsize=(width, down * card_height + head), dpi=120, facecolor="white")
    renderer = FigureCanvasAgg(figure).get_renderer()
    canvas = Canvas(figure, renderer, width, down * card_height + head)
    for number, line in enumerate(legend):
        canvas.text(2 * MARGIN, 0.3 + 0.18 * number, line, size=9.0, colour=FAINT)
    for number, example in enumerate(examples):
        left = MARGIN + (number % across) * (card_width + MARGIN)
        top = head + (number // across) * card_height
        _draw_card(canvas, example, left, top)
    figure.savefig(path)


@dataclass(frozen=True)
class Canvas:
    """A figure in inches from its top left corner."""

    figure: Figure
    renderer: RendererAgg
    width: float
    height: float

    def panel(
        self,
        image: np.ndarray,
        left: float,
        top: float,
        *,
        size: tuple[float, float] = (PANEL, PANEL),
    ) -> Any:
        """Axes with the picture, (0, 0) to (1, 1), in a place of `size` inches, (width, height)."""
        low = 1 - (top + size[1]) / self.height
        place = (left / self.width, low, size[0] / self.width, size[1] / self.height)
        axes = self.figure.add_axes(place)
        # Drawn pictures of few pixels stay crisp; photographs are smoothed.
        smooth = "nearest" if max(image.shape[:2]) <= 96 else "lanczos"
        axes.imshow(image, interpolation=smooth, extent=(0, 1, 1, 0))
        axes.set_aspect(image.shape[0] / image.shape[1])
        axes.set_axis_off()
        return axes

    def text(
        self,
        left: float,
        baseline: float,
        text: str,
        *,
        size: float = TEXT_SIZE,
        colour: str = INK,
        **options,
    ) -> None:
        x, y = left / self.width, 1 - baseline / self.height
        options |= {"va": "baseline", "parse_math": False}  # captions hold prices, not formulas
        self.figure.text(x, y, text, fontsize=size, color=colour, **options)

    def shortened(
        self, text: str, inches: float, *, size: float = TEXT_SIZE, weight: str = "normal"
    ) -> str:
        """The text on one line, cut where it would be wider than that many inches."""
        font = FontProperties(size=size, weight=weight)
        text = " ".join(text.split())[:MAX_CHARACTERS]
        if self.inches(text, font) <= inches:
            return text

        def too_wide(length: int) -> bool:
            return self.inches(text[:length].rstrip() + " …", font) > inches

        length = bisect.bisect_left(range(1, len(text)), True, key=too_wide)
        return text[:length].rstrip() + " …"

    def inches(self, text: str, font: FontProperties) -> float:
        """How wide the text is."""
        width, _, _ = self.renderer.get_text_width_height_descent(text, font, ismath=False)
        return width / self.figure.dpi

    def entry(
        self, left: float, baseline: float, box: NamedBox, colour: str, *, right: bool = False
    ) -> None:
        """A line of the legend: a square of the box's colour, its text, a tick, the score."""
        side = 0.085
        x, y = left / self.width, 1 - baseline / self.height
        square = Rectangle((x, y), side / self.width, side / self.height, color=colour)
        square.set_transform(self.figure.transFigure)
        self.figure.add_artist(square)
        room = PANEL - 0.13
        if box.score is not None:
            mark = "✓ " if right else ""
            score = f"{mark}{box.score:.2f}"
            self.text(left + PANEL, baseline, score, colour=RIGHT if right else FAINT, ha="right")
            room -= SCORE
        text = self.shortened(box.texts[0], room)
        self.text(left + 0.13, baseline, text, colour=RIGHT if right else INK)


@dataclass(frozen=True)
class _Row:
    """A line of a card: a true box, the prediction that goes with it, or one of them alone."""

    true: NamedBox | None
    predicted: NamedBox | None
    overlap: float  # IoU of the two


def _rows(example: Example) -> list[_Row]:
    """True boxes with the predictions matched to them (best sum of IoU), then what is left over.

    Of more than `MAX_ROWS`, true boxes that nothing is matched to are left out first.
    """
    true, predicted = example.true, example.predicted
    if not true or not predicted:
        rows = [_Row(box, None, 0.0) for box in true] + [_Row(None, p, 0.0) for p in predicted]
        return rows[:MAX_ROWS]
    iou = pairwise_iou(np.stack([t.xyxy for t in true]), np.stack([p.xyxy for p in predicted]))
    pairs = dict(zip(*(side.tolist() for side in linear_sum_assignment(-iou)), strict=True))
    rows = [
        _Row(box, predicted[pairs[i]], float(iou[i, pairs[i]]))
        for i, box in enumerate(true)
        if i in pairs
    ]
    rows += [_Row(box, None, 0.0) for i, box in enumerate(true) if i not in pairs]
    rows = rows[: MAX_ROWS - (len(predicted) - len(pairs))]
    return rows + [_Row(None, p, 0.0) for i, p in enumerate(predicted) if i not in pairs.values()]


def _draw_card(canvas: Canvas, example: Example, left: float, top: float) -> None:
    title = canvas.shortened(example.title, 2 * PANEL + MARGIN, size=8.5, weight="bold")
    canvas.text(left + MARGIN, top + LINE, title, size=8.5, weight="bold")
    top += 1.6 * LINE
    columns = (left + MARGIN, left + 2 * MARGIN + PANEL)
    true_axes, predicted_axes = (canvas.panel(example.image, x, top) for x in columns)
    for number, row in enumerate(_rows(example)):
        baseline = top + PANEL + (1.1 + number) * LINE
        colour = COLOURS[number % len(COLOURS)]
        if row.true is not None:
            draw_box(true_axes, row.true.xyxy, colour, dashed=False)
            canvas.entry(columns[0], baseline, row.true, colour)
        if row.predicted is not None:
            found = row.true is not None and row.overlap >= IOU_HIT
            said = {normalize_text(text) for text in row.true.texts} if row.true else set()
            right = found and normalize_text(row.predicted.texts[0]) in said
            shown = colour if found else MISSED
            draw_box(predicted_axes, row.predicted.xyxy, shown, dashed=not found)
            canvas.entry(columns[1], baseline, row.predicted, shown, right=right)


def draw_box(axes: Any, xyxy: np.ndarray, colour: str, *, dashed: bool) -> None:
    """Draws a box of fractions on the axes of `Canvas.panel`."""
    x0, y0, x1, y1 = np.clip(xyxy, 0.004, 0.996)
    for line, width in (("white", 3.0), (colour, 1.7)):  # a white rim, to be seen on any picture
        axes.add_patch(
            Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=line,
                linewidth=width,
                linestyle=(0, (3, 2)) if dashed else "solid",
                zorder=2 if dashed else 3,  # what was found lies on top
                alpha=0.75 if line == "white" else 1.0,
            )
        )
