"""curves.png: how the figures of metrics.jsonl moved during a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LOSSES = {  # metric -> its line in the picture; the first is the sum
    "loss": "loss (sum)",
    "contrastive": "contrastive",
    "box_l1": "box L1",
    "box_giou": "box 1 - GIoU",
    "region": "region",
    "auxiliary_box": "boxes of earlier layers",
    "image_description": "image to descriptions",
}
FOLLOWED = {  # held-out metric without its split -> its line, beside accuracy by description
    "box_recall": "box recall",
    "phrase_accuracy": "phrase right",
    "retrieval/mean_R@1": "retrieval, mean R@1",
}
SPEED = "images_per_second"
COLOURS = ("#202124", "#1f77ff", "#e6194b", "#ffb000", "#00b894", "#c13bd8", "#8d6e63", "#12c2e9")
FAINT = "#6b7075"

Records = Sequence[dict[str, Any]]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl by step; [] without the file.

    A step that was logged twice (a run that was killed and went on) counts as logged last, and a
    line that was cut off by a kill is skipped.
    """
    if not path.exists():
        return []
    steps: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            steps.setdefault(entry["step"], {}).update(entry)
    return [steps[step] for step in sorted(steps)]


def draw_curves(records: Records, path: Path) -> None:
    """Losses, held-out figures in percent, and images a second; a panel without data is left out.

    Raises ValueError when there is nothing to draw at all.
    """
    held_out = _held_out(records)
    losses = {title: _series(records, name) for name, title in LOSSES.items()}
    panels = [
        ("Losses", {title: line for title, line in losses.items() if line[0]}, None),
        ("Held-out data, %", held_out, 100.0),
        ("Images per second", {"": _series(records, SPEED)}, None),
    ]
    panels = [panel for panel in panels if any(steps for steps, _ in panel[1].values())]
    if not panels:
        raise ValueError("The metrics hold no loss, no held-out figure and no speed to draw.")
    figure = Figure(figsize=(5.2 * len(panels), 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, lines, scale) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for number, (name, (steps, values)) in enumerate(lines.items()):
            shown = values if scale is None else [scale * value for value in values]
            axes.plot(
                steps,
                shown,
                color=COLOURS[number % len(COLOURS)],
                linewidth=2.0 if number == 0 else 1.4,
                marker="o" if len(steps) <= 30 else None,
                markersize=3,
                label=name,
            )
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("step", color=FAINT, fontsize=8.5)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(colors=FAINT, length=0, labelsize=8.5)
        if any(lines):  # below, where no line can run into it
            place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.16), "ncols": 2}
            axes.legend(frameon=False, fontsize=8, **place)
    figure.savefig(path)


def _series(records: Records, name: str) -> tuple[list[int], list[float]]:
    found = [(entry["step"], entry[name]) for entry in records if _is_number(entry.get(name))]
    return [step for step, _ in found], [float(value) for _, value in found]


def _held_out(records: Records) -> dict[str, tuple[list[int], list[float]]]:
    """The figures that a run is followed by, those measured at more than one step."""
    lines = {}
    for name in dict.fromkeys(name for entry in records for name in entry):
        _, described, alpha = name.partition("/description/alpha")
        title = FOLLOWED.get(name.partition("/")[2], "")
        if described and "/" not in alpha:
            title = f"by description, alpha = {alpha}"
        line = _series(records, name)
        if title and len(line[0]) > 1:
            lines[title] = line
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
