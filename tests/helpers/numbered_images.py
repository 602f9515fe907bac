"""Images that say which they are, and batches of them."""

import io

import jax
import numpy as np
from PIL import Image

from grain_jax.config import DataConfig
from grain_jax.data.batch import Batch
from grain_jax.data.loader import training_batches
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer(
    ["original", "synthetic", "part", *(f"n{i}" for i in range(40)), "a", "b", "c"]
)
CONFIG = DataConfig(
    resize="crop",
    flip_probability=0.5,
    caption_length=8,
    description_length=6,
    max_regions=3,
    prefetch_batches=2,
)


class NumberedImages:
    """Image i is one colour that says i; every `bad` one cannot be decoded."""

    def __init__(self, count: int = 40, bad: tuple[int, ...] = (), reads: list | None = None):
        self.count, self.bad, self.reads = count, bad, reads

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if self.reads is not None:
            self.reads.append(index)
        pixels = np.full((12, 20, 3), index, np.uint8)
        pixels[:, :10, 1] = 200  # so that crops and flips show
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return Record(
            id=f"image-{index}",
            image=b"not an image" if index in self.bad else out.getvalue(),
            captions=(Caption(f"original n{index}"), Caption(f"synthetic n{index}", "synthetic")),
            regions=tuple(
                Region((0.1 * k, 0.3, 0.1 * k + 0.4, 0.7), f"part n{k}", 1 - k / 10)
                for k in range(index % 6)
            ),
        )


def batches(
    source: NumberedImages, count: int, config: DataConfig = CONFIG, **options
) -> list[Batch]:
    settings = {"image_size": 8, "batch_size": 8, "seed": 1, **options}
    with training_batches(source, config, TOKENIZER, **settings) as iterator:
        return [next(iterator) for _ in range(count)]


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
