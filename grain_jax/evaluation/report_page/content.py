"""The parts of a report, which HTML and Markdown show alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from grain_jax.evaluation.percentages import interval_text, percent
from grain_jax.results import Result


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and what stands smaller beside it."""

    text: str
    interval: str = ""
    mark: str = ""  # what a reader must know of this cell
    spread: str = ""  # over draws of random texts


@dataclass(frozen=True)
class Grid:
    """A table. Every row has a cell for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    meaning: str = ""
    groups: tuple[tuple[str, int], ...] = ()  # titles over columns, and how many each is over
    num_texts: int = 1  # leading columns of text; the others are numbers
    folded: bool = False  # shown when its title is opened

    @property
    def num_ungrouped(self) -> int:
        """Leading columns without a title over them."""
        return len(self.columns) - sum(width for _, width in self.groups)

    @property
    def heads(self) -> tuple[str, ...]:
        """The title of each column, behind that of its group."""
        over = [title for title, width in self.groups for _ in range(width)]
        over = [*("" for _ in range(self.num_ungrouped)), *over]
        pairs = zip(over, self.columns, strict=True)
        return tuple(f"{group}, {column}" if group else column for group, column in pairs)


@dataclass(frozen=True)
class Mark:
    """One value with its interval. Places are in percent of the width of the plot."""

    label: str
    letter: str  # of the evaluation; "" where there is one
    shape: str  # circle, square, diamond or triangle
    place: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class Plot:
    """Values of one set on one axis."""

    title: str
    ticks: tuple[tuple[float, str], ...]  # place in percent, text
    marks: tuple[Mark, ...]
    reference: tuple[float, str] | None = None  # the value of a random choice
    meaning: str = ""


@dataclass(frozen=True)
class ReliabilityPlot:
    """Accuracy of answers by their probability; all in [0, 1]."""

    title: str
    points: tuple[tuple[float, float, int], ...]  # probability, accuracy, answers
    meaning: str  # its error


@dataclass(frozen=True)
class ShownPhrase:
    """A phrase with the box that answers it."""

    number: int
    text: str
    predicted_xyxy: tuple[float, ...]  # in [0, 1] of the shown image
    true_xyxy: tuple[tuple[float, ...], ...]
    iou: float
    right: bool


@dataclass(frozen=True)
class ShownImage:
    """An image of the gallery."""

    heading: str  # "Best", "Median" or "Worst"
    name: str
    data_uri: str  # a JPEG
    width: int  # pixels
    height: int
    iou: float  # mean over its phrases
    phrases: tuple[ShownPhrase, ...]
    left_out: int  # phrases that are not drawn


@dataclass(frozen=True)
class Gallery:
    """Images with what a model grounded in them."""

    title: str
    images: tuple[ShownImage, ...]
    meaning: str


Block = Grid | Plot | ReliabilityPlot | Gallery


@dataclass(frozen=True)
class Section:
    """Blocks under one heading."""

    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = field(default=())


def accuracy_cell(result: Result | None, *, mark: str = "", spread: str = "") -> Cell:
    """A fraction in percent with its interval; "-" without a result."""
    if result is None:
        return Cell("-")
    return Cell(percent(result.value), interval_text(result.low, result.high), mark, spread)


def texts(*values: str) -> tuple[Cell, ...]:
    """Cells of these texts."""
    return tuple(Cell(value) for value in values)


def all_grids(sections: Sequence[Section]) -> list[Grid]:
    """Every table, in order."""
    return [block for section in sections for block in section.blocks if isinstance(block, Grid)]
