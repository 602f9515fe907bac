"""Images a second of `Encoder.images` against the forward pass of training, in turns.

    python tests/benchmarks/encoding.py --checkpoint=RUN [--batch=64 --batches=4 --turns=5]

Images lie in memory as arrays, so that the loader resizes and crops but decodes no file, as `bench`
times a step on pixels that are there. The forward pass of training is that of the run's losses:
images, captions, descriptions where a loss needs them, and the losses, without a gradient; and of
images alone, with dropout. Ratios over 1: encoding is faster.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from grain_jax.benchmarking.synthetic_batch import synthetic_batch
from grain_jax.command_line import parse
from grain_jax.data.records import Record
from grain_jax.inference.encoder import Encoder
from grain_jax.loading.load import read_model
from grain_jax.models.image_text import DTYPES, normalize_images
from grain_jax.training.step import batch_loss


@dataclass
class Options:
    """What to measure."""

    checkpoint: str = ""
    batch: int = 64
    batches: int = 4  # of images, in a turn
    turns: int = 5


class Arrays:
    """Records of images in memory."""

    in_memory = True

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Record:
        return Record(id=str(index), image=self.images[index])


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    options = parse(Options, None, command="encoding", description=__doc__)
    bundle = read_model(options.checkpoint)
    config = dataclasses.replace(bundle.config, batch_size=options.batch)
    encoder = Encoder.from_bundle(bundle, batch_size=options.batch)
    batch = synthetic_batch(config)
    source = Arrays(np.concatenate([batch.images] * options.batches))

    @jax.jit
    def forward(params, batch):
        return batch_loss(bundle.model, params, batch, config, rng=jax.random.key(0))[0]

    @jax.jit
    def images_alone(params, images):
        dtype = DTYPES[config.model.dtype]
        pixels = normalize_images(images, config.data.mean, config.data.std, dtype)
        output = bundle.model.apply(
            {"params": params},
            pixels,
            train=True,
            method="encode_images",
            rngs={"dropout": jax.random.key(0)},
        )
        return dataclasses.replace(output, tokens=None)

    params, placed = jax.device_put(bundle.params), jax.tree.map(jnp.asarray, batch)

    def repeated(run: Callable[..., object], given: object) -> None:
        jax.block_until_ready([run(params, given) for _ in range(options.batches)])

    runs: dict[str, Callable[[], object]] = {
        "Encoder.images": functools.partial(encoder.images, source),
        "training, forward": functools.partial(repeated, forward, placed),
        "training, forward of images": functools.partial(repeated, images_alone, placed.images),
    }
    for run in runs.values():  # compiles
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.turns):
        for name, run in runs.items():
            found[name].append(seconds(run))
    own = found["Encoder.images"]
    for name, times in found.items():
        ratios = [theirs / mine for mine, theirs in zip(own, times, strict=True)]
        rate = len(source) / statistics.median(times)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name:30}{rate:10.1f} images/s   ratio {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
