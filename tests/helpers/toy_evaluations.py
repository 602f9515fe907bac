"""What the tests of `python -m grain_jax.evaluate` share beside fixtures."""

import io

import numpy as np
from PIL import Image
from toy_encoder import make_image


def png(*colours: str) -> bytes:
    """The toy's image, enlarged so that squashing to 32 pixels keeps what its queries look at."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:4, :4] = make_image(*colours)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def written(folder, name: str = "evaluation_"):
    """The file of results whose name begins so; there is no other."""
    (path,) = folder.glob(f"{name}*.json")
    return path
