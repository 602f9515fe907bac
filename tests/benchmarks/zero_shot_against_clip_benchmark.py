"""Seconds of zero-shot classification, ours and CLIP_benchmark's, on the same embeddings in turns.

    python tests/benchmarks/zero_shot_against_clip_benchmark.py [--images=50000 --classes=1000
        --templates=80 --dims=512 --rounds=3 --batch_size=64]

Needs `pip install clip-benchmark scikit-learn` (docs/evaluation.md). Embeddings are made before, so
what is timed is all the rest: prompts, class vectors, scores, top-1, top-5 and the mean per class.
CLIP_benchmark is timed by its own `evaluate`, without half precision, with a loader that hands it
batches that are ready (64 images, its default), and progress bars written nowhere. Accuracies must
be equal. Seconds of the clock on a machine that does other things say little; the ratio of turns
that follow each other says more, and seconds of the processor, of all threads, more still.
"""

import contextlib
import io
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from grain_jax.command_line import parse
from grain_jax.data.records import Record, ZeroShotSet
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.harnesses.clip_benchmark_model import TextBatch, import_harness, tokenize
from grain_jax.inference.encoder import ImageFeatures


@dataclass
class Options:
    """What to measure."""

    images: int = 50_000
    classes: int = 1000
    templates: int = 80  # of each class
    dims: int = 512
    rounds: int = 3  # turns of each
    batch_size: int = 64  # of CLIP_benchmark's loader
    seed: int = 0


class Embedded:
    """Embeddings around a direction for each class, looked up by text."""

    def __init__(self, options: Options):
        rng = np.random.default_rng(options.seed)
        size, dims = options.classes, options.dims
        centres = rng.standard_normal((size, dims), np.float32)
        self.names = [f"class {k}" for k in range(size)]
        self.templates = [f"prompt {t} of a {{}}" for t in range(options.templates)]
        self.labels = rng.integers(size, size=options.images)
        noise = rng.standard_normal((options.images, dims), np.float32)
        self.images = self.unit(centres[self.labels] + 8 * noise)
        self.row = {
            template.format(name): k * options.templates + t
            for k, name in enumerate(self.names)
            for t, template in enumerate(self.templates)
        }
        noise = rng.standard_normal((size, options.templates, dims), np.float32)
        self.rows = self.unit((centres[:, None] + noise).reshape(-1, dims))

    @staticmethod
    def unit(values: np.ndarray) -> np.ndarray:
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    def texts(self, texts: Sequence[str], *, kind: str = "caption") -> np.ndarray:
        return self.rows[[self.row[text] for text in texts]]


class Measured(NamedTuple):
    seconds: float
    processor: float
    top1: float
    top5: float
    per_class: float


@contextlib.contextmanager
def timed(spent: list[float]) -> Iterator[None]:
    clock, processor = time.perf_counter(), time.process_time()
    yield
    spent += [time.perf_counter() - clock, time.process_time() - processor]


class Encoder:
    """As much of an encoder as the evaluation asks for where images are embedded already."""

    logit_scale = 100.0

    def __init__(self, embedded: Embedded):
        self.texts = embedded.texts


class Labels:
    """As much of a labelled source."""

    def __init__(self, labels: Sequence[str]):
        self.labels = self.files = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> Record:
        raise NotImplementedError("the images are embedded already")


def ours(embedded: Embedded) -> Measured:
    """By class name, as `evaluate` does."""
    names = [embedded.names[k] for k in embedded.labels]
    dataset = ZeroShotSet(
        "random", Labels(names), tuple(embedded.names), templates=tuple(embedded.templates)
    )
    features = ImageFeatures(embedded.images, None, None)
    spent: list[float] = []
    with timed(spent):
        encoder: Any = Encoder(embedded)
        results = evaluate_zero_shot(
            encoder, dataset, alphas=(1.0,), methods=("name",), features=features, details=True
        )
    values = {r.metric: r.value for r in results if r.method == "name"}
    return Measured(*spent, *(values[metric] for metric in ("top1", "top5", "per_class")))


def theirs(embedded: Embedded, options: Options) -> Measured:
    """CLIP_benchmark's `evaluate` on a model that looks its embeddings up."""
    import torch

    harness = import_harness("clip_benchmark.metrics.zeroshot_classification")
    harness.float = lambda value: np.asarray(value).item()  # version 1.6.2 with numpy from 2.4

    class Model:
        def encode_text(self, batch: TextBatch) -> Any:
            return torch.from_numpy(embedded.texts(batch.texts))

        def encode_image(self, batch: Any) -> Any:
            return batch

    images, labels = torch.from_numpy(embedded.images), torch.from_numpy(embedded.labels)

    class Loader:
        class dataset:
            classes = embedded.names

        def __iter__(self) -> Iterator[Any]:
            size = options.batch_size
            return zip(images.split(size), labels.split(size), strict=True)

        def __len__(self) -> int:
            return -(-len(images) // options.batch_size)

    templates = [template.replace("{}", "{c}") for template in embedded.templates]
    spent: list[float] = []
    with contextlib.redirect_stderr(io.StringIO()), timed(spent):
        found = harness.evaluate(
            Model(), Loader(), tokenize, embedded.names, templates, "cpu", amp=False
        )
    return Measured(*spent, found["acc1"], found["acc5"], found["mean_per_class_recall"])


def main() -> None:
    options = parse(Options, None, command="zero_shot_against", description=__doc__)
    embedded = Embedded(options)
    ours(embedded), theirs(embedded, options)  # what is imported and allocated once
    ratios, processor = [], []
    print(f"{'round':>5}{'ours, s':>10}{'theirs, s':>11}{'ratio':>8}{'of processor':>14}")
    for number in range(options.rounds):
        first, second = ours(embedded), theirs(embedded, options)
        for metric in ("top1", "top5", "per_class"):
            a, b = getattr(first, metric), getattr(second, metric)
            if abs(a - b) > 1e-9:
                raise SystemExit(f"{metric} differs: ours {a}, CLIP_benchmark's {b}")
        ratios.append(second.seconds / first.seconds)
        processor.append(second.processor / first.processor)
        print(
            f"{number + 1:>5}{first.seconds:>10.2f}{second.seconds:>11.2f}{ratios[-1]:>8.1f}"
            f"{processor[-1]:>14.1f}"
        )
    print(
        f"{options.images:,} images, {options.classes:,} classes, {options.templates} templates: "
        f"top-1 {first.top1:.4f} both; CLIP_benchmark takes {statistics.median(ratios):.1f} times "
        f"our seconds, {statistics.median(processor):.1f} times our seconds of the processor "
        f"(medians of {options.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
