"""RefCOCO, RefCOCO+ and RefCOCOg: expressions, each for one thing in an image of COCO.

`--input` is the folder of one of the three, with `instances.json` and the referring expressions in
`refs(NAME).p`, as published, or in a mirror of them as `refs*.json` or `*.parquet`; or such a file,
with `instances.json` beside it. Each sentence of an expression becomes a description of its box.
`--subset` is the split that the expressions name (train, val, testA, ...). There are no captions:
`--captions_from_regions` makes them. The pickle is read without running code that it names.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grain_jax.data.importers.coco import corners
from grain_jax.data.importers.input_files import choose_subset, crc32_of
from grain_jax.data.importers.item import ImportedImage, ImportedRegion, InvalidRecordError
from grain_jax.data.importers.json_stream import members
from grain_jax.data.importers.json_values import image_size, shown
from grain_jax.data.importers.restricted_pickle import read_plain_pickle
from grain_jax.extras import how_to_install

INSTANCES = "instances.json"
REFS = ("refs*.p", "refs*.json", "*.parquet")
COLUMNS = ("image_id", "ann_id", "ref_id", "split", "sentences")
SENTENCE_KEYS = ("sent", "raw")  # the text in lower case without marks, and as it was typed


@dataclass
class _Image:
    """File name, size and expressions of one image."""

    file_name: Any = None
    size: tuple[Any, Any] = (None, None)
    refs: list[tuple[Any, list[str]]] = field(default_factory=list)  # (ann_id, sentences)


class RefCoco:
    """One record for each image with expressions of the split, in their order. An `Importer`."""

    def __init__(self, path: Path, *, split: str = "", subset: str | None = None) -> None:
        self._files = find_files(path)
        refs = _read_refs(self._files)
        named = (ref.get("split") for ref in refs if isinstance(ref, dict))
        splits = sorted({name for name in named if isinstance(name, str)})
        if not splits:
            raise ValueError(
                f"{self._files[0]} holds no expressions with 'image_id', 'ann_id', 'split' and "
                "'sentences'."
            )
        self._subset = choose_subset(splits, split, subset)
        self._problems: list[str] = []
        self._images: dict[int, _Image] = {}
        for position, ref in enumerate(refs):
            try:
                self._add(ref)
            except InvalidRecordError as error:
                self._problems.append(f"{self._files[0]}, expression {position}: {error}")
        self._boxes = self._read_instances()
        self._ids = list(self._images)

    def __len__(self) -> int:
        return len(self._problems) + len(self._ids)

    def __getitem__(self, index: int) -> ImportedImage:
        if index < len(self._problems):  # first, so that a build that is to stop does so at once
            raise InvalidRecordError(self._problems[index])
        image_id = self._ids[index - len(self._problems)]
        image = self._images[image_id]
        where = f"{self._files[-1]}: image {image_id}"
        if not isinstance(image.file_name, str) or not image.file_name:
            raise InvalidRecordError(f"{where} is not listed with a 'file_name'.")
        regions: list[ImportedRegion] = []
        left_out: list[str] = []
        for ann_id, sentences in image.refs:
            given = self._boxes.get(ann_id)
            box = corners(given)
            if box is None:
                reason = "box is not [x, y, width, height]" if given else "no box of the expression"
                left_out += [reason] * len(sentences)
            else:
                regions += [ImportedRegion(box, sentence) for sentence in sentences]
        try:
            size = None if image.size == (None, None) else image_size(*image.size)
        except InvalidRecordError as error:
            raise InvalidRecordError(f"{where}: {error}") from None
        return ImportedImage(
            id=str(image_id),
            image=image.file_name,
            regions=tuple(regions),
            box_unit="pixel",
            size=size,
            left_out=tuple(left_out),
            sides_given=True,
        )

    def fingerprint(self) -> dict[str, object]:
        return {
            "files": [str(file.resolve()) for file in self._files],
            "crc32": [crc32_of(file) for file in self._files],
            "subset": self._subset,
        }

    def checksum(self, start: int, stop: int) -> str:
        made_of: list[Any] = [self._problems]
        for index in range(start, stop):
            if index >= len(self._problems):
                image = self._images[self._ids[index - len(self._problems)]]
                boxes = [self._boxes.get(ann_id) for ann_id, _ in image.refs]
                made_of.append([image.file_name, image.size, image.refs, boxes])
        return hashlib.sha256(json.dumps(made_of, default=str).encode()).hexdigest()

    def _add(self, ref: Any) -> None:
        """Adds an expression of the split. Raises `InvalidRecordError`."""
        if not isinstance(ref, dict):
            raise InvalidRecordError(f"expected an object, got {shown(ref)}.")
        if ref.get("split") != self._subset:
            return
        for name in ("image_id", "ann_id"):
            if type(ref.get(name)) is not int:
                raise InvalidRecordError(
                    f"{name!r} must be a whole number, got {shown(ref.get(name))}."
                )
        sentences = list(sentence_texts(ref.get("sentences")))
        self._images.setdefault(ref["image_id"], _Image()).refs.append((ref["ann_id"], sentences))

    def _read_instances(self) -> dict[int, Any]:
        """The boxes of the annotations that expressions name; fills in file names and sizes."""
        wanted = {ann_id for image in self._images.values() for ann_id, _ in image.refs}
        boxes: dict[int, Any] = {}
        for member in members(self._files[-1], ("images", "annotations")):
            entry = member.value
            if not isinstance(entry, dict) or type(entry.get("id")) is not int:
                continue
            if member.key == "images" and entry["id"] in self._images:
                image = self._images[entry["id"]]
                image.file_name = entry.get("file_name")
                image.size = entry.get("width"), entry.get("height")
            elif member.key == "annotations" and entry["id"] in wanted:
                boxes[entry["id"]] = entry.get("bbox")
        return boxes


def find_files(path: Path) -> list[Path]:
    """The files of expressions, and last `instances.json`. Raises ValueError."""
    if not path.exists():
        raise ValueError(f"--input={path} does not exist; give the folder of a RefCOCO data set.")
    folder = path if path.is_dir() else path.parent
    instances = folder / INSTANCES
    if not instances.is_file():
        raise ValueError(f"--input={path} needs {INSTANCES} in {folder}, which has the boxes.")
    if path.is_file():
        return [path, instances]
    for pattern in REFS:
        found = sorted(folder.glob(pattern))
        if len(found) > 1 and not pattern.endswith(".parquet"):
            raise ValueError(
                f"--input={path} has several files of expressions: "
                f"{', '.join(file.name for file in found)}. Give one of them as --input."
            )
        if found:
            return [*found, instances]
    raise ValueError(f"--input={path} has no file of expressions: {', '.join(REFS)}.")


def _read_refs(files: list[Path]) -> list[Any]:
    first = files[0]
    if first.suffix == ".parquet":
        return [ref for file in files[:-1] for ref in _parquet_rows(file)]
    if first.suffix == ".json":
        return [member.value for member in members(first)]
    refs = read_plain_pickle(first)
    if not isinstance(refs, list):
        raise ValueError(f"{first} is not a list of expressions.")
    return refs


def _parquet_rows(path: Path) -> list[Any]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(
            f"{path} needs pyarrow, which is not installed: {how_to_install('parquet')}"
        ) from None
    try:
        rows: list[Any] = parquet.read_table(path, columns=list(COLUMNS)).to_pylist()
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a table of expressions: {error}") from None
    return rows


def sentence_texts(given: Any) -> Iterator[str]:
    """The texts of the sentences of an expression. Raises `InvalidRecordError`."""
    if not isinstance(given, list):
        raise InvalidRecordError(f"'sentences' must be a list, got {shown(given)}.")
    for sentence in given:
        values = sentence if isinstance(sentence, dict) else {"sent": sentence}
        text = next((values[key] for key in SENTENCE_KEYS if values.get(key)), None)
        if not isinstance(text, str):
            raise InvalidRecordError(f"a sentence has no text 'sent' or 'raw': {shown(sentence)}.")
        yield text
