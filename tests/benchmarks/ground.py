"""Images a second of `annotate ground`, against its detector alone.

    python tests/benchmarks/ground.py [--device=cuda] [--hidden_size=768 --layers=12 --side=960]

Writes JPEG files of 640 x 480 pixels and an OWLv2 of random weights into a temporary folder; the
options above are the size of owlv2-base. The detector alone has prepared images in memory; the
stage reads, decodes, resizes, selects and writes rows besides. The two take turns. On a CPU they
share its cores; the fraction of the time in which the detector is at work says what is lost to
waiting.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from grain_jax.annotation.backends.detector import Detector
from grain_jax.annotation.backends.detectors import open_detector
from grain_jax.annotation.detection import SELECTIONS
from grain_jax.annotation.ground import Ground, GroundSettings
from grain_jax.annotation.queries import DescriptionQueries
from grain_jax.annotation.run import StageSpec, run_stage
from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.command_line import Count, OptionalCount, parse
from grain_jax.data.annotation_rows import Provenance, Row
from grain_jax.data.clip_bpe import clip_tables

SIZE = (640, 480)
TEXTS = 6  # of an image


@dataclass
class Options:
    """What to measure."""

    images: Count = 96
    rounds: Count = 3
    batch_size: Count = 8
    threads: OptionalCount = None  # that read images; None: those of the stage
    torch_threads: OptionalCount = None
    device: str = "cpu"
    hidden_size: Count = 192
    layers: Count = 4
    side: Count = 480


def write_images(folder: Path, count: int) -> list[str]:
    """Photograph-like: coarse noise, enlarged."""
    names = [f"{number:05d}.jpg" for number in range(count)]
    folder.mkdir()
    for seed, name in enumerate(names):
        coarse = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
        image.save(folder / name, quality=90)
    return names


def write_detector(folder: Path, options: Options) -> None:
    """OWLv2 as `transformers` saves it, with CLIP's tokenizer."""
    text = {"num_hidden_layers": options.layers, "hidden_size": 512}
    vision = {
        "hidden_size": options.hidden_size,
        "intermediate_size": 4 * options.hidden_size,
        "num_hidden_layers": options.layers,
        "num_attention_heads": max(1, options.hidden_size // 64),
        "image_size": options.side,
        "patch_size": 16,
    }
    config = transformers.Owlv2Config(text_config=text, vision_config=vision)
    transformers.Owlv2ForObjectDetection(config).save_pretrained(folder)
    vocabulary, merges = clip_tables()
    files = {
        "vocab.json": json.dumps(vocabulary),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n",
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "CLIPTokenizer", "pad_token": "!", "model_max_length": 16}
        ),
        "preprocessor_config.json": json.dumps(
            {
                "image_processor_type": "Owlv2ImageProcessor",
                "size": {"height": options.side, "width": options.side},
            }
        ),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


def texts_of(name: str) -> list[str]:
    """As of a multimodal model: different ones for each image."""
    return [f"a small part {number} of image {name[:5]}" for number in range(TEXTS)]


def alone(detector: Detector, folder: Path, names: list[str], options: Options) -> float:
    """Images a second of the detector with images in memory."""
    first = [np.asarray(Image.open(folder / name)) for name in names[: options.batch_size]]
    batch = [detector.prepare(image) for image in first]
    started = time.perf_counter()
    for start in range(0, len(names), options.batch_size):
        some = names[start : start + options.batch_size]
        detector.detect(batch[: len(some)], [texts_of(name) for name in some])
    return len(names) / (time.perf_counter() - started)


def stage(
    detector: Detector, folder: Path, names: list[str], annotations: Path, options: Options
) -> tuple[float, float]:
    """(images a second, fraction of its time in which the detector works)."""
    with AnnotationWriter(annotations, "describe") as writer:
        for name in names:
            outputs = {"descriptions": texts_of(name)}
            writer.append(Row(name, None, Provenance("by hand"), outputs))
    settings = GroundSettings(
        selection=SELECTIONS["best_per_text"].replace(threshold=0.0),
        batch_size=options.batch_size,
        **({} if options.threads is None else {"threads": options.threads}),
    )
    ground = Ground(folder, detector, DescriptionQueries(annotations), settings)
    report = run_stage(ground, StageSpec(folder, annotations))
    assert report.rows == len(names), report
    assert not report.failed, report.examples
    return report.rows / report.seconds, ground.measured()["detector seconds"] / report.seconds


@contextmanager
def fresh_detector(folder: Path, options: Options) -> Iterator[Detector]:
    """With no embedding of a text kept."""
    detector = open_detector(str(folder), device=options.device)
    warm = detector.prepare(np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
    detector.detect([warm] * options.batch_size, [["warm"]] * options.batch_size)
    yield detector


def main() -> None:
    options = parse(Options, None, command="ground", description=__doc__)
    if options.torch_threads is not None:
        torch.set_num_threads(options.torch_threads)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        names = write_images(root / "images", options.images)
        write_detector(root / "owl", options)
        print("detector alone, stage (images/s), stage / alone, detector at work")
        for number in range(options.rounds):
            with fresh_detector(root / "owl", options) as detector:
                own = alone(detector, root / "images", names, options)
            with fresh_detector(root / "owl", options) as detector:
                output = root / f"annotations{number}"
                whole, busy = stage(detector, root / "images", names, output, options)
            print(f"{own:8.2f} {whole:8.2f} {whole / own:8.3f} {busy:8.1%}", flush=True)


if __name__ == "__main__":
    main()
