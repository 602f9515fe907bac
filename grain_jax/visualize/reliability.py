"""Reliability diagrams: how often answers of each confidence are right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grain_jax.visualize.canvas import FAINT, INK, PALETTE, Canvas, Measure

DPI = 100
# Inches: a panel, the axes in it, their distance from its left and its top.
PANEL, AXES, LEFT, TOP = (4.4, 4.2), (3.4, 3.0), 0.75, 0.6
POINT = PALETTE[0]
LARGEST, LEAST = 90.0, 12.0  # area of a point, in points squared


@dataclass(frozen=True)
class Diagram:
    """A panel. Of each bin: mean confidence and accuracy in [0, 1], and its number of images."""

    title: str
    bins: Sequence[tuple[float, float, int]]


def draw_reliability(diagrams: Sequence[Diagram], path: Path) -> None:
    """Writes the panels beside each other, as one image: accuracy over confidence, a point for each
    bin, its area by the number of images. On the diagonal a confidence is what it says.

    Raises ValueError where there are none.
    """
    if not diagrams:
        raise ValueError("There is nothing to draw.")
    canvas = Canvas.blank(PANEL[0] * len(diagrams), PANEL[1], dpi=DPI)
    measure = Measure(DPI)
    for number, diagram in enumerate(diagrams):
        left = number * PANEL[0] + LEFT
        low = 1 - (TOP + AXES[1]) / canvas.height
        axes = canvas.figure.add_axes(
            (left / canvas.width, low, AXES[0] / canvas.width, AXES[1] / canvas.height)
        )
        axes.plot([0, 100], [0, 100], color=FAINT, linestyle="--", linewidth=1.2, zorder=1)
        confidences = [100 * confidence for confidence, _, _ in diagram.bins]
        accuracies = [100 * accuracy for _, accuracy, _ in diagram.bins]
        for confidence, accuracy in zip(confidences, accuracies, strict=True):
            axes.plot(
                [confidence] * 2, [confidence, accuracy], color=POINT, linewidth=1.4, zorder=2
            )
        most = max((count for _, _, count in diagram.bins), default=1)
        areas = [LEAST + (LARGEST - LEAST) * count / most for _, _, count in diagram.bins]
        axes.scatter(
            confidences, accuracies, s=areas, color=POINT, edgecolor=INK, linewidth=0.8, zorder=3
        )
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("confidence, %", color=FAINT, fontsize=9)
        axes.set_ylabel("accuracy, %", color=FAINT, fontsize=9)
        axes.grid(color="#e3e5e8", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=FAINT, length=0, labelsize=9)
        title = measure.shortened(diagram.title, PANEL[0] - LEFT, size=11.0, weight="bold")
        canvas.text(left, 0.32, title, size=11.0, weight="bold")
    canvas.figure.savefig(path, format="png")
