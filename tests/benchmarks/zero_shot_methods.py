"""Seconds and memory of every zero-shot method on random embeddings.

    python tests/benchmarks/zero_shot_methods.py [--images=50000 --classes=1000 --dims=512]

Each method has a process of its own, whose peak memory is printed; the first line is that of the
embeddings and libraries alone. Images are class directions with noise, and texts are the same
directions with other noise, so that iterations end as on real images: top-1 is of those, and
says that a method works, not how well. Images are scored in blocks, as `evaluate` does. Seconds of
the processor count all threads, and on a machine that is busy say more than those of the clock.
"""

import multiprocessing
import resource
import time
from dataclasses import dataclass

import numpy as np

from grain_jax.command_line import parse
from grain_jax.evaluation.ranking import CHUNK_ROWS
from grain_jax.evaluation.zero_shot import MAX_SCORES
from grain_jax.zero_shot.method import CaptionBank, Images, Support
from grain_jax.zero_shot.methods import METHODS, FittedMethods, encode_banks, lacking
from grain_jax.zero_shot.scorers import ClassTexts, make_class_texts


@dataclass
class Options:
    """What to measure."""

    images: int = 50_000
    classes: int = 1000
    dims: int = 512
    templates: int = 7  # of each class
    descriptions: int = 6  # of each class
    queries: int = 0  # region embeddings of each image; 0: a model without regions
    captions: int = 10_000  # of the caption bank
    shots: int = 4  # labelled images of each class
    methods: str = ",".join(METHODS)  # commas between them
    seed: int = 0


def class_texts(options: Options) -> ClassTexts:
    names = [f"class {k}" for k in range(options.classes)]
    descriptions = {
        name: [f"{name} part {d}" for d in range(options.descriptions)] for name in names
    }
    templates = [f"{p}: {{}}" for p in range(options.templates)]
    return make_class_texts(names, templates=templates, descriptions=descriptions)


class World:
    """Embeddings around a direction for each class."""

    def __init__(self, options: Options):
        self.options = options
        self.rng = np.random.default_rng(options.seed)
        self.centres = self.unit(self.noise(options.classes))

    def noise(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal((*shape, self.options.dims), np.float32)

    @staticmethod
    def unit(values: np.ndarray) -> np.ndarray:
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    def around(self, labels: np.ndarray, spread: float) -> np.ndarray:
        noise = self.noise(len(labels)) * np.float32(spread / self.options.dims**0.5)
        return self.unit(self.centres[labels] + noise)

    def encode(self, texts: list[str], *, kind: str = "caption") -> np.ndarray:
        """Of texts with the number of a class: beside its direction; of others: anywhere."""
        numbers = [[int(word) for word in text.split() if word.isdigit()] for text in texts]
        labels = np.array([found[0] if found else 0 for found in numbers], int)
        return self.around(labels % self.options.classes, 1.5)


def measure(name: str, options: Options) -> str:
    """A line of the table."""
    world, texts = World(options), class_texts(options)
    labels = world.rng.integers(options.classes, size=options.images)
    regions = None
    if options.queries:
        regions = world.unit(world.noise(options.images, options.queries))
    images = Images(world.around(labels, 2.0), regions)
    if name == "":
        return f"{'embeddings alone':34}{'':40}{_peak()}"
    shown = np.repeat(np.arange(options.classes), options.shots)
    captions = tuple(f"caption {i}" for i in range(options.captions))
    bank = CaptionBank(
        captions,
        world.encode(list(captions)),
        world.around(np.arange(options.captions) % options.classes, 2.0),
        lambda more: world.encode(list(more)),
    )
    banks = encode_banks(world.encode, texts, methods=(name,), has_regions=regions is not None)
    before, start = time.process_time(), time.perf_counter()
    fitted = FittedMethods(
        banks,
        methods=(name,),
        alphas=(0.5,),
        has_regions=regions is not None,
        bank=bank,
        support=Support(world.around(shown, 2.0), shown, world.around(shown, 1.5)),
        unlabeled=images,
    )
    if not fitted.scores:
        return f"{name:34}it has nothing to measure with these texts and images"
    middle = time.perf_counter()
    rows, right = max(1, min(CHUNK_ROWS, MAX_SCORES // options.classes)), 0
    for first in range(0, options.images, rows):
        chosen = slice(first, first + rows)
        block = Images(images.image[chosen], None if regions is None else regions[chosen])
        for scores in fitted(block).values():
            right += int((scores.argmax(axis=1) == labels[chosen]).sum())
    end, used = time.perf_counter(), time.process_time() - before
    measured = options.images * len(fitted.alphas[name])
    seconds = f"{middle - start:10.2f}{end - middle:10.2f}{used:10.2f}"
    return f"{name:34}{seconds}{right / measured:10.3f}{_peak()}"


def _peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:12,.0f}"


def main() -> None:
    options = parse(Options, None, command="zero_shot_methods", description=__doc__)
    texts = class_texts(options)
    print(f"{options.images:,} images, {options.classes:,} classes, {options.dims} dims")
    print(f"{'method':34}{'fit s':>10}{'score s':>10}{'CPU s':>10}{'top-1':>10}{'peak MiB':>12}")
    spawn = multiprocessing.get_context("spawn")
    for name in ("", *options.methods.split(",")):
        given = ("bank", "support", "unlabeled")
        if name and (needs := lacking(name, texts, has_regions=options.queries > 0, given=given)):
            print(f"{name:34}left out: it needs {' and '.join(needs)}")
            continue
        with spawn.Pool(1) as pool:
            print(pool.apply(measure, (name, options)), flush=True)


if __name__ == "__main__":
    main()
