"""Annotations in the files of the official GRAIN code: captions, captions of a model, and boxes.

`--input` is the folder with `captions_pooled.csv` (path, caption), `captions_<set>_pooled.json`
({path: caption written by a model}) and `bboxes_<set>_pooled.json` ({path: [{bbox, score,
description}, ...]}), of which the two last are optional. Boxes are x0, y0, x1, y1 in a frame of 960
by 960 pixels, to which every image was squashed, and may reach out of it. Only the places of
entries in the files are kept in memory, 16 bytes for each file and image.
"""

import array
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.data.importers.csv_table import CsvTable, path_key
from grain_jax.data.importers.input_files import crc32_of
from grain_jax.data.importers.item import ImportedImage, ImportedRegion, InvalidRecordError
from grain_jax.data.importers.json_stream import members
from grain_jax.data.importers.json_values import as_number, four_numbers, shown, unique_keys
from grain_jax.data.records import Caption

FRAME = 960  # pixels of each side of the frame that boxes refer to
TABLE = "captions_pooled.csv"
PADDING = "<pad>"  # the description of a box that stands for none


class OfficialGrain:
    """One record for each path of the table, in its order. An `Importer`."""

    def __init__(self, path: Path) -> None:
        table = path / TABLE
        if not table.is_file():
            raise ValueError(f"--input={path} needs {TABLE}, with the columns path and caption.")
        self._table = CsvTable(table, image_column="path", caption_columns=("caption",))
        self._captions = _only(path, "captions_*_pooled.json")
        self._boxes = _only(path, "bboxes_*_pooled.json")
        self.notes = [
            f"{file.path.name}: {count:,} of {len(file.keys):,} entries are of paths that {TABLE} "
            "does not have, and are left out."
            for file in (self._captions, self._boxes)
            if file and (count := int((~np.isin(file.keys, self._table.keys)).sum()))
        ]

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> ImportedImage:
        item = self._table[index]
        key = int(self._table.keys[index])
        text = None if self._captions is None else self._captions.read(key, str)
        boxes = [] if self._boxes is None else self._boxes.read(key, list) or []
        read = [_region(box) for box in boxes]
        return ImportedImage(
            id=item.id,
            image=item.image,
            captions=(*item.captions, *([Caption(text, "synthetic")] if text is not None else [])),
            regions=tuple(region for region in read if isinstance(region, ImportedRegion)),
            left_out=tuple(reason for reason in read if isinstance(reason, str)),
        )

    def fingerprint(self) -> dict[str, object]:
        files = [file for file in (self._captions, self._boxes) if file is not None]
        return {"table": self._table.fingerprint(), "crc32": [crc32_of(f.path) for f in files]}

    def checksum(self, start: int, stop: int) -> str:
        digest = hashlib.sha256(self._table.checksum(start, stop).encode())
        for key in self._table.keys[start:stop].tolist():
            for file in (self._captions, self._boxes):
                digest.update(b"\0" if file is None else file.bytes_of(key))
        return digest.hexdigest()


class KeyedFile:
    """A JSON object {path: value} of any size, whose values are read at their places."""

    def __init__(self, path: Path) -> None:
        self.path = path
        keys, starts, sizes = array.array("Q"), array.array("q"), array.array("i")
        for member in members(path):
            keys.append(path_key(member.key))
            starts.append(member.start)
            sizes.append(member.size)
        order = np.argsort(np.asarray(keys, np.uint64), kind="stable")
        self.keys = np.asarray(keys, np.uint64)[order]
        self._starts = np.asarray(starts, np.int64)[order]
        self._sizes = np.asarray(sizes, np.int32)[order]

    def bytes_of(self, key: int) -> bytes:
        """The JSON of the values of a `path_key`, one after the other; b"" without one."""
        found = []
        with self.path.open("rb") as file:
            for at in self._at(key):
                file.seek(int(self._starts[at]))
                found.append(file.read(int(self._sizes[at])))
        return b"".join(found)

    def read(self, key: int, kind: type[Any]) -> Any:
        """The value of a `path_key`; None without one. Raises `InvalidRecordError`."""
        places = self._at(key)
        if not places:
            return None
        where = f"{self.path}, byte {self._starts[places[0]]}"
        if len(places) > 1:
            raise InvalidRecordError(f"{where}: the path is given {len(places)} times; keep one.")
        try:
            value = json.loads(self.bytes_of(key), object_pairs_hook=unique_keys)
        except InvalidRecordError as error:
            raise InvalidRecordError(f"{where}: {error}") from None
        if not isinstance(value, kind):
            raise InvalidRecordError(f"{where}: expected a {kind.__name__}, got {shown(value)}.")
        return value

    def _at(self, key: int) -> range:
        wanted = np.uint64(key)
        return range(
            int(np.searchsorted(self.keys, wanted)),
            int(np.searchsorted(self.keys, wanted, side="right")),
        )


def _only(folder: Path, pattern: str) -> KeyedFile | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise ValueError(
            f"{folder} has several files {pattern}: {', '.join(file.name for file in found)}. "
            "Leave one of them there."
        )
    return KeyedFile(found[0]) if found else None


def _region(box: Any) -> ImportedRegion | str:
    """The region of an entry, its box in fractions and cut to the frame; or why it is left out."""
    if not isinstance(box, dict):
        return "region is not an object"
    corners, score = four_numbers(box.get("bbox")), as_number(box.get("score", 1.0))
    description = box.get("description")
    if corners is None:
        return "box is not [x0, y0, x1, y1]"
    if score is None:
        return "score is not a number"
    if not isinstance(description, str):
        return "description is not a text"
    if description == PADDING:
        return "padding"
    x0, y0, x1, y1 = (
        min(max(value, 0.0), FRAME) / FRAME if math.isfinite(value) else value for value in corners
    )
    return ImportedRegion((x0, y0, x1, y1), description, score)
