"""Seconds and memory of every zero-shot method on embeddings that have classes.

    python tests/benchmarks/zero_shot_methods.py [--images=50000 --classes=1000 --dims=512]
        [--methods=name,zlap] [--queries=10] [--limit=600] [--json=FILE]

Each method has a process of its own, for fitting and for scoring all images in blocks, as
`evaluate` does; `--limit` ends one that takes longer. Memory is what is held at most above
embeddings and libraries. Images are class directions with noise, and texts are the same directions
with other noise, so that graphs have clusters and iterations end as on real images: top-1 is of
those, and says that a method works, not how well. Seconds of the processor count all threads, and
on a machine that is busy say more than those of the clock; ratios are to the first method.

Methods on regions are measured with `--queries`, region embeddings of each image, at alpha 0.5.
"""

import json
import multiprocessing
import platform
import re
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from grain_jax.command_line import parse
from grain_jax.evaluation.ranking import CHUNK_ROWS
from grain_jax.evaluation.zero_shot import MAX_SCORES
from grain_jax.zero_shot.method import CaptionBank, Images, Support
from grain_jax.zero_shot.methods import METHODS, FittedMethods, encode_banks, lacking
from grain_jax.zero_shot.scorers import ClassTexts, make_class_texts

BLOCK_ROWS = 1 << 15  # embeddings that are drawn at once
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Options:
    """What to measure."""

    images: int = 50_000
    classes: int = 1000
    dims: int = 512
    templates: int = 7  # of each class
    descriptions: int = 6  # of each class; as many sentences and subclasses
    told_from: int = 100  # other classes that texts of pairs tell each class from
    queries: int = 0  # region embeddings of each image; 0: a model without regions
    captions: int = 20_000  # of the caption bank
    shots: int = 16  # labelled images of each class
    methods: str = ",".join(METHODS)  # commas between them
    seed: int = 0
    limit: int = 600  # seconds of the clock of one method
    json: str = ""  # file for the figures


def class_texts(options: Options) -> ClassTexts:
    """Texts of every kind, "class NUMBER" in each that is of a class."""
    names = [f"class {k}" for k in range(options.classes)]

    def several(word: str) -> dict[str, list[str]]:
        return {name: [f"{name} {word} {d}" for d in range(options.descriptions)] for name in names}

    count = min(options.told_from, options.classes - 1)
    others = {
        k: [names[(k + step) % options.classes] for step in range(1, count + 1)]
        for k in range(options.classes)
    }
    return make_class_texts(
        names,
        templates=[f"template{p} {{}}" for p in range(options.templates)],
        descriptions=several("part"),
        further={
            "cupl": several("sentence"),
            "subclasses": several("kind"),
            "synonyms": {name: [f"{name} otherwise"] for name in names},
        },
        shared={
            "reject": [["on land", "on water"], ["drawn", "photographed"]],
            "accept": [["with wings", "without wings"]],
        },
        pairs={
            name: {other: [f"{name}, unlike {other}"] for other in others[k]}
            for k, name in enumerate(names)
        },
    )


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
        made = np.empty((len(labels), self.options.dims), np.float32)
        for start in range(0, len(labels), BLOCK_ROWS):
            chosen = labels[start : start + BLOCK_ROWS]
            noise = self.noise(len(chosen)) * np.float32(spread / self.options.dims**0.5)
            made[start : start + BLOCK_ROWS] = self.unit(self.centres[chosen] + noise)
        return made

    def encode(self, texts: Sequence[str], *, kind: str = "caption") -> np.ndarray:
        """Of texts that name a class: beside its direction; of others: anywhere."""
        found = [re.search(r"class (\d+)", text) for text in texts]
        labels = np.array([int(one[1]) if one else -1 for one in found])
        made = self.around(np.maximum(labels, 0), 1.5)
        nowhere = np.nonzero(labels < 0)[0]
        made[nowhere] = self.unit(self.noise(len(nowhere)))
        return made


@dataclass
class Measured:
    """Of one method. Without seconds: why there are none."""

    method: str
    fit_s: float | None = None
    score_s: float | None = None
    cpu_s: float | None = None
    top1: float | None = None
    mib: float | None = None  # at most, above what was there before
    ratio: float | None = None  # of cpu_s to that of the first method
    note: str = ""

    def line(self) -> str:
        if self.cpu_s is None:
            return f"{self.method:30}{self.note}"
        seconds = f"{self.fit_s:9.2f}{self.score_s:9.2f}{self.cpu_s:9.2f}"
        return f"{self.method:30}{seconds}{self.ratio:9.1f}{self.top1:8.3f}{self.mib:9,.0f}"


def measure(name: str, options: Options) -> Measured:
    """In a process of its own."""
    world, texts = World(options), class_texts(options)
    labels = world.rng.integers(options.classes, size=options.images)
    regions = None
    if options.queries:
        regions = np.empty((options.images, options.queries, options.dims), np.float32)
        for query in range(options.queries):
            regions[:, query] = world.around(labels, 3.0)
    images = Images(world.around(labels, 2.0), regions)
    # One method is made for classes without images; all others need some of every class.
    without = options.classes // 10 if "classes_without_images" in METHODS[name].needs else 0
    shown = np.repeat(np.arange(options.classes - without), options.shots)
    support = Support(world.around(shown, 2.0), shown, world.around(shown, 1.5))
    captions = tuple(f"class {i % options.classes} caption {i}" for i in range(options.captions))
    shown_with = world.around(np.arange(options.captions) % options.classes, 2.0)
    bank = CaptionBank(
        captions,
        world.encode(captions),
        lambda: shown_with,
        world.encode,
    )
    has_regions = regions is not None
    banks = encode_banks(world.encode, texts, methods=(name,), has_regions=has_regions)
    held = start_of_peak()
    before, start = time.process_time(), time.perf_counter()
    fitted = FittedMethods(
        banks,
        methods=(name,),
        alphas=(0.5,),
        has_regions=has_regions,
        bank=bank,
        support=support,
        unlabeled=images,
    )
    if not fitted.scores:
        return Measured(name, note="nothing to measure with these texts and images")
    middle = time.perf_counter()
    rows, right = max(1, min(CHUNK_ROWS, MAX_SCORES // options.classes)), 0
    for first in range(0, options.images, rows):
        chosen = slice(first, first + rows)
        block = Images(images.image[chosen], None if regions is None else regions[chosen])
        (scores,) = fitted(block).values()
        right += int((scores.argmax(axis=1) == labels[chosen]).sum())
    end, used = time.perf_counter(), time.process_time() - before
    mib = (peak() - held) / 1024
    return Measured(name, middle - start, end - middle, used, right / options.images, mib)


def start_of_peak() -> int:
    """KiB held now; `peak` counts from here on where the kernel can be asked to."""
    if not RESET.exists():
        return peak()
    RESET.write_text("5", encoding="ascii")
    return _kib("VmRSS")


def peak() -> int:
    """KiB held at most."""
    if not RESET.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _kib("VmHWM")


def _kib(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", STATUS.read_text(encoding="ascii"))
    assert found is not None
    return int(found[1])


def send(name: str, options: Options, to: Connection) -> None:
    """What the process of a method does."""
    to.send(measure(name, options))


def measured_apart(name: str, options: Options) -> Measured:
    """`measure` in a process that ends after `options.limit` seconds."""
    server = multiprocessing.get_context("forkserver")  # imports once, and holds nothing else
    server.set_forkserver_preload(["__main__", "grain_jax.zero_shot.methods"])
    receiver, sender = server.Pipe(duplex=False)
    process = server.Process(target=send, args=(name, options, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(options.limit):
            return Measured(name, note=f"ended after {options.limit} s")
        found: Measured = receiver.recv()
        return found
    except EOFError:
        process.join()
        return Measured(name, note=f"its process ended with status {process.exitcode}")
    finally:
        process.terminate()
        process.join()


def processor() -> str:
    """The name, and what tells processors of one name apart."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor() or platform.machine()
    lines = information.read_text(encoding="utf-8").splitlines()
    fields = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    known = [fields.get("model name", platform.machine())]
    known += [f"{key} {fields[field]}" for key, field in _NUMBERS.items() if field in fields]
    return ", ".join(known)


_NUMBERS = {"family": "cpu family", "model": "model"}


def main() -> None:
    options = parse(Options, None, command="zero_shot_methods", description=__doc__)
    texts, machine = class_texts(options), processor()
    counts = f"{options.images:,} images, {options.classes:,} classes, {options.dims} dims"
    print(f"{counts}; {multiprocessing.cpu_count()} cores of {machine}")
    heads = ("fit s", "score s", "CPU s", "ratio")
    print(f"{'method':30}{''.join(f'{head:>9}' for head in heads)}{'top-1':>8}{'MiB':>9}")
    figures: list[Measured] = []
    for name in options.methods.split(","):
        given = {"bank", "support", "several_shots", "support_captions", "unlabeled"}
        given.add("classes_without_images")
        needs = lacking(name, texts, has_regions=options.queries > 0, given=given)
        if needs:
            found = Measured(name, note=f"left out: it needs {' and '.join(needs)}")
        else:
            found = measured_apart(name, options)
        first = next((one.cpu_s for one in figures if one.cpu_s is not None), found.cpu_s)
        if found.cpu_s is not None and first is not None:
            found.ratio = found.cpu_s / max(first, 1e-9)
        figures.append(found)
        print(found.line(), flush=True)
        if options.json:
            made = {
                "processor": machine,
                "options": asdict(options),
                "methods": [asdict(one) for one in figures],
            }
            Path(options.json).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
