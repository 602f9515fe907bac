"""A sample of the drawn birds as ordinary files.

  python -m grain_jax.data.synthetic_birds --output=DIR

A sample to copy when you bring your own data: `train.jsonl` and `validation.jsonl` as
`python -m grain_jax.prepare --from=jsonl` reads them, the images in `images/`, and in `unseen/` a
zero-shot set with `labels.csv`, `classes.txt` and `descriptions.json` as
`python -m grain_jax.evaluate --data` reads it.
"""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image
from tyro.conf import arg

from grain_jax.command_line import (
    OUT,
    Count,
    ExitStatus,
    NotParsed,
    RequiredPath,
    end,
    integer,
    one_word,
    parse,
    status_of,
)
from grain_jax.config import SyntheticBirdsConfig
from grain_jax.config.schema import Difficulty
from grain_jax.data.records import Record, Source
from grain_jax.data.synthetic_birds.source import SyntheticBirdSource, bird_zero_shot_sets
from grain_jax.terminal import escape_unprintable


@dataclass(frozen=True)
class Options:
    """What `data.synthetic_birds` takes."""

    # folder to write, made if missing
    output: Annotated[RequiredPath, OUT, arg(metavar="DIR")]
    train: Count = 400  # training images
    held_out: Count = 100  # images of each held-out set
    image_size: Count = 96  # pixels a side
    difficulty: Difficulty = "easy"  # "hard": flips, backgrounds, several birds, more phrasings
    seed: Annotated[int, one_word(integer, "N")] = 0  # of the birds: species, names and images


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the files and says what they are; returns the exit status."""
    escape_unprintable()
    try:
        options = parse_options(arguments)
    except NotParsed as parsed:
        return parsed.status
    config = SyntheticBirdsConfig(
        difficulty=options.difficulty,
        num_train_images=options.train,
        num_eval_images=options.held_out,
        seed=options.seed,
    )
    output = options.output
    try:
        for split in ("train", "validation"):
            write_jsonl(SyntheticBirdSource(config, split, options.image_size), output, split)
        write_zero_shot_set(config, options.image_size, output / "unseen")
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return status_of(error)
    except KeyboardInterrupt:
        print("Stopped; the files are not complete.", file=sys.stderr)
        return ExitStatus.INTERRUPTED
    print(f"{output}/train.jsonl        {options.train} images with captions and regions")
    print(f"{output}/validation.jsonl   {options.held_out} images of species not in training")
    print(f"{output}/unseen/            {options.held_out} images to classify, with descriptions")
    return ExitStatus.DONE


def parse_options(arguments: Sequence[str] | None) -> Options:
    """The options of the command line; NotParsed as `parse`."""
    return parse(Options, arguments, command="data.synthetic_birds", description=__doc__)


def write_jsonl(source: Source, out: Path, split: str) -> None:
    """The records as `out/<split>.jsonl`, their images as PNG files in `out/images/<split>`."""
    (out / "images" / split).mkdir(parents=True, exist_ok=True)
    with (out / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
        for index in range(len(source)):
            record = source[index]
            name = f"{split}/{index:05d}.png"
            _save(record, out / "images" / name)
            lines.write(json.dumps(_line(record, name)) + "\n")


def write_zero_shot_set(config: SyntheticBirdsConfig, image_size: int, out: Path) -> None:
    """The unseen species as a folder with `labels.csv` (file,label), class names, descriptions."""
    dataset = bird_zero_shot_sets(config, image_size)["unseen"]
    (out / "images").mkdir(parents=True, exist_ok=True)
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for index in range(len(dataset.source)):
            record = dataset.source[index]
            _save(record, out / "images" / f"{index:05d}.png")
            table.writerow([f"images/{index:05d}.png", record.label])
    (out / "classes.txt").write_text("\n".join(dataset.class_names) + "\n", encoding="utf-8")
    described = json.dumps(dataset.descriptions, indent=1) + "\n"
    (out / "descriptions.json").write_text(described, encoding="utf-8")


def _save(record: Record, path: Path) -> None:
    if isinstance(record.image, bytes):
        raise ValueError(f"{record.id} holds encoded bytes; the drawn birds are pixels.")
    Image.fromarray(record.image).save(path)


def _line(record: Record, name: str) -> dict[str, object]:
    return {
        "image": name,
        "captions": [{"text": c.text, "source": c.source} for c in record.captions],
        "regions": [
            {
                "bbox": [round(v, 4) for v in r.box_xyxy],
                "description": r.description,
                "score": round(r.score, 4),
            }
            for r in record.regions
        ],
    }


if __name__ == "__main__":
    end(main())
