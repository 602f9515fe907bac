"""python -m grain_jax.data.synthetic_birds --out=DIR: a few scenes of the world as ordinary files.

A sample to copy when you bring your own data: `train.jsonl` and `validation.jsonl` as
`python -m grain_jax.prepare --from=jsonl` reads them, the images in `images/`, and in `unseen/` a
zero-shot set with `labels.csv`, `classes.txt` and `descriptions.json` as
`python -m grain_jax.evaluate --data` reads it.
"""

import csv
import json
from pathlib import Path

from PIL import Image

from grain_jax.command_line import Parser, status_of
from grain_jax.config import SyntheticBirdsConfig
from grain_jax.data.records import Record, Source
from grain_jax.data.synthetic_birds.scene import DIFFICULTIES
from grain_jax.data.synthetic_birds.source import SyntheticBirdSource, bird_zero_shot_sets
from grain_jax.paths import path_option
from grain_jax.terminal import escape_unprintable


def main() -> None:
    """Writes the files and says what they are."""
    escape_unprintable()
    parser = Parser("data.synthetic_birds", __doc__)
    parser.add_argument(
        "--out", type=path_option, required=True, help="folder to write, made if missing"
    )
    parser.add_argument(
        "--train", type=int, default=400, help="training images (default: %(default)s)"
    )
    parser.add_argument(
        "--held_out",
        type=int,
        default=100,
        help="images of each held-out set (default: %(default)s)",
    )
    parser.add_argument(
        "--image_size", type=int, default=96, help="pixels a side (default: %(default)s)"
    )
    parser.add_argument(
        "--difficulty",
        "--level",
        default="easy",
        choices=DIFFICULTIES,
        help="(default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    args = parser.parse_args()
    config = SyntheticBirdsConfig(
        difficulty=args.difficulty,
        num_train_images=args.train,
        num_eval_images=args.held_out,
        seed=args.seed,
    )
    try:
        for split in ("train", "validation"):
            write_jsonl(SyntheticBirdSource(config, split, args.image_size), args.out, split)
        write_zero_shot_set(config, args.image_size, args.out / "unseen")
    except (ValueError, OSError) as error:
        parser.exit(status_of(error), f"Error: {error}\n")
    print(f"{args.out}/train.jsonl        {args.train} images with captions and regions")
    print(f"{args.out}/validation.jsonl   {args.held_out} images of species not in training")
    print(f"{args.out}/unseen/            {args.held_out} images to classify, with descriptions")


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
        raise ValueError(f"{record.id} holds encoded bytes; the world draws pixels.")
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
    main()
