"""RefCOCO, RefCOCO+ and RefCOCOg from the releases in JSON. The original `refs(...).p` is a pickle,
which can run code when it is read, and is refused.

Three layouts are read:

- COCO's with an "image" for every expression: its text in `caption`, its box in the annotation, the
  image's id in `original_id` (`finetune_refcoco_val.json` and others, of MDETR);
- the expressions of `refs(...).p` as a list, in `refs*.json`: `image_id`, `ann_id`, `split` and
  `sentences`, boxes from `instances.json` beside it;
- the same, one a line, in `*.jsonl`; boxes from `instances.json`, or of the row itself from
  `raw_anns`, an annotation of COCO as text. The `bbox` of such a row is not read: it has corners in
  some releases, and sides in others.

With `instances.json` beside the file every box annotated in an image may be chosen where boxes are
given; without it only boxes that expressions name.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grain_jax.boxes import Box
from grain_jax.data.grounding.coco_file import CocoFile, one_file, read_coco_file
from grain_jax.data.grounding.queries import (
    EVERY_BOX,
    EXPRESSION,
    OF_QUERIES,
    GivenImage,
    GivenQuery,
    GivenSet,
)
from grain_jax.data.importers.coco import corners
from grain_jax.data.importers.item import InvalidRecordError
from grain_jax.data.importers.json_stream import members
from grain_jax.data.importers.json_values import image_size, parse_object, shown
from grain_jax.data.importers.refcoco import INSTANCES, sentence_texts

CROWD = "of a crowd region"  # why a sentence is left out
SAME_SPLIT = {"validation": "val", "val": "validation"}


@dataclass
class _Image:
    file: str
    size: tuple[int, int] | None
    queries: list[GivenQuery] = field(default_factory=list)


def read_refcoco(
    data: Path, *, split: str | None = None, split_file: Path | None = None
) -> GivenSet:
    """The sentences of a split, each a query with the box of its expression.

    `data`: the file, or a folder with one. `split`, such as testA: the file `*_<split>.json`, or
    the expressions of a list that name it. Raises ValueError for another layout, a pickle, an
    unknown split, and expressions without image or box.
    """
    if split_file is not None:
        raise ValueError("--split_file lists images of Flickr30k Entities; leave it out.")
    path = _find(data, split)
    instances = path.parent / INSTANCES
    left_out: Counter[str] = Counter()
    every = read_coco_file(instances) if instances.is_file() and instances != path else None
    if path.suffix == ".jsonl":
        images = _of_refs(path, _lines(path), every, split, left_out)
    elif next(members(path)).key == "":  # a list
        images = _of_refs(
            path,
            ((m.value, f"{path}, byte {m.start}") for m in members(path)),
            every,
            split,
            left_out,
        )
    else:
        if split is not None and not path.stem.endswith(f"_{split}"):
            raise ValueError(
                f"{path} has the expressions of one split, which its name says is not {split!r}; "
                "give the folder as --data, or leave --split out."
            )
        images = _of_expressions(path, read_coco_file(path))
    given = [
        GivenImage(
            id=str(image_id),
            file=image.file,
            queries=tuple(image.queries),
            others=() if every is None else every.boxes(image_id),
            size=image.size,
        )
        for image_id, image in images.items()
    ]
    folder = path.parent
    return GivenSet(
        images=given,
        queries_are=EXPRESSION,
        boxes_are=OF_QUERIES if every is None else EVERY_BOX,
        left_out=left_out,
        name="_".join(dict.fromkeys(p for p in (path.stem, split) if p and p not in path.stem))
        or path.stem,
        images_in=(folder / "images", folder / "train2014", folder.parent / "train2014"),
    )


def _find(data: Path, split: str | None) -> Path:
    if data.suffix == ".p" or (data.is_dir() and not _readable(data) and list(data.glob("*.p"))):
        raise ValueError(
            f"--data={data}: refs(...).p is a pickle, which can run code when it is read. Give a "
            "release in JSON: finetune_*.json of MDETR, or refs*.json or *.jsonl with "
            "instances.json."
        )
    of_split = (f"*_{split}.json", f"*_{split}.jsonl", f"{split}.jsonl") if split else ()
    return one_file(data, (*of_split, "refs*.json", "*.jsonl"))


def _readable(folder: Path) -> list[Path]:
    found = [*folder.glob("*.json"), *folder.glob("*.jsonl")]
    return [path for path in found if path.name != INSTANCES]


def _of_expressions(path: Path, found: CocoFile) -> dict[Any, _Image]:
    images: dict[Any, _Image] = {}
    for entry in found.images.values():
        text, original = entry.more.get("caption"), entry.more.get("original_id")
        if not isinstance(text, str) or type(original) not in (int, str):
            raise ValueError(
                f"{path}: image {entry.id!r} needs 'caption', the expression, and 'original_id'; "
                "expected a file such as finetune_refcoco_val.json, an image for every expression."
            )
        boxes = found.boxes(entry.id)
        image = images.setdefault(original, _Image(entry.file, entry.size))
        image.queries.append(GivenQuery(text, boxes))
    return images


def _of_refs(
    path: Path,
    rows: Iterable[tuple[Any, str]],
    every: CocoFile | None,
    split: str | None,
    left_out: Counter[str],
) -> dict[Any, _Image]:
    """Images with their queries; sentences about a crowd region are counted in `left_out`."""
    by_id = {} if every is None else {a.id: a for own in every.annotations.values() for a in own}
    images: dict[Any, _Image] = {}
    splits: set[str] = set()
    for row, where in rows:
        if not isinstance(row, dict) or type(row.get("image_id")) is not int:
            raise ValueError(f"{where}: an expression needs 'image_id', got {shown(row)}.")
        splits.add(str(row.get("split")))
        if split is not None and row.get("split") not in (split, SAME_SPLIT.get(split)):
            continue
        image_id = row["image_id"]
        try:
            texts = list(sentence_texts(row.get("sentences")))
            if image_id not in images:
                images[image_id] = _image(row, every, where)
        except InvalidRecordError as error:
            raise ValueError(f"{where}: {error}") from None
        if every is not None and row.get("ann_id") in every.crowd_ids:
            left_out[CROWD] += len(texts)
            continue
        if every is not None and row.get("ann_id") in by_id:
            box = by_id[row["ann_id"]].box
        else:
            box = _own_box(row, where, listed=every is not None)
        boxes = () if box is None else (box,)
        images[image_id].queries += [GivenQuery(text, boxes) for text in texts]
    if not images:
        known = ", ".join(sorted(splits)) or "none"
        raise ValueError(f"{path} has no expression of --split={split}; it has {known}.")
    if split is None and len(splits) > 1:
        raise ValueError(
            f"{path} has expressions of {', '.join(sorted(splits))}; choose one with --split."
        )
    return images


def _image(row: dict[str, Any], every: CocoFile | None, where: str) -> _Image:
    listed = None if every is None else every.images.get(row["image_id"])
    if listed is not None:
        return _Image(listed.file, listed.size)
    info = _embedded(row, "raw_image_info", where)
    file = info.get("file_name") or row.get("file_name")
    if not isinstance(file, str) or not file:
        raise InvalidRecordError("no file name of the image; give instances.json beside it.")
    size = info.get("width"), info.get("height")
    return _Image(file, None if size == (None, None) else image_size(*size))


def _own_box(row: dict[str, Any], where: str, *, listed: bool) -> Box | None:
    """The box of `raw_anns`; `listed`: whether there is an `instances.json`, which lacks it."""
    box = corners(_embedded(row, "raw_anns", where).get("bbox"))
    if box is None:
        hint = (
            f"{INSTANCES} beside the file does not list it; give the one of this release."
            if listed
            else f"Put {INSTANCES} beside the file; 'bbox' of a row is not read, as it has corners "
            "in some releases and width and height in others."
        )
        raise ValueError(f"{where}: no box of annotation {row.get('ann_id')!r}. {hint}")
    return box


def _embedded(row: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """An object that a row has as text, or as it is; empty where it has none."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"{where}: {name!r} is not JSON: {shown(value)}.") from None
    return value if isinstance(value, dict) else {}


def _lines(path: Path) -> Iterator[tuple[Any, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield parse_object(line), f"{path}:{number}"
                except InvalidRecordError as error:
                    raise ValueError(f"{path}:{number}: {error}") from None
