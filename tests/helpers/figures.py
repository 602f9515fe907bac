"""What a drawn page says, and where."""

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox


def texts_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text of the page and of the panels on it, with its place in pixels."""
    renderer = figure.canvas.get_renderer()
    found = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in found]
