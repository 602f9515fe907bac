"""Draw a scene and compute the visible box of each thing in it.

Every polygon that can be described is also drawn into a mask, as an id instead of a colour. The
pixels that an id still has when everything is drawn give its box, so boxes are exact under
occlusion and at the frame.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from grain_jax.boxes import Box
from grain_jax.data.synthetic_birds.backdrop import (
    Colour,
    Draw,
    blend,
    paint_backdrop,
    paint_clutter,
    shade,
)
from grain_jax.data.synthetic_birds.language import OBJECTS, OTHER_BIRD, describe_object
from grain_jax.data.synthetic_birds.shapes import OBJECT_OUTLINES, Figure, figure
from grain_jax.data.synthetic_birds.species import PARTS, Species

SUPERSAMPLING = 2
MIN_PIXELS = 4  # of the final image; a part with fewer does not count as visible
MIN_VISIBLE = 0.35  # fraction of a part that must not be covered
PALETTE: dict[str, Colour] = {
    "red": (220, 42, 46),
    "orange": (250, 140, 24),
    "yellow": (255, 220, 56),
    "green": (44, 160, 74),
    "blue": (38, 100, 220),
    "purple": (150, 62, 196),
    "white": (252, 250, 246),
    "black": (38, 36, 46),
    "gray": (150, 152, 158),
    "brown": (146, 100, 66),
}
FIXED_PAINT: dict[str, Colour] = {
    "eye white": (255, 255, 255),
    "pupil": (24, 22, 30),
    "glint": (255, 255, 255),
    "stem": (96, 138, 78),
    "heart": (250, 206, 80),
    "pale": (250, 244, 230),
}
CREAM, INK, BLUSH, GLOW = (252, 246, 228), (58, 46, 50), (255, 120, 120), (255, 250, 236)


@dataclass(frozen=True)
class Difficulty:
    """Drawing parameters of one difficulty. Lengths are fractions of the image's side."""

    mood: str  # of the backdrop
    scale: tuple[float, float]  # of the unit in which birds are drawn
    rotation: float  # largest rotation either way, radians
    bend: float  # likewise of each part about its joint
    flip: bool  # half of the birds look left
    overhang: float  # how far a bird may reach out of the image
    clutter: int  # most things in the back that nobody describes
    objects: int  # most objects
    in_front: float  # probability that an object may hide a part of the bird
    other_birds: int  # most
    grain: int  # of the noise, grey levels


DIFFICULTIES = {
    "easy": Difficulty(
        "pale", (0.29, 0.37), 0.07, 0.08, False, 0.0, 0, 2, 0.3, 0, 0,
    ),
    "hard": Difficulty(
        "strong", (0.21, 0.33), 0.30, 0.22, True, 0.08, 7, 5, 0.5, 2, 7,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """An image and the visible boxes (xyxy in [0, 1]) of what is in it."""

    image: UInt8[np.ndarray, "S S 3"]
    parts: dict[str, Box]  # of the one bird that the image is about, in the order of PARTS
    objects: tuple[tuple[str, Box], ...]  # description and box of stones, leaves, other birds...


def draw_scene(
    species: Species,
    rng: np.random.Generator,
    *,
    difficulty: Difficulty,
    image_size: int,
    others: Sequence[Species] = (),
) -> Scene:
    """Draws a bird of `species` in the foreground; birds of `others` may be behind it.

    Args:
        rng: every random choice comes from it.
        difficulty: one of `DIFFICULTIES`.
        image_size: pixels a side of the square image.
        others: species of the birds in the background; empty for none.
    """
    draw = uniform_numbers(rng).__next__
    size = SUPERSAMPLING * image_size
    margin = math.ceil(difficulty.overhang * size)
    bird = figure(species)
    low, high = difficulty.scale
    scale = (low + (high - low) * draw()) * size
    slack = difficulty.overhang * size
    points = _pose(bird, draw, difficulty=difficulty, size=size, scale=scale, slack=slack)
    legs = points[bird.part == PARTS.index("legs")]
    feet = (float(legs[:, 0].mean()), float(legs[:, 1].max()))
    backdrop, horizon = paint_backdrop(difficulty.mood, draw, size=size, feet=feet)
    canvas = _Canvas(backdrop, horizon, margin)
    paint_clutter(canvas.pen, draw, size=size, count=int(draw() * (difficulty.clutter + 1)))

    described: list[str] = []
    for _ in range(int(draw() * (difficulty.other_birds + 1)) if others else 0):
        other = others[int(draw() * len(others))]
        body = other.trait("body").colour
        described.append(OTHER_BIRD.format(body))
        size_fraction = 0.55 + 0.3 * draw()
        behind = _pose(
            figure(other),
            draw,
            difficulty=difficulty,
            size=size,
            scale=size_fraction * scale,
            slack=slack,
        )
        canvas.bird(other, behind, draw, whole_id=len(PARTS) + len(described))
    num_objects = int(draw() * (difficulty.objects + 1))
    num_front = sum(draw() < difficulty.in_front for _ in range(num_objects))
    for _ in range(num_objects - num_front):
        described.append(canvas.thing(draw, len(PARTS) + len(described) + 1))
    canvas.count()
    canvas.bird(species, points, draw)
    canvas.count()
    for _ in range(num_front):
        aim = points[bird.part == int(draw() * len(PARTS))].mean(0).tolist()
        described.append(canvas.thing(draw, len(PARTS) + len(described) + 1, before=tuple(aim)))
    canvas.count()

    boxes = canvas.visible_boxes(len(PARTS) + len(described))
    pixels = np.array(canvas.image.reduce(SUPERSAMPLING))
    if difficulty.grain:
        noise = rng.integers(
            -difficulty.grain, difficulty.grain + 1, (*pixels.shape[:2], 1), dtype=np.int8
        )
        pixels = np.clip(pixels.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    ids = enumerate(described, start=len(PARTS) + 1)
    return Scene(
        image=pixels,
        parts={part: boxes[k] for k, part in enumerate(PARTS, start=1) if k in boxes},
        objects=tuple((text, boxes[k]) for k, text in ids if k in boxes),
    )


def uniform_numbers(rng: np.random.Generator) -> Iterator[float]:
    """Numbers in [0, 1) as Python floats, drawn in blocks because one at a time is slow."""
    while True:
        yield from rng.random(128).tolist()


def _pose(
    bird: Figure, draw: Draw, *, difficulty: Difficulty, size: int, scale: float, slack: float
) -> Float[np.ndarray, "V 2"]:
    """Vertices in pixels: each part rotated about its joint, then the bird placed in the frame.

    `scale`: pixels per unit; `slack`: how far outside the frame the bird may reach, in pixels.
    """
    bends = np.asarray([(2 * draw() - 1) * difficulty.bend for _ in PARTS])
    bends[PARTS.index("body")] = 0.0
    cos, sin = np.cos(bends)[bird.part], np.sin(bends)[bird.part]
    x, y = (bird.vertices - bird.joint).T
    bent = np.stack([cos * x - sin * y, sin * x + cos * y], axis=1) + bird.joint
    stretch = 0.92 + 0.16 * draw()
    turn = (2 * draw() - 1) * difficulty.rotation
    mirror = -1.0 if difficulty.flip and draw() < 0.5 else 1.0
    cos_turn, sin_turn = math.cos(turn), math.sin(turn)
    matrix = np.asarray([[cos_turn, sin_turn], [-sin_turn, cos_turn]]) * scale
    matrix = np.asarray([[mirror * stretch], [1 / stretch]]) * matrix
    points = bent @ matrix
    lowest, highest = points.min(0), points.max(0)
    edge = 0.02 * size - slack
    room = (size - 2 * edge) - (highest - lowest)
    # A bird larger than the frame is centred; others go where at most `slack` is outside.
    where = np.asarray([draw(), draw()])
    offset = edge - lowest + np.where(room > 0, where, 0.5) * room
    return points + offset


class _Canvas:
    """The image and its mask of ids, wider by `margin` to know what the frame cuts off."""

    def __init__(self, image: Image.Image, horizon: float, margin: int):
        self.image, self.horizon, self.margin = image, horizon, margin
        self.size = image.width
        self.pen = ImageDraw.Draw(image)
        wide = self.size + 2 * margin
        self.mask = Image.new("L", (wide, wide))
        self.mask_pen = ImageDraw.Draw(self.mask)
        self.whole = [0] * 256  # pixels of each id when it was just drawn

    def bird(
        self,
        species: Species,
        points: Float[np.ndarray, "V 2"],
        draw: Draw,
        *,
        whole_id: int | None = None,
    ) -> None:
        """Draws a bird, its parts under ids of their own (index in PARTS + 1) or all under one."""
        paints = dict(FIXED_PAINT)
        for part, trait in zip(PARTS, species.traits, strict=True):
            paints[part] = _vary(PALETTE[trait.colour], draw)
        paints["belly"] = blend(paints["body"], GLOW, 0.22)
        paints["cheek"] = blend(paints["body"], BLUSH, 0.45)
        light = sum(PALETTE[species.trait("wing").colour]) > 480
        paints["pattern"] = INK if light else CREAM
        flat = points.ravel().tolist()
        flat_mask = (points + self.margin).ravel().tolist()
        for start, stop, paint, part_id in figure(species).polygons:
            colour = paints[paint]
            edge = shade(colour, 0.62) if part_id else None
            self.pen.polygon(flat[2 * start : 2 * stop], fill=colour, outline=edge)
            if part_id:
                mask_id = part_id if whole_id is None else whole_id
                self._mask(flat_mask[2 * start : 2 * stop], mask_id, outlined=True)

    def thing(self, draw: Draw, mask_id: int, *, before: tuple[float, float] | None = None) -> str:
        """Draws a stone, leaf, flower... under this id and returns its description.

        Leaves and berries hang about, or `before` this point; the rest stands on the ground.
        """
        kind = _KINDS[int(draw() * len(_KINDS))]
        colour = OBJECTS[kind][int(draw() * len(OBJECTS[kind]))]
        main = _vary(PALETTE[colour], draw)
        paints = {**FIXED_PAINT, "main": main, "light": shade(main, 1.35), "dark": shade(main, 0.7)}
        r = (0.045 + 0.035 * draw()) * self.size * (1.3 if before else 1.0)
        x, y = (0.04 + 0.92 * draw()) * self.size, draw()
        if kind in ("leaf", "berry"):
            y = (0.04 + 0.92 * y) * self.size
            if before:
                jitter = 0.08 * self.size * (draw() - 0.5), 0.08 * self.size * (draw() - 0.5)
                x, y = before[0] + jitter[0], before[1] + jitter[1]
            turn = (draw() - 0.5) * (5.0 if kind == "leaf" else 0.8)
        else:
            top = min(self.horizon + 0.5 * r, 0.93 * self.size)
            y = top + y * (0.98 * self.size - top) - 0.8 * r
            turn = (draw() - 0.5) * 0.3
        cos, sin = r * math.cos(turn), r * math.sin(turn)
        for paint, points in OBJECT_OUTLINES[kind]:
            flat = [v for a, b in points for v in (x + cos * a - sin * b, y + sin * a + cos * b)]
            fill, outlined = paints[paint], paint == "main"
            self.pen.polygon(flat, fill=fill, outline=shade(fill, 0.7) if outlined else None)
            self._mask([v + self.margin for v in flat], mask_id, outlined=outlined)
        return describe_object(kind, colour)

    def _mask(self, points: list[float], mask_id: int, *, outlined: bool) -> None:
        self.mask_pen.polygon(points, fill=mask_id)
        if outlined:  # a call of its own: Pillow draws no outline that is like the filling
            self.mask_pen.polygon(points, outline=mask_id)

    def count(self) -> None:
        """Notes how many pixels each id has before anything else is drawn over it."""
        now = self.mask.histogram()
        self.whole = [old or new for old, new in zip(self.whole, now, strict=True)]

    def visible_boxes(self, num_ids: int) -> dict[int, Box]:
        """Box of each id of which enough is left in the image."""
        m, n = self.margin, self.size
        mask = self.mask.crop((m, m, m + n, m + n)) if m else self.mask
        left = mask.histogram()
        boxes = {}
        for k in range(1, num_ids + 1):
            enough = max(MIN_PIXELS * SUPERSAMPLING**2, MIN_VISIBLE * self.whole[k])
            corners = mask.point(_ONLY[k]).getbbox() if left[k] >= enough else None
            if corners:
                x0, y0, x1, y1 = corners
                boxes[k] = (x0 / n, y0 / n, x1 / n, y1 / n)
        return boxes


_KINDS = tuple(OBJECTS)
_ONLY = [
    [255 if value == k else 0 for value in range(256)] for k in range(256)
]  # tables that keep one id


def _vary(colour: Colour, draw: Draw) -> Colour:
    """The same colour as another individual has it."""
    light = 20 * (draw() - 0.5)
    r, g, b = (max(0, min(255, int(c + light + 10 * (draw() - 0.5)))) for c in colour)
    return r, g, b
