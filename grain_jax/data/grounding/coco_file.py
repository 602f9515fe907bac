"""The lists of a file in COCO's layout: images, annotations, categories."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grain_jax.boxes import Box
from grain_jax.data.importers.coco import corners
from grain_jax.data.importers.item import InvalidRecordError
from grain_jax.data.importers.json_stream import members
from grain_jax.data.importers.json_values import image_size, shown

LISTS = ("images", "annotations", "categories")
KEPT = ("caption", "original_id", "dataset_name")  # of images, beside file name and size


@dataclass(frozen=True)
class FileImage:
    """An image as the file lists it."""

    id: Any
    file: str
    size: tuple[int, int] | None  # width, height
    more: dict[str, Any]


@dataclass(frozen=True)
class Annotation:
    """An annotated object; `box` None where its bbox is not four numbers."""

    id: Any
    image_id: Any
    category_id: Any
    box: Box | None
    negatives: tuple[Any, ...] = ()  # ids of categories that nearly describe it


@dataclass
class CocoFile:
    """Annotations by image, in the order of the file."""

    images: dict[Any, FileImage] = field(default_factory=dict)
    annotations: dict[Any, list[Annotation]] = field(default_factory=dict)
    categories: dict[Any, str] = field(default_factory=dict)
    crowds: Counter[Any] = field(default_factory=Counter)  # crowd regions, by category
    crowd_ids: set[Any] = field(default_factory=set)  # of their annotations

    def boxes(self, image_id: Any) -> tuple[Box, ...]:
        """Every annotated box of an image."""
        own = self.annotations.get(image_id, ())
        return tuple(one.box for one in own if one.box is not None)


def read_coco_file(path: Path) -> CocoFile:
    """Reads `path` as a stream; crowd regions are counted and not kept.

    Raises ValueError, which names the file and what in it, where it is not of this layout, lists
    no image, or has an image twice, one without a file name, or annotations of one not listed.
    """
    found = CocoFile()
    for member in members(path, LISTS):
        if member.key not in LISTS:
            continue
        where, value = f"{path}, byte {member.start}", member.value
        key = "image_id" if member.key == "annotations" else "id"
        if not isinstance(value, dict) or type(value.get(key)) not in (int, str):
            raise ValueError(f"{where}: {member.key} need {key!r}, got {shown(value)}.")
        if member.key == "images":
            _add_image(found, value, where)
        elif member.key == "annotations":
            _add_annotation(found, value)
        elif not isinstance(value.get("name"), str):
            raise ValueError(f"{where}: a category needs a 'name', got {shown(value)}.")
        else:
            found.categories[value["id"]] = value["name"]
    if not found.images:
        raise ValueError(
            f"{path} lists no images; expected an object with 'images' and 'annotations'."
        )
    if orphans := set(found.annotations) - set(found.images):
        raise ValueError(
            f"{path} has annotations of image {shown(next(iter(orphans)))}, which it does not list."
        )
    return found


def _add_image(found: CocoFile, value: dict[str, Any], where: str) -> None:
    name, size = value.get("file_name"), (value.get("width"), value.get("height"))
    if value["id"] in found.images:
        raise ValueError(f"{where}: image {value['id']!r} is listed twice.")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: image {value['id']!r} has no 'file_name', got {shown(name)}.")
    try:
        known = None if size == (None, None) else image_size(*size)
    except InvalidRecordError as error:
        raise ValueError(f"{where}: image {value['id']!r}: {error}") from None
    more = {name: value[name] for name in KEPT if name in value}
    found.images[value["id"]] = FileImage(value["id"], name, known, more)


def _add_annotation(found: CocoFile, value: dict[str, Any]) -> None:
    if value.get("iscrowd"):
        found.crowds[value.get("category_id")] += 1
        if type(value.get("id")) in (int, str):
            found.crowd_ids.add(value["id"])
        return
    negatives = value.get("neg_category_ids")
    found.annotations.setdefault(value["image_id"], []).append(
        Annotation(
            id=value.get("id"),
            image_id=value["image_id"],
            category_id=value.get("category_id"),
            box=corners(value.get("bbox")),
            negatives=tuple(negatives) if isinstance(negatives, list) else (),
        )
    )


def refuse_options(data: Path, split: str | None, split_file: Path | None) -> None:
    """Raises ValueError for options that a format of one file a split would not read."""
    if split_file is not None:
        raise ValueError("--split_file lists images of Flickr30k Entities; leave it out.")
    if split is not None and data.is_file():
        raise ValueError(
            f"--split={split} chooses a file of a folder, and --data={data} is one; leave it out."
        )


def one_file(data: Path, patterns: tuple[str, ...]) -> Path:
    """`data`, where it is a file, or the only file of the folder that fits the first pattern any
    fits. Raises ValueError that lists what there is.
    """
    if data.is_file():
        return data
    if not data.is_dir():
        raise ValueError(f"--data={data} does not exist.")
    for pattern in patterns:
        found = sorted(data.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found)
            raise ValueError(
                f"--data={data} has several files {pattern}: {names}. Choose with --split, or give "
                "one of them as --data."
            )
    raise ValueError(f"--data={data} has none of {', '.join(patterns)}; give the file as --data.")
