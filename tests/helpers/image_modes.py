"""Small images of every mode that PIL reads."""

import numpy as np
from PIL import Image


def make_image(mode: str) -> Image.Image:
    rng = np.random.default_rng(1)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (37, 61)).astype(np.uint16))
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "P": (3,)}[mode]
    image = Image.fromarray(rng.integers(0, 256, (37, 61, *channels), np.uint8))
    return image.convert("P") if mode == "P" else image
