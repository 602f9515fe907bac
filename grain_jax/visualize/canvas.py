"""A page measured in inches: colours that can be read, text that fits, and images on it.

matplotlib is imported where something is drawn: a command that draws nothing starts sooner.
"""

import bisect
import functools
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

# Okabe and Ito's palette for all kinds of colour vision, without its yellow, which paper swallows.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
MISSED = "#9aa0a6"  # a box that overlaps no true box enough, or that no text is about
INK, FAINT, RIGHT = "#202124", "#62676c", "#00704d"
FAMILY = "DejaVu Sans"  # comes with matplotlib
ESCAPED = "Characters shown as \\uXXXX are in no installed font; Noto Sans covers most scripts."
MAX_LINES = 12  # of one text


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours "#rrggbb", from 1 to 21 (WCAG 2.2, relative luminance)."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def ink_on(colour: str) -> str:
    """White or black, whichever is easier to read on this colour."""
    return max("#ffffff", "#000000", key=lambda ink: contrast(ink, colour))


def _luminance(colour: str) -> float:
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@dataclass(frozen=True)
class Text:
    """A text as it can be drawn."""

    shown: str  # on one line, characters without a font escaped
    families: tuple[str, ...]
    escaped: bool


@functools.lru_cache(maxsize=10_000)
def drawable(text: str) -> Text:
    """The text with the installed fonts that have its characters; what is in none is escaped."""
    text = " ".join(text.split())
    families, shown, escaped = [FAMILY], [], False
    covered = set(characters_of(FAMILY))
    for character in text:
        code = ord(character)
        if code not in covered and (found := _family_of(code)) is not None:
            families.append(found)
            covered |= characters_of(found)
        if code in covered:
            shown.append(character)
        elif unicodedata.category(character) not in ("Mn", "Cf", "Cc"):  # which show nothing alone
            shown.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
            escaped = True
    return Text("".join(shown), tuple(families), escaped)


@functools.cache
def _fonts() -> dict[str, str]:
    """Family -> file of its upright, regular style, outlines only; DejaVu Sans first."""
    from matplotlib import font_manager

    found: dict[str, str] = {}
    listed = sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.weight))
    for font in sorted(listed, key=lambda font: (font.style != "normal", font.weight != 400)):
        if "lastresort" not in font.name.replace(" ", "").lower():
            found.setdefault(font.name, font.fname)
    return {FAMILY: found.get(FAMILY, font_manager.findfont(FAMILY))} | found


@functools.cache
def characters_of(family: str) -> frozenset[int]:
    """Codes that a family has; none of a font of bitmaps, as colour emoji are, or a damaged one."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(_fonts()[family])
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@functools.lru_cache(maxsize=10_000)
def _family_of(code: int) -> str | None:
    return next((family for family in _fonts() if code in characters_of(family)), None)


@dataclass
class Measure:
    """How wide texts are at a resolution; knows whether a character had to be escaped."""

    dpi: int
    escaped: bool = False

    def __post_init__(self) -> None:
        figure = Canvas.blank(1.0, 1.0, dpi=self.dpi).figure
        self._renderer = figure.canvas.get_renderer()
        self._words: dict[tuple[str, float, str], float] = {}

    def inches(self, text: str, *, size: float, weight: str = "normal") -> float:
        """Width of a text."""
        from matplotlib.font_manager import FontProperties

        made = self._drawable(text)
        font = FontProperties(family=list(made.families), size=size, weight=weight)
        width, _, _ = self._renderer.get_text_width_height_descent(made.shown, font, ismath=False)
        return width / self.dpi

    def _drawable(self, text: str) -> Text:
        made = drawable(text)
        self.escaped |= made.escaped
        return made

    def shortened(self, text: str, inches: float, *, size: float, weight: str = "normal") -> str:
        """The text on one line, cut where it would be wider than that many inches."""
        text = self._drawable(text).shown[:1_000]
        if self.inches(text, size=size, weight=weight) <= inches:
            return text

        def too_wide(length: int) -> bool:
            return self.inches(text[:length].rstrip() + " …", size=size, weight=weight) > inches

        length = bisect.bisect_left(range(1, len(text)), True, key=too_wide)
        return text[:length].rstrip() + " …"

    def wrapped(
        self,
        text: str,
        inches: float,
        *,
        size: float,
        weight: str = "normal",
        max_lines: int = MAX_LINES,
    ) -> list[str]:
        """The text on lines of at most that many inches, broken between words, or within one that
        is wider than a line; the last of `max_lines` is cut.
        """
        rest = self._drawable(text).shown
        lines: list[str] = []
        while rest:
            if len(lines) + 1 == max_lines:
                return [*lines, self.shortened(rest, inches, size=size, weight=weight)]
            line, rest = self._first_line(rest, inches, size=size, weight=weight)
            lines.append(line)
        return lines or [""]

    def _first_line(self, text: str, inches: float, *, size: float, weight: str) -> tuple[str, str]:
        """What fits on a line, and the rest."""
        words, count, taken = text.split(" "), 0, 0.0
        for word in words:  # by the widths of words, which recur; the whole line is measured once
            taken += self._width_of_word(word, size, weight)
            if taken > inches + self._width_of_word("", size, weight):
                break
            count += 1
        while count > 1 and self.inches(" ".join(words[:count]), size=size, weight=weight) > inches:
            count -= 1
        if count:
            return " ".join(words[:count]), " ".join(words[count:])

        def too_wide(length: int) -> bool:
            return self.inches(words[0][:length], size=size, weight=weight) > inches

        fits = bisect.bisect_left(range(1, len(words[0]) + 1), True, key=too_wide)
        return text[: max(fits, 1)], text[max(fits, 1) :]

    def _width_of_word(self, word: str, size: float, weight: str) -> float:
        """With the space after it."""
        key = (word, size, weight)
        if key not in self._words:
            together = self.inches(f"{word} .", size=size, weight=weight)
            self._words[key] = together - self.inches(".", size=size, weight=weight)
        return self._words[key]


@dataclass(frozen=True)
class Canvas:
    """A figure in inches from its top left corner."""

    figure: Any  # matplotlib's
    width: float
    height: float

    @classmethod
    def blank(cls, width: float, height: float, *, dpi: int) -> "Canvas":
        """A white page."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
        FigureCanvasAgg(figure)
        return cls(figure, width, height)

    def panel(
        self, image: np.ndarray, left: float, top: float, *, size: tuple[float, float]
    ) -> Any:
        """Axes with the image, (0, 0) to (1, 1), in a place of `size` inches, (width, height)."""
        low = 1 - (top + size[1]) / self.height
        place = (left / self.width, low, size[0] / self.width, size[1] / self.height)
        axes = self.figure.add_axes(place)
        # Drawn images of few pixels stay crisp; photographs are smoothed.
        smooth = "nearest" if max(image.shape[:2]) <= 96 else "lanczos"
        axes.imshow(image, interpolation=smooth, extent=(0, 1, 1, 0))
        axes.set_aspect(size[1] / size[0])
        axes.set_axis_off()
        return axes

    def text(
        self,
        left: float,
        baseline: float,
        text: str,
        *,
        size: float,
        colour: str = INK,
        **options: Any,
    ) -> None:
        """A line of text."""
        if not text:
            return
        made = drawable(text)
        x, y = left / self.width, 1 - baseline / self.height
        options |= {"va": "baseline", "parse_math": False}  # captions hold prices, not formulas
        families = list(made.families)
        self.figure.text(
            x, y, made.shown, fontsize=size, color=colour, fontfamily=families, **options
        )

    def lines(
        self, left: float, baseline: float, lines: list[str], *, step: float, **options: Any
    ) -> float:
        """Lines of text below each other; returns the baseline after the last."""
        for number, line in enumerate(lines):
            self.text(left, baseline + number * step, line, **options)
        return baseline + len(lines) * step


def rectangle(corner: tuple[Any, Any], width: Any, height: Any, **style: Any) -> Any:
    """matplotlib's rectangle, to be added to axes or to the figure of a canvas."""
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, **style)
