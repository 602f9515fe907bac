"""Queries one image a line: `{"image": "a.jpg", "queries": [{"text": ..., "boxes": [[x0, y0, x1,
y1], ...]}, ...]}`, or a line that `prepare --from=jsonl` reads, whose regions are the queries.

With "queries" each is one, repeated texts too. Of "regions" those with one description are one
query with several boxes. Boxes are fractions, or pixels with `"bbox_unit": "pixel"`. "boxes" of the
line are further boxes that may be chosen, "negatives" of a query texts that do not describe it.
"""

from pathlib import Path
from typing import Any

from grain_jax.boxes import Box
from grain_jax.data.grounding.coco_file import refuse_options
from grain_jax.data.grounding.queries import (
    EVERY_BOX,
    TEXT,
    GivenImage,
    GivenQuery,
    GivenSet,
    grouped,
)
from grain_jax.data.importers.item import InvalidRecordError
from grain_jax.data.importers.json_values import four_numbers, parse_object, shown
from grain_jax.data.importers.jsonl import JsonLines, parse_entry

FIELDS = {"image", "id", "queries", "boxes", "bbox_unit", "width", "height"}
QUERY_FIELDS = {"text", "boxes", "negatives"}


def read_jsonl(data: Path, *, split: str | None = None, split_file: Path | None = None) -> GivenSet:
    """The queries of a file, or of `<split>.jsonl` in a folder.

    Raises ValueError, with the line, for what it cannot read.
    """
    refuse_options(data, split, split_file)
    path = data / f"{split}.jsonl" if split is not None and data.is_dir() else data
    if not path.is_file():
        raise ValueError(
            f"--data={data} is not a file of lines; give one, or its folder and --split=NAME for "
            "NAME.jsonl."
        )
    lines = JsonLines(path)
    images = []
    for index in range(len(lines)):
        try:
            images.append(_image(lines.line(index)))
        except InvalidRecordError as error:
            raise ValueError(f"{lines.where(index)}: {error}") from None
    if not images:
        raise ValueError(f"{path} has no lines.")
    return GivenSet(
        images=images,
        queries_are=TEXT,
        boxes_are=EVERY_BOX,
        name=path.stem,
        images_in=(path.parent, path.parent / "images"),
    )


def _image(line: bytes) -> GivenImage:
    entry = parse_object(line, expected="an object with 'image' and 'queries'")
    if "queries" not in entry:
        item = parse_entry(entry)
        queries = grouped((region.description, region.box_xyxy) for region in item.regions)
        unit = item.box_unit == "fraction"
        return GivenImage(item.id, item.image, queries, size=item.size, fractions=unit)
    if unknown := sorted(set(entry) - FIELDS):
        raise InvalidRecordError(f"{unknown[0]!r} is not read; a line has {sorted(FIELDS)}.")
    known = {name: value for name, value in entry.items() if name not in ("queries", "boxes")}
    item = parse_entry(known)
    if not isinstance(entry["queries"], list):
        raise InvalidRecordError(f"'queries' must be a list, got {shown(entry['queries'])}.")
    return GivenImage(
        id=item.id,
        file=item.image,
        queries=tuple(_query(one, f"queries[{i}]") for i, one in enumerate(entry["queries"])),
        others=_boxes(entry.get("boxes", []), "boxes"),
        size=item.size,
        fractions=item.box_unit == "fraction",
    )


def _query(value: Any, where: str) -> GivenQuery:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or not value["text"]:
        raise InvalidRecordError(f"{where} needs a 'text', got {shown(value)}.")
    if unknown := sorted(set(value) - QUERY_FIELDS):
        raise InvalidRecordError(f"{where}: {unknown[0]!r} is none of {sorted(QUERY_FIELDS)}.")
    negatives = value.get("negatives", [])
    if not isinstance(negatives, list) or not all(isinstance(text, str) for text in negatives):
        raise InvalidRecordError(f"{where}: 'negatives' must be texts, got {shown(negatives)}.")
    return GivenQuery(
        value["text"], _boxes(value.get("boxes"), f"{where}: 'boxes'"), tuple(negatives)
    )


def _boxes(value: Any, where: str) -> tuple[Box, ...]:
    found = [four_numbers(one) for one in value] if isinstance(value, list) else [None]
    if any(box is None for box in found):
        raise InvalidRecordError(f"{where} must be a list of [x0, y0, x1, y1], got {shown(value)}.")
    return tuple(box for box in found if box is not None)
