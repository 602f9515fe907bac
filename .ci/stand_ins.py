"""What documents speak of and CI does not have: photographs, and models of the Hugging Face hub.

    python .ci/stand_ins.py class_folders DIR   a folder of drawn birds for each class, DIR.json
    python .ci/stand_ins.py images DIR          drawn birds in one folder
    python .ci/stand_ins.py decisions DIR       DIR/decisions.json, as after a click on "accept" and
                                                one on "reject" in DIR/review.html
    python .ci/stand_ins.py hub DIR             models of random weights under published names, as
                                                a cache of the hub (HF_HOME=DIR, HF_HUB_OFFLINE=1)

The models have the format of those they stand for and no knowledge: what is printed with them is
not what the real ones find.
"""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
REVISION = "0" * 40  # what a commit of the hub looks like
NAMES = ("house_wren", "blue_jay", "barn_owl", "mallard", "robin", "magpie")  # of folders
IMAGES = 8  # of each


def birds(folder: Path) -> list[tuple[Path, str]]:
    """(file, species) of images drawn into `folder`, with `descriptions.json` beside them."""
    from grain_jax.data.synthetic_birds.__main__ import main

    arguments = [f"--output={folder}", "--train=1", "--held_out=400", "--image_size=96"]
    if main(arguments):
        raise SystemExit("The birds could not be drawn.")
    with (folder / "unseen" / "labels.csv").open(encoding="utf-8", newline="") as file:
        return [(folder / "unseen" / row["file"], row["label"]) for row in csv.DictReader(file)]


def class_folders(folder: Path) -> None:
    """`folder/NAME/*.png`, and `folder`.json with the descriptions of each class."""
    drawn = folder.with_name(f".{folder.name}")
    species: dict[str, list[Path]] = {}
    for path, label in birds(drawn):
        species.setdefault(label, []).append(path)
    described = json.loads((drawn / "unseen" / "descriptions.json").read_text(encoding="utf-8"))
    kept = {}
    for name, label in zip(NAMES, sorted(species), strict=False):
        kept[name.replace("_", " ")] = described[label]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(species[label][:IMAGES]):
            shutil.copy(path, folder / name / f"{number}.png")
    folder.with_suffix(".json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    shutil.rmtree(drawn)


def images(folder: Path) -> None:
    """Birds of many species in one folder."""
    drawn = folder.with_name(f".{folder.name}")
    folder.mkdir(parents=True, exist_ok=True)
    for path, _ in birds(drawn)[: len(NAMES) * IMAGES]:
        shutil.copy(path, folder / path.name)
    shutil.rmtree(drawn)


def decisions(folder: Path) -> None:
    """The file that the page would save."""
    page = (folder / "review.html").read_text(encoding="utf-8")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    made = [
        {"image": image["name"], "rows": image["rows"], "verdict": verdict, "rejected_regions": []}
        for image, verdict in zip(data["images"], ("accept", "reject"), strict=False)
    ]
    saved = {"format": data["format"], "version": data["version"], "decisions": made}
    (folder / "decisions.json").write_text(json.dumps(saved), encoding="utf-8")


def hub(folder: Path) -> None:
    """A cache of the hub with a detector and a CLIP."""
    from tiny_detectors import write_detector

    write_detector(snapshot(folder, "google/owlv2-base-patch16-ensemble"), "owlv2")
    write_clip(snapshot(folder, "openai/clip-vit-base-patch16"))


def snapshot(folder: Path, name: str) -> Path:
    """Where the files of a model are in a cache of the hub."""
    model = folder / "hub" / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(REVISION, encoding="utf-8")
    files = model / "snapshots" / REVISION
    files.mkdir(parents=True)
    return files


def write_clip(folder: Path) -> None:
    """CLIP with two towers of four layers that are very narrow."""
    import torch
    import transformers

    tower = {"intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    text = {**tower, "hidden_size": 32, "vocab_size": 49_408, "max_position_embeddings": 77}
    vision = {**tower, "hidden_size": 48, "image_size": 224, "patch_size": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)


if __name__ == "__main__":
    made = {"class_folders": class_folders, "images": images, "decisions": decisions, "hub": hub}
    made[sys.argv[1]](Path(sys.argv[2]))
