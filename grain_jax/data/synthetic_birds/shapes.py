"""Outlines of birds and objects as polygons, each in coordinates of its own (x right, y down).

A bird faces right, its body about the origin, and spans about [-1.3, 1.15] x [-1.15, 1.0].
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.data.synthetic_birds.species import PARTS, Species

Points = list[tuple[float, float]]

BODY = [
    (0.36, -0.70), (0.60, -0.62), (0.71, -0.38), (0.64, -0.12), (0.58, 0.14), (0.36, 0.42),
    (-0.02, 0.52), (-0.38, 0.40), (-0.66, 0.12), (-0.40, -0.06), (-0.08, -0.20), (0.10, -0.46),
]  # fmt: skip
BELLY = [
    (0.58, -0.10), (0.54, 0.13), (0.35, 0.37), (0.00, 0.47), (-0.24, 0.41), (0.10, 0.33),
    (0.34, 0.12),
]  # fmt: skip
WING = [
    (0.24, -0.10), (0.34, 0.06), (0.22, 0.24), (-0.12, 0.32), (-0.46, 0.30), (-0.74, 0.22),
    (-0.50, 0.08), (-0.22, -0.08), (0.04, -0.16),
]  # fmt: skip
"""Outlines smoothed into curves: the body with its head, its light belly, the folded wing."""


def smooth(points: Points, *, steps: int = 4) -> Points:
    """A closed Catmull-Rom curve through the points, `steps` vertices from each to the next."""
    p = np.asarray(points)
    before, after, second = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    curve = []
    for t in np.arange(steps) / steps:
        slope_in, slope_out = (after - before) / 2, (second - p) / 2
        curve.append(
            (2 * t**3 - 3 * t**2 + 1) * p
            + (t**3 - 2 * t**2 + t) * slope_in
            + (3 * t**2 - 2 * t**3) * after
            + (t**3 - t**2) * slope_out
        )
    return [(float(x), float(y)) for x, y in np.stack(curve, 1).reshape(-1, 2)]


def ellipse(x: float, y: float, rx: float, ry: float, *, sides: int = 16) -> Points:
    """An ellipse as a polygon."""
    angles = 2 * np.pi * np.arange(sides) / sides
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]


def _leg(x: float) -> Points:
    """A leg with three toes."""
    return [
        (x - 0.09, 0.30), (x + 0.09, 0.30), (x + 0.09, 0.78), (x + 0.27, 0.86), (x + 0.27, 0.99),
        (x - 0.17, 0.99), (x - 0.17, 0.88), (x - 0.09, 0.80),
    ]  # fmt: skip


OUTLINES: dict[tuple[str, str], list[Points]] = {
    ("crest", "spiky"): [
        [(0.10, -0.44), (-0.06, -0.84), (0.17, -0.74), (0.24, -1.14), (0.40, -0.82), (0.62, -1.08),
         (0.62, -0.54)],
    ],
    ("crest", "round"): [ellipse(0.34, -0.88, 0.23, 0.23)],
    ("crest", "tall"): [
        smooth([(0.30, -0.60), (0.22, -0.86), (0.28, -1.16), (0.40, -1.30), (0.50, -1.14),
                (0.52, -0.86), (0.44, -0.60)]),
    ],
    ("crest", "swept"): [
        smooth([(0.56, -0.58), (0.44, -0.86), (0.10, -0.98), (-0.30, -0.94), (-0.12, -0.82),
                (-0.02, -0.66), (0.14, -0.44)]),
    ],
    ("beak", "pointed"): [[(0.60, -0.56), (1.22, -0.34), (0.60, -0.18)]],
    ("beak", "hooked"): [
        smooth([(0.56, -0.58), (0.84, -0.62), (1.05, -0.42), (1.06, -0.16), (0.98, 0.02),
                (0.90, -0.20), (0.74, -0.22), (0.56, -0.18)]),
    ],
    ("beak", "flat"): [
        smooth([(0.58, -0.44), (0.80, -0.40), (1.10, -0.42), (1.20, -0.28), (1.10, -0.16),
                (0.80, -0.18), (0.58, -0.20)]),
    ],
    ("beak", "open"): [
        [(0.56, -0.56), (0.74, -0.62), (1.16, -0.64), (0.74, -0.36), (1.08, -0.08), (0.80, -0.08),
         (0.56, -0.18)],
    ],
    ("wing", "plain"): [smooth(WING)],
    ("tail", "forked"): [
        [(-0.48, 0.00), (-1.30, -0.24), (-1.00, 0.10), (-1.28, 0.44), (-0.48, 0.26)],
    ],
    ("tail", "fanned"): [
        [(-0.48, 0.12), (-0.78, -0.42), (-0.88, -0.45), (-0.98, -0.38), (-0.99, -0.27),
         (-1.10, -0.24), (-1.17, -0.13), (-1.12, -0.02), (-1.20, 0.06), (-1.21, 0.18),
         (-1.11, 0.26), (-1.13, 0.38), (-1.06, 0.48), (-0.96, 0.48), (-0.92, 0.57),
         (-0.80, 0.58)],
    ],
    ("tail", "long"): [
        smooth([(-0.44, 0.02), (-0.80, 0.10), (-1.20, 0.34), (-1.46, 0.58), (-1.28, 0.60),
                (-0.84, 0.40), (-0.44, 0.28)]),
    ],
    ("tail", "curled"): [
        smooth([(-0.46, 0.26), (-0.86, 0.20), (-1.10, -0.12), (-1.04, -0.50), (-0.78, -0.66),
                (-0.58, -0.50), (-0.74, -0.44), (-0.84, -0.30), (-0.78, -0.12), (-0.46, -0.02)]),
    ],
    ("body", ""): [smooth(BODY)],
    ("legs", ""): [_leg(-0.16), _leg(0.22)],
}  # fmt: skip
PATTERNS: dict[str, list[Points]] = {  # on the wing, in a contrasting colour
    "plain": [],
    "spotted": [
        ellipse(x, y, 0.065, 0.06, sides=9)
        for x, y in [(0.17, 0.04), (-0.02, -0.03), (0.02, 0.19), (-0.20, 0.12), (-0.42, 0.20)]
    ],
    "striped": [
        [(x, y), (x + 0.09, y), (x - 0.03, y + h), (x - 0.12, y + h)]
        for x, y, h in [(0.14, -0.06, 0.29), (-0.08, -0.06, 0.34), (-0.28, 0.02, 0.27)]
    ],
    "tipped": [
        smooth([(-0.69, 0.21), (-0.49, 0.12), (-0.26, 0.01), (-0.22, 0.28), (-0.46, 0.265)])
    ],
}
EYE = {
    "eye white": ellipse(0.47, -0.42, 0.125, 0.125),
    "pupil": ellipse(0.495, -0.42, 0.085, 0.085),
    "glint": ellipse(0.525, -0.455, 0.032, 0.032, sides=6),
}
JOINTS = {  # about which a part is turned a little by the pose; wing and body stay together
    "crest": (0.34, -0.56), "beak": (0.60, -0.36), "wing": (0.10, 0.05), "body": (0.0, 0.1),
    "tail": (-0.50, 0.14), "legs": (0.04, 0.36),
}  # fmt: skip
DRAWING_ORDER = ("tail", "legs", "crest", "beak", "body", "wing")

OBJECT_OUTLINES: dict[str, list[tuple[str, Points]]] = {
    "stone": [  # (paint, outline), in units of the object's size
        ("main", smooth([(-0.9, 0.45), (-0.75, -0.2), (-0.2, -0.6), (0.5, -0.45), (0.9, 0.3),
                         (0.3, 0.6), (-0.4, 0.6)])),
        ("light", ellipse(-0.15, -0.2, 0.4, 0.18)),
    ],
    "leaf": [
        ("main", smooth([(-1.0, 0.0), (-0.3, -0.5), (0.5, -0.35), (1.0, 0.0), (0.5, 0.35),
                         (-0.3, 0.5)])),
        ("dark", [(-1.25, -0.05), (0.8, -0.04), (0.8, 0.04), (-1.25, 0.05)]),
    ],
    "flower": [
        ("stem", [(-0.07, 0.0), (0.07, 0.0), (0.07, 1.5), (-0.07, 1.5)]),
        ("main", [(r * float(np.cos(a)), r * float(np.sin(a))) for k in range(20)
                  for a, r in [(k * np.pi / 10, (0.8, 0.72, 0.45, 0.72)[k % 4])]]),
        ("heart", ellipse(0.0, 0.0, 0.3, 0.3, sides=8)),
    ],
    "berry": [
        ("stem", [(-0.05, -1.2), (0.07, -1.2), (0.07, -0.3), (-0.07, -0.3)]),
        ("main", ellipse(0.0, 0.0, 0.6, 0.6)),
        ("light", ellipse(-0.18, -0.22, 0.16, 0.14, sides=7)),
    ],
    "mushroom": [
        ("pale", [(-0.28, 0.0), (0.28, 0.0), (0.36, 0.95), (-0.36, 0.95)]),
        ("main", smooth([(-0.9, 0.1), (-0.7, -0.45), (0.0, -0.8), (0.7, -0.45), (0.9, 0.1),
                         (0.0, 0.2)])),
        ("pale", ellipse(-0.3, -0.3, 0.15, 0.12, sides=7)),
        ("pale", ellipse(0.25, -0.4, 0.17, 0.13, sides=7)),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A bird as one array of vertices and the polygons made of them, in the order of drawing."""

    vertices: Float[np.ndarray, "V 2"]
    joint: Float[np.ndarray, "V 2"]  # of the part that a vertex belongs to
    part: Int[np.ndarray, "V"]  # index in PARTS
    polygons: tuple[
        tuple[int, int, str, int], ...
    ]  # first, last + 1, paint, id in the mask (0: none)


@functools.lru_cache(maxsize=512)
def figure(species: Species) -> Figure:
    """The polygons of a species. Paint: a part's name, or what is upon it, as "belly", "pupil"."""
    vertices: Points = []
    part_of: list[str] = []
    polygons = []

    def add(points: Points, part: str, paint: str, *, in_mask: bool) -> None:
        start = len(vertices)
        vertices.extend(points)
        part_of.extend([part] * len(points))
        polygons.append((start, len(vertices), paint, PARTS.index(part) + 1 if in_mask else 0))

    for part in DRAWING_ORDER:
        shape = species.trait(part).shape
        for points in OUTLINES[part, "plain" if part == "wing" else shape]:
            add(points, part, part, in_mask=True)
        if part == "body":
            add(smooth(BELLY), "body", "belly", in_mask=False)
            add(ellipse(0.50, -0.23, 0.09, 0.06, sides=8), "body", "cheek", in_mask=False)
            for paint, points in EYE.items():
                add(points, "body", paint, in_mask=False)
        if part == "wing":
            for points in PATTERNS[shape]:
                add(points, "wing", "pattern", in_mask=False)
    return Figure(
        vertices=np.asarray(vertices),
        joint=np.asarray([JOINTS[part] for part in part_of]),
        part=np.asarray([PARTS.index(part) for part in part_of]),
        polygons=tuple(polygons),
    )
