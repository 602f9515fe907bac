"""curves.png: how the metrics of metrics.jsonl moved during a run."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.config.migration import migrate_metrics
from grain_jax.results import Result, read_json_lines
from grain_jax.visualize.canvas import FAINT, INK, Canvas

# A colour means one part of the model, in every panel; line and marker tell the rest apart.
IMAGE, BOXES, REGIONS, DESCRIBED, MIXED, WHOLE = (
    *("#0072b2", "#d55e00", "#009e73", "#b05f8a", "#8a6a00", INK),
)
LOSSES = {  # metric -> its line, colour and style; the first is the sum
    "loss": ("loss (sum)", WHOLE, "-"),
    "contrastive": ("contrastive", IMAGE, "-"),
    "box_l1": ("box L1", BOXES, "-"),
    "box_giou": ("box 1 - GIoU", BOXES, "--"),
    "region": ("region", REGIONS, "-"),
    "auxiliary_box": ("boxes of earlier layers", BOXES, ":"),
    "image_description": ("image to descriptions", DESCRIBED, "-"),
}
DESCRIPTION, NAME = ("description", "top1"), ("name", "top1")
FOLLOWED = {  # method and metric of a held-out set -> likewise
    ("model", "box_recall"): ("box recall", BOXES, "-"),
    ("model", "phrase_accuracy"): ("grounding Acc@0.5", REGIONS, "-"),
    ("retrieval", "mean_R@1"): ("retrieval, mean R@1", IMAGE, "-"),
    NAME: ("by name", IMAGE, "--"),  # of labelled images that are looked at during training
}
STYLES = ("-", "--", ":", "-.")  # of mixtures of image and regions
MARKERS = "osD^vP*X"
SPEED = "images_per_second"
HIGH = 0.9  # accuracy from which a panel is stretched towards 100 %
# Inches: a panel, the axes in it, and the gap between the names at the ends of lines.
PANEL, AXES, LEFT, TOP, LABEL_GAP = (5.4, 3.5), (2.95, 2.65), 0.6, 0.45, 0.16
DPI, ACROSS = 100, 2

Metrics = Sequence[dict[str, Any]]
Results = Mapping[int, Sequence[Result]]  # by step


@dataclass(frozen=True)
class Line:
    """A curve with the name that stands at its end."""

    name: str
    steps: list[int]
    values: list[float]
    colour: str = INK
    style: str = "-"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl by step; [] without the file.

    A step that was logged twice (a run that was killed and went on) counts as logged last, and a
    line that was cut off by a kill is skipped.
    """
    steps: dict[int, dict[str, Any]] = {}
    for entry in read_json_lines(path):
        steps.setdefault(entry["step"], {}).update(migrate_metrics(entry))
    return [steps[step] for step in sorted(steps)]


def draw_curves(metrics: Metrics, results: Results, path: Path) -> None:
    """Losses, held-out accuracy by description, other held-out metrics, and images a second; a
    panel without data is left out.

    Where accuracies come near 100 % the axis shows their distance from it on a logarithmic scale,
    or they would lie on each other. Raises ValueError when there is nothing to draw at all.
    """
    panels = [(title, lines) for title, lines in curve_panels(metrics, results) if lines]
    if not panels:
        raise ValueError("The metrics hold no loss, no held-out metric and no speed to draw.")
    across = min(ACROSS, len(panels))
    width, height = across * PANEL[0], -(-len(panels) // across) * PANEL[1]
    canvas = Canvas.blank(width, height, dpi=DPI)
    for number, (title, lines) in enumerate(panels):
        row, column = divmod(number, across)
        _draw_panel(canvas, title, lines, column * PANEL[0], row * PANEL[1])
    canvas.figure.savefig(path)


def curve_panels(metrics: Metrics, results: Results) -> list[tuple[str, list[Line]]]:
    """Titles of the panels, each with its lines; one without data has none."""
    losses = [
        Line(name, *_series(metrics, metric), colour, style)
        for metric, (name, colour, style) in LOSSES.items()
    ]
    speed = Line("", *_series(metrics, SPEED))
    return [
        ("Losses", [line for line in losses if line.steps]),
        ("Held-out accuracy by description, %", _described(results)),
        ("Other held-out metrics, %", _followed(results)),
        ("Images per second", [speed] if speed.steps else []),
    ]


def _draw_panel(canvas: Canvas, title: str, lines: list[Line], left: float, top: float) -> None:
    place = (
        (left + LEFT) / canvas.width,
        1 - (top + TOP + AXES[1]) / canvas.height,
        AXES[0] / canvas.width,
        AXES[1] / canvas.height,
    )
    axes = canvas.figure.add_axes(place)
    percent = title.endswith("%")
    values = [value for line in lines for value in line.values]
    stretched = percent and max(values) >= HIGH
    for number, line in enumerate(lines):
        shown = [100 * value for value in line.values] if percent else line.values
        if stretched:
            shown = [100 - value for value in shown]
        axes.plot(
            line.steps,
            shown,
            color=line.colour,
            linestyle=line.style,
            linewidth=1.6 + 1.6 * sum(_coincide(line, other) for other in lines[number + 1 :]),
            marker=MARKERS[number % len(MARKERS)] if len(line.steps) <= 30 else None,
            markersize=4,
            markerfacecolor="white",
            clip_on=False,
        )
    if stretched:
        _stretch(axes, 100 * (1 - min(values)))
    else:
        axes.set_ylim(bottom=0)
    canvas.text(left + LEFT, top + 0.3, title, size=11.0, weight="bold")
    axes.set_xlabel("step", color=FAINT, fontsize=9)
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=FAINT, length=0, labelsize=9)
    axes.minorticks_off()
    _name_lines(axes, lines, percent=percent)


def _coincide(line: Line, other: Line) -> bool:
    """Whether a stretch of one curve would hide the other, if they were as wide."""
    values = dict(zip(other.steps, other.values, strict=True))
    same = [values.get(step) == value for step, value in zip(line.steps, line.values, strict=True)]
    return any(first and second for first, second in itertools.pairwise(same))


def _stretch(axes: Any, largest_error: float) -> None:
    """The distance from 100 %, upside down and logarithmic but for the last 0.1, under its
    accuracy.
    """
    axes.set_yscale("symlog", linthresh=0.1, linscale=0.6)
    top = next((error for error in (10, 20, 50, 70, 100) if error >= largest_error), 100)
    axes.set_ylim(top, 0)
    ticks = [error for error in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0) if error <= top]
    axes.set_yticks(ticks, [f"{100 - error:g}" for error in ticks])


def _name_lines(axes: Any, lines: list[Line], *, percent: bool) -> None:
    """Each line's name and last value at its right, no two names over each other."""
    ends = []
    for line, drawn in zip(lines, axes.get_lines(), strict=True):
        last = float(np.asarray(drawn.get_ydata())[-1])
        _, y = axes.transData.transform((line.steps[-1], last))
        inches = axes.transAxes.inverted().transform((0, y))[1] * AXES[1]
        value = f"{100 * line.values[-1]:.1f}" if percent else f"{line.values[-1]:.3g}"
        ends.append((inches, f"{value}  {line.name}".rstrip(), line, drawn))
    ends.sort(key=lambda end: -end[0])
    places: list[float] = []
    for inches, *_ in ends:
        places.append(min(inches, places[-1] - LABEL_GAP) if places else inches)
    if places and places[-1] < 0:  # pushed out below: up again, from the lowest
        places[-1] = 0.0
        for number in range(len(places) - 2, -1, -1):
            places[number] = max(places[number], places[number + 1] + LABEL_GAP)
    right = 1 + 0.28 / AXES[0]
    for place, (inches, text, line, _) in zip(places, ends, strict=True):
        axes.plot(
            [1.02, right - 0.02],
            [inches / AXES[1], place / AXES[1]],
            transform=axes.transAxes,
            color=line.colour,
            linestyle=line.style,
            linewidth=1.2,
            clip_on=False,
        )
        style = {"va": "center", "fontsize": 8.5, "color": INK, "parse_math": False}
        axes.text(right, place / AXES[1], text, transform=axes.transAxes, **style)


def _series(metrics: Metrics, name: str) -> tuple[list[int], list[float]]:
    found = [(entry["step"], entry[name]) for entry in metrics if _is_number(entry.get(name))]
    return [step for step, _ in found], [float(value) for _, value in found]


def _over_steps(results: Results) -> list[tuple[Result, list[int], list[float]]]:
    """The last result of each kind with all its steps and values, where there are several."""
    found: dict[tuple, list[tuple[int, Result]]] = {}
    for step, measured in results.items():
        for result in measured:
            found.setdefault(result.identity, []).append((step, result))
    return [
        (same[-1][1], [step for step, _ in same], [result.value for _, result in same])
        for same in found.values()
        if len(same) > 1
    ]


def _described(results: Results) -> list[Line]:
    """Accuracy by description at each alpha, those measured at more than one step."""
    found = [
        (result.alpha, result.dataset, steps, values)
        for result, steps, values in _over_steps(results)
        if (result.method, result.metric) == DESCRIPTION and result.alpha is not None
    ]
    several = len({dataset for _, dataset, _, _ in found}) > 1
    lines, mixtures = [], sorted({alpha for alpha, *_ in found} - {0.0, 1.0}, reverse=True)
    for alpha, dataset, steps, values in found:
        colour = {1.0: IMAGE, 0.0: REGIONS}.get(alpha, MIXED)
        style = STYLES[mixtures.index(alpha) % len(STYLES)] if alpha in mixtures else "-"
        name = f"alpha = {alpha:g}" + (f", {dataset}" if several else "")
        lines.append(Line(name, steps, values, colour, style))
    return lines


def _followed(results: Results) -> list[Line]:
    """The other figures that a run is followed by, those measured at more than one step."""
    found = [
        (result.dataset, (result.method, result.metric), steps, values)
        for result, steps, values in _over_steps(results)
        if (result.method, result.metric) in FOLLOWED
    ]
    counts, seen = Counter(kind for _, kind, *_ in found), Counter[tuple[str, str]]()
    lines = []
    for dataset, kind, steps, values in found:
        title, colour, style = FOLLOWED[kind]
        own = f"{title}, {dataset}" if counts[kind] > 1 or kind == NAME else title
        style = style if not seen[kind] else STYLES[seen[kind] % len(STYLES)]
        lines.append(Line(own, steps, values, colour, style))
        seen[kind] += 1
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
