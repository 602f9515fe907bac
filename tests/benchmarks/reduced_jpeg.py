"""JPEG files decoded at a reduced scale (Pillow's `draft`) against whole, to squares for training.

    python tests/benchmarks/reduced_jpeg.py [--size=224] [--images=8]

Noise of a photograph's spectrum with polygons and lines, quality 90, colour at half resolution. For
each size of the file: user CPU time of an image, decoded and resized as `fit_image` does; with the
smallest scale whose sides are at least the square's, and at least twice those; and of the file that
`prepare --max_image_side` stores (long side of twice the square). Differences are those of
pixels from 0 to 255.
"""

import argparse
import functools
import io
import resource
import statistics

import numpy as np
from PIL import Image, ImageDraw

from grain_jax.data.transforms import fit_image

FILES = ((640, 480), (1024, 768), (2048, 1536))
ROUNDS = 5
BICUBIC = Image.Resampling.BICUBIC


def made_up(width: int, height: int, seed: int) -> bytes:
    """A JPEG file: octaves of noise, the finer the weaker, and edges over it."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0, np.float32)
    for octave in range(2, 11):
        columns = 2**octave
        if columns > width:
            break
        rows = max(2, columns * height // width)
        noise = rng.normal(size=(4, rows, columns)).astype(np.float32)
        gray, *colours = (
            np.asarray(Image.fromarray(one).resize((width, height), BICUBIC)) for one in noise
        )
        pixels += (0.8 * gray[..., None] + 0.2 * np.stack(colours, -1)) * 40 / octave**1.2
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw, sides = ImageDraw.Draw(image), np.array([width, height])
    for _ in range(25):
        corners = rng.uniform(size=2) * sides + rng.normal(size=(4, 2)) * width * 0.06
        draw.polygon([*map(tuple, corners)], fill=tuple(rng.integers(0, 255, 3).tolist()))
    for _ in range(40):
        ends = (rng.uniform(size=(2, 2)) * sides).ravel().tolist()
        draw.line(ends, fill=tuple(rng.integers(0, 255, 3).tolist()), width=max(1, width // 400))
    return stored(image, quality=90)


def stored(image: Image.Image, *, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def whole(data: bytes, size: int) -> np.ndarray:
    return fit_image(data, size, interpolation="bicubic")


def reduced(data: bytes, size: int, *, least: int) -> np.ndarray:
    """Decoded at the smallest scale of 1, 1/2, 1/4, 1/8 with sides of at least `least`."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (least, least))
    image.load()
    return np.asarray(image.resize((size, size), BICUBIC))


def shrunk(data: bytes, side: int) -> bytes:
    """As `prepare --max_image_side` stores it."""
    image = Image.open(io.BytesIO(data))
    image.load()
    image.thumbnail((side, side), BICUBIC, reducing_gap=None)
    return stored(image, quality=92)


def user_ms(work, files: list[bytes]) -> float:
    """User CPU time of a file."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    for data in files:
        work(data)
    return 1e3 * (resource.getrusage(resource.RUSAGE_SELF).ru_utime - before) / len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    size = options.size
    for width, height in FILES:
        files = [made_up(width, height, seed) for seed in range(options.images)]
        exact = np.stack([whole(data, size) for data in files]).astype(int)
        small = [shrunk(data, 2 * size) for data in files]
        repeat = max(1, 4 * 2048 * 1536 // (width * height) // options.images)
        print(f"{width} x {height}, {sum(map(len, files)) / len(files) / 1e3:.0f} KB")
        for name, given, work in (
            ("whole", files, functools.partial(whole, size=size)),
            ("at least the square", files, functools.partial(reduced, size=size, least=size)),
            ("at least twice", files, functools.partial(reduced, size=size, least=2 * size)),
            ("stored smaller", small, functools.partial(whole, size=size)),
        ):
            times = [user_ms(work, given * repeat) for _ in range(ROUNDS)]
            error = np.abs(np.stack([work(data) for data in given]) - exact)
            print(
                f"  {name}: {statistics.median(times):.2f} ms ({min(times):.2f}-{max(times):.2f}), "
                f"differences: largest {error.max()}, mean {error.mean():.2f}, "
                f"99.9 % below {np.percentile(error, 99.9):.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
