"""The formats that `python -m grain_jax.evaluate grounding --format=NAME` reads.

To add one, write a function from the `--data` path to a `GivenSet`, and name it in `FORMATS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grain_jax.data.grounding.coco import read_coco
from grain_jax.data.grounding.fg_ovd import read_fg_ovd
from grain_jax.data.grounding.flickr30k_entities import read_flickr30k_entities
from grain_jax.data.grounding.jsonl import read_jsonl
from grain_jax.data.grounding.queries import GivenSet, GroundingSet, images_folder, make_set
from grain_jax.data.grounding.refcoco import read_refcoco

FORMATS: dict[str, Callable[..., GivenSet]] = {
    "flickr30k_entities": read_flickr30k_entities,
    "refcoco": read_refcoco,
    "coco": read_coco,
    "fg_ovd": read_fg_ovd,
    "jsonl": read_jsonl,
}


# Format -> files in a folder that a split may be in.
SPLITS: dict[str, tuple[str, ...]] = {
    "flickr30k_entities": ("{split}.txt",),
    "refcoco": ("*_{split}.json", "*_{split}.jsonl", "{split}.jsonl", "refs*.json", "*.jsonl"),
    "coco": ("instances_{split}.json", "annotations/instances_{split}.json"),
    "fg_ovd": ("{split}.json",),
}


def lacks_split(name: str, data: Path, split: str) -> bool:
    """Whether a folder has no file that the split of a format could be in."""
    patterns = [pattern.format(split=split) for pattern in SPLITS.get(name, ())]
    return data.is_dir() and bool(patterns) and not any(map(any, map(data.glob, patterns)))


def load_grounding(
    name: str,
    data: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    split_file: Path | None = None,
    negatives: int | None = None,
) -> GroundingSet:
    """The queries of published files with their images.

    Args:
        name: the format, one of `FORMATS`.
        images: folder of the images; None: where the format usually has them.
        split: a part of the data; which files that is depends on the format.
        split_file: a list of image ids, of Flickr30k Entities.
        negatives: wrong captions of each object, of FG-OVD.

    Raises ValueError for what it cannot read, and for options of another format.
    """
    if name not in FORMATS:
        raise ValueError(f"Unknown format {name!r}; choose one of {', '.join(FORMATS)}.")
    options: dict[str, Any] = {"split": split, "split_file": split_file}
    if negatives is not None:
        if name != "fg_ovd":
            raise ValueError(
                f"--negatives counts wrong captions of fg_ovd; --format={name} has none."
            )
        options["negatives"] = negatives
    given = FORMATS[name](data, **options)
    return make_set(given, images_folder(given, images))
