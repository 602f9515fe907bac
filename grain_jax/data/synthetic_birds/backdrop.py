"""The background of a scene: sky, hills, ground or a perch, clutter. None of it is described."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Draw = Callable[[], float]

# (sky above, sky at the horizon, ground) of each mood
BACKDROPS: dict[str, tuple[tuple[Colour, Colour, Colour], ...]] = {
    "pale": (
        ((198, 224, 240), (232, 240, 240), (218, 228, 196)),
        ((226, 220, 240), (246, 234, 236), (220, 214, 226)),
        ((250, 226, 208), (252, 242, 224), (234, 218, 190)),
        ((202, 230, 222), (236, 244, 230), (206, 222, 200)),
        ((222, 230, 240), (244, 246, 248), (230, 234, 238)),
    ),
    "strong": (
        ((70, 140, 214), (176, 214, 236), (104, 152, 74)),
        ((108, 72, 142), (244, 150, 104), (92, 70, 92)),
        ((40, 92, 74), (112, 156, 96), (66, 92, 50)),
        ((240, 176, 90), (252, 226, 160), (196, 132, 72)),
        ((34, 46, 92), (92, 106, 160), (48, 62, 78)),
        ((120, 190, 200), (224, 236, 220), (214, 186, 132)),
        ((176, 186, 194), (216, 220, 222), (126, 122, 116)),
    ),
}
BARK, BARK_LIGHT = (150, 116, 88), (176, 142, 112)


def shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1, towards white above."""
    r, g, b = colour
    if factor <= 1:
        return int(r * factor), int(g * factor), int(b * factor)
    return blend(colour, (255, 255, 255), factor - 1)


def blend(first: Colour, second: Colour, fraction: float) -> Colour:
    """The first colour with `fraction` (0 to 1) of the second mixed in."""
    (r, g, b), (u, v, w) = first, second
    return (
        int(r + (u - r) * fraction),
        int(g + (v - g) * fraction),
        int(b + (w - b) * fraction),
    )


def paint_backdrop(
    mood: str, draw: Draw, *, size: int, feet: tuple[float, float]
) -> tuple[Image.Image, float]:
    """A backdrop [size, size] to stand on at `feet` (x, y), and its horizon (y); all in pixels."""
    palettes = BACKDROPS[mood]
    high, low, ground = palettes[int(draw() * len(palettes))]
    light = 0.94 + 0.1 * draw()
    high, low, ground = shade(high, light), shade(low, light), shade(ground, light)
    x, y = feet
    rows = np.linspace(high, low, size).round().astype(np.uint8)
    image = Image.fromarray(rows[:, None, :]).resize((size, size), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)

    if draw() < 0.5:  # a sun or a moon
        r, at, top = (0.07 + 0.06 * draw()) * size, draw() * size, draw() * 0.35 * size
        pen.ellipse((at - r, top - r, at + r, top + r), fill=blend(high, (255, 252, 236), 0.6))
    for _ in range(int(draw() * 3)):  # clouds
        w, at, top = (0.1 + 0.08 * draw()) * size, draw() * size, (0.05 + 0.35 * draw()) * size
        white = blend(high, (255, 255, 255), 0.5)
        pen.ellipse((at - w, top - 0.3 * w, at + w, top + 0.3 * w), fill=white)
        pen.ellipse((at - 0.4 * w, top - 0.6 * w, at + 0.5 * w, top + 0.2 * w), fill=white)

    perched = draw() < 0.35
    horizon = size * (0.86 + 0.12 * draw()) if perched else y - (0.02 + 0.12 * draw()) * size
    for k in range(2):  # hills
        w, h = (0.5 + 0.5 * draw()) * size, (0.06 + 0.14 * draw()) * size
        at = draw() * size
        hill = blend(low, ground, 0.4 + 0.3 * k)
        pen.ellipse((at - w, horizon - h, at + w, horizon + 2 * h), fill=hill)
    rise = (0.02 + 0.06 * draw()) * size
    pen.ellipse((-0.7 * size, horizon - rise, 1.7 * size, horizon + 3 * size), fill=ground)
    if perched:
        slope, thick = (draw() - 0.5) * 0.3, (0.018 + 0.014 * draw()) * size
        ends = (0.0 if draw() < 0.5 else x - 0.3 * size, size + 1.0)
        left, right = (y + slope * (end - x) for end in ends)
        pen.polygon(
            (ends[0], left - thick, ends[1], right - thick * 0.7, ends[1], right + thick,
             ends[0], left + thick),
            fill=blend(BARK, ground, 0.3),
        )  # fmt: skip
        pen.line(
            (ends[0], left - thick, ends[1], right - thick), fill=blend(BARK_LIGHT, ground, 0.3)
        )
    else:
        w = 0.2 * size
        pen.ellipse((x - w, y - 0.03 * size, x + w, y + 0.035 * size), fill=shade(ground, 0.9))
        tuft = shade(ground, 0.93)
        for _ in range(int(draw() * 6)):
            at, base = draw() * size, horizon + draw() * (size - horizon)
            h = (0.03 + 0.03 * draw()) * size
            for lean, tall in ((-0.8, 1.0), (0.1, 1.4), (0.9, 0.9)):
                tip = (at + lean * h, base - tall * h)
                pen.polygon((at - 0.2 * h, base, *tip, at + 0.2 * h, base), fill=tuft)
    return image, horizon


def paint_clutter(pen: ImageDraw.ImageDraw, draw: Draw, *, size: int, count: int) -> None:
    """Twigs, leaves and discs of any colour in the back, which no text mentions."""
    for _ in range(count):
        x, y, r = draw() * size, draw() * size, (0.04 + 0.1 * draw()) * size
        colour = (int(40 + 200 * draw()), int(40 + 200 * draw()), int(40 + 200 * draw()))
        angle, kind = 2 * math.pi * draw(), draw()
        dx, dy = r * math.cos(angle), r * math.sin(angle)
        if kind < 0.4:
            ends = (x - 3 * dx, y - 3 * dy, x + 3 * dx, y + 3 * dy)
            pen.line(ends, fill=blend(BARK, colour, 0.3), width=max(1, int(0.2 * r)))
        elif kind < 0.75:
            pen.polygon((x - dx, y - dy, x - 0.4 * dy, y + 0.4 * dx, x + dx, y + dy,
                         x + 0.4 * dy, y - 0.4 * dx), fill=colour)  # fmt: skip
        else:
            r *= 0.6
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
