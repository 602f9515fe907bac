"""What of a GRAIN ViT-B/16 step is useful with texts padded and end to end, counted and not timed.

    python tests/benchmarks/texts_end_to_end.py ANNOTATIONS [--config=configs/grain_vitb16_cc12m.py]

ANNOTATIONS is JSON lines, one an image, with `captions` and `regions` (each `phrases` and `boxes`).
An image has one of its captions and up to five boxes with a phrase each, drawn with seed 0. Prints
their lengths, the table of docs/scale.md, and how many random streams of images would be too short.
"""

import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from grain_jax.benchmarking.flops import TextPositions, padded_positions, step_flops
from grain_jax.command_line import parse
from grain_jax.config import TrainConfig
from grain_jax.config.cli import load_config
from grain_jax.data.text_lengths import num_tokens
from grain_jax.data.tokenizer import build_tokenizer
from grain_jax.models.text_stream import stream_shape

DESCRIPTIONS = 5  # of an image, at most
DEVIATIONS = 4  # of a stream's mean, above the mean of the images
IMAGES_PER_DEVICE = (128, 32, 8)
STREAM_IMAGES = 32_000  # in all random streams of one size


@dataclass
class Options:
    """What to count."""

    annotations: Annotated[Path, tyro.conf.Positional]
    config: str = "configs/grain_vitb16_cc12m.py"


@dataclass(frozen=True)
class Lengths:
    """Tokens, start and end included, of the texts of images."""

    captions: np.ndarray  # [images], of the one drawn
    descriptions: np.ndarray  # [texts], image by image
    num_descriptions: np.ndarray  # [images]
    of_images: np.ndarray  # [images], all texts of one


def lengths_of(path: Path, config: TrainConfig) -> Lengths:
    """Draws the texts of each image, counts their tokens and prints a summary."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rng = random.Random(0)
    captions: list[str] = []
    descriptions: list[str] = []
    counts = []
    for record in records:
        captions.append(rng.choice(record["captions"]))
        drawn = [rng.choice(one["phrases"]) for one in record["regions"] for _ in one["boxes"]]
        descriptions += drawn[:DESCRIPTIONS]
        counts.append(len(drawn[:DESCRIPTIONS]))
    tokenizer = build_tokenizer(config.data)

    def counted(texts: list[str]) -> np.ndarray:
        return np.array(num_tokens(texts, tokenizer, config.model.text.context_length))

    every = counted([text for record in records for text in record["captions"]])
    found = counted(captions), counted(descriptions)
    ends = np.cumsum(counts)
    totals = np.concatenate([[0], np.cumsum(found[1])])
    of_images = found[0] + totals[ends] - totals[ends - counts]
    for name, values in (("captions", every), ("descriptions", found[1]), ("image", of_images)):
        average, deviation = f"{values.mean():.2f} tokens", f"deviation {values.std():.2f}"
        print(f"{name}: {average}, {deviation}, {values.max()} at most")
    print(f"{len(records):,} images, {np.mean(counts):.2f} descriptions each")
    return Lengths(*found, np.array(counts), of_images)


def use(name: str, config: TrainConfig, lengths: Lengths, *, devices: int) -> None:
    """Prints a row: FLOPs that a step spends, and the fractions of them on tokens that are text."""
    batch, captions, descriptions = config.batch_size, lengths.captions, lengths.descriptions
    text = TextPositions(
        captions=float(batch),
        caption_positions=captions.mean(),
        caption_pairs=(captions**2).mean(),
        descriptions=batch * lengths.num_descriptions.mean(),
        description_positions=descriptions.mean(),
        description_pairs=(descriptions**2).mean(),
    )
    spent = step_flops(config, padded_positions(config, num_shards=devices), with_descriptions=True)
    useful = step_flops(config, text, with_descriptions=True)
    row = f"| {name} | {spent.total / batch / 1e9:.1f} | {useful.total / spent.total:.1%} "
    row += f"| {useful.texts / spent.texts:.1%}"
    if spent.captions:
        row += f" (captions {useful.captions / spent.captions:.1%},"
        row += f" descriptions {useful.descriptions / spent.descriptions:.1%})"
    print(f"{row} |")


def too_short(lengths: Lengths, config: TrainConfig, *, images: int) -> str:
    """How many random streams of so many images are too short for their texts."""
    longest = max(config.data.caption_length, config.data.description_length)
    room = config.model.text_tokens_per_image
    blocks, length = stream_shape(room, images=images, longest=longest)
    rng, count = np.random.default_rng(0), STREAM_IMAGES // images
    drawn = rng.choice(lengths.of_images, (count, images)).sum(axis=1)
    return f"{(drawn > blocks * length).sum()} of {count:,} random streams too short"


def changed(config: TrainConfig, model: dict[str, Any], data: dict[str, Any]) -> TrainConfig:
    """The config with other settings of model and data."""
    return replace(config, model=replace(config.model, **model), data=replace(config.data, **data))


def main() -> None:
    options = parse(Options, None, command="texts_end_to_end", description=__doc__)
    config = load_config(options.config)
    lengths = lengths_of(options.annotations, config)
    devices = config.batch_size // IMAGES_PER_DEVICE[0]
    use("padded, the config's settings", config, lengths, devices=devices)
    short = {"caption_length": 48, "description_length": 16}
    tight = changed(config, {"description_capacity_factor": 0.92}, short)
    use("padded to 48 and 16, capacity factor 0.92", tight, lengths, devices=devices)
    mean, deviation = lengths.of_images.mean(), lengths.of_images.std()
    for images in IMAGES_PER_DEVICE:
        room = math.ceil(mean + DEVIATIONS * deviation / math.sqrt(images))
        stream = changed(config, {"text_tokens_per_image": float(room)}, {})
        name = f"end to end, {images} images a device, N = {room}"
        use(name, stream, lengths, devices=config.batch_size // images)
        print(f"  {too_short(lengths, stream, images=images)}")


if __name__ == "__main__":
    main()
