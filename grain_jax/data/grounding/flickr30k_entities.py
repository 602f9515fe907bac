"""Flickr30k Entities as published: `Annotations/*.xml`, `Sentences/*.txt`, and lists of ids.

Every mention of every sentence whose chain has a box is a query of its own, with all boxes of the
chain, as the published protocol counts them. Training data is another matter: there the importer
makes one region of each box, described by the longest phrase of its chain.
"""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from grain_jax.data.grounding.queries import EVERY_BOX, MENTION, GivenImage, GivenQuery, GivenSet
from grain_jax.data.importers.flickr30k_entities import (
    NOT_VISUAL,
    mentions,
    parse_annotation,
    published_text,
)


def read_flickr30k_entities(
    data: Path, *, split: str | None = None, split_file: Path | None = None
) -> GivenSet:
    """The queries of the folder `data`.

    The images are those of `split_file`, a list of ids; of `<split>.txt` in the folder; or all.
    Raises ValueError for a folder without annotations and sentences, a list that is missing, empty
    or names an image twice, and files that cannot be read.
    """
    for name in ("Annotations", "Sentences"):
        if not (data / name).is_dir():
            raise ValueError(
                f"--data={data} needs {name}/ in it; give the folder of Flickr30k Entities."
            )
    ids = _ids(data, split, split_file)
    left_out: Counter[str] = Counter()
    images = [_image(data, name, left_out) for name in ids]
    parent = data.parent
    return GivenSet(
        images=images,
        queries_are=MENTION,
        boxes_are=EVERY_BOX,
        left_out=left_out,
        name="_".join(part for part in (data.resolve().name, split) if part),
        images_in=(
            data / "images",
            data / "flickr30k_images",
            data / "flickr30k-images",
            parent / "images",
            parent / "flickr30k_images",
            parent / "flickr30k-images",
        ),
    )


def _ids(data: Path, split: str | None, split_file: Path | None) -> list[str]:
    if split is not None and split_file is not None:
        raise ValueError("--split and --split_file both name a list of images; give one of them.")
    if split is not None:
        split_file = data / f"{split}.txt"
        if not split_file.is_file():
            known = sorted(file.stem for file in data.glob("*.txt"))
            raise ValueError(
                f"--split={split} needs {split_file}, a list of image ids; "
                f"{'there are ' + ', '.join(known) if known else 'there is no list there'}. "
                "Give a list with --split_file."
            )
    if split_file is None:
        return sorted(file.stem for file in (data / "Sentences").glob("*.txt"))
    if not split_file.is_file():
        raise ValueError(f"--split_file={split_file} is not a file; expected a list of image ids.")
    ids = [name.removesuffix(".jpg") for name in split_file.read_text(encoding="utf-8").split()]
    if not ids:
        raise ValueError(f"{split_file} lists no image.")
    if repeated := [name for name, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{split_file} lists {repeated[0]!r} more than once.")
    return ids


def _image(data: Path, name: str, left_out: Counter[str]) -> GivenImage:
    place = data / "Annotations" / f"{name}.xml"
    try:
        size, boxes = parse_annotation(published_text(place))
    except (ElementTree.ParseError, AttributeError) as error:
        raise ValueError(f"{place}: not an annotation of Flickr30k Entities ({error}).") from None
    queries = []
    for line in published_text(data / "Sentences" / f"{name}.txt").splitlines():
        for chain, phrase in mentions(line):
            if chain == NOT_VISUAL:
                left_out["not visual"] += 1
            elif not phrase:
                left_out["without words"] += 1
            elif chain not in boxes:
                left_out["without a box"] += 1
            else:
                queries.append(GivenQuery(phrase, tuple(boxes[chain])))
    others = tuple(box for own in boxes.values() for box in own)
    return GivenImage(name, f"{name}.jpg", tuple(queries), others, size)
