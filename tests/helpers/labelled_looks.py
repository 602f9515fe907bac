"""Images of classes whose names say another colour than they show, and their evaluation."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from stored_results import stored_results
from toy_encoder import COLOURS

from grain_jax import evaluate

# What the images of each class look like: every name says another colour.
LOOKS = {"red": "green", "green": "blue", "blue": "red"}


def png(colour: str, seed: int) -> bytes:
    """The first pixel, which is all that the toy looks at, has the colour and some noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, size=(4, 4, 3), dtype=np.uint8)
    pixels[0, 0, COLOURS[colour]] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_images(root: Path, count: int, *, start: int, looks=LOOKS) -> Path:
    for number, (label, colour) in enumerate(looks.items()):
        (root / label).mkdir(parents=True)
        for i in range(count):
            seed = start + 100 * number + i
            (root / label / f"{i}.png").write_bytes(png(colour, seed))
    return root


def measured(run, *options: str) -> tuple[int, dict, dict[str, float]]:
    """Exit status, report and results by their keys, of the newest evaluation."""
    output = run / "out.json"
    status = evaluate.main([f"--checkpoint={run}", f"--output={output}", "--overwrite", *options])
    report = json.loads(output.read_text())
    return status, report, stored_results(output)
