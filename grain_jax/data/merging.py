"""Captions and regions of one file joined onto the images of any importer.

`MergedImporter` adds what the annotations say of an image to what the importer says. They are
joined by the id, the path, or the SHA-256 of the image, so that a partial download joins what it
has. Of annotations only a hash of the key and the place in the file stay in memory; a row is read
again when its image is.
"""

import dataclasses
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from grain_jax.data.annotation_files import Annotations, read_annotations
from grain_jax.data.captions import normalize_text
from grain_jax.data.checks import check_size, read_image
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers import ImportedImage, ImportedRegion, Importer, InvalidRecordError
from grain_jax.data.importers.annotations import imported_annotation
from grain_jax.data.importers.json_values import parse_object, shown
from grain_jax.data.importers.jsonl import JsonLines, parse_entry
from grain_jax.data.records import Caption
from grain_jax.data.transforms import ImageError, image_shape

MergeBy = Literal["id", "image", "hash"]
HASH_FIELD = "sha256"  # of a JSON line: SHA-256 of the bytes of the image file, in hexadecimal
_SHA256 = re.compile("[0-9a-f]{64}")


@runtime_checkable
class _Rows(Protocol):
    """The rows of annotations, in the order of their file."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> tuple[str | None, ImportedImage]:
        """Key (None: none) and content. Raises `InvalidRecordError`."""
        ...

    def fingerprint(self) -> dict[str, object]: ...


class MergedImporter:
    """The images of an importer with their annotations. An `Importer`."""

    def __init__(
        self, importer: Importer, annotations: Path, *, by: MergeBy, images: Path | None, skip: bool
    ) -> None:
        """Reads the keys of all rows.

        Args:
            annotations: JSON lines, or a folder that `annotate` wrote.
            images: folder that paths of images start from; None where the importer has the bytes.
            skip: leave out rows that cannot be read, and count them, rather than stop.

        Raises ValueError where the annotations cannot be read or have no row, and, unless `skip`,
        for the first row that cannot be read.
        """
        self._importer, self._by, self._images = importer, by, images
        self._rows = _open_rows(annotations, by)
        self.merge_notes: list[str] = []
        self._keys, self._places = self._index(annotations, skip=skip)
        self.num_annotations = len(self._places)
        self._identity = {"by": by, **self._rows.fingerprint()}

    def __len__(self) -> int:
        return len(self._importer)

    def __getitem__(self, index: int, /) -> ImportedImage:
        item = self._importer[index]
        try:
            return merged(item, self._matches(item), lambda: self._size(item))
        except (SkippedSample, ImageError):  # the checks of the image say so, and count it
            return item

    def fingerprint(self) -> dict[str, object]:
        return {**self._importer.fingerprint(), "merged": self._identity}

    def checksum(self, start: int, stop: int) -> str:
        own = {name: value for name, value in self._identity.items() if name != "path"}
        parts = self._importer.checksum(start, stop), json.dumps(own, sort_keys=True)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def notes(self) -> list[str]:
        """Sentences for the report: those of the importer, and about the annotations."""
        return [*getattr(self._importer, "notes", ()), *self.merge_notes]

    def class_descriptions(self) -> dict[str, tuple[str, ...]]:
        """Those of the importer."""
        found: dict[str, tuple[str, ...]] = getattr(self._importer, "class_descriptions", dict)()
        return found

    def _index(self, path: Path, *, skip: bool) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the keys, sorted, and the row of each; equal keys in the order of rows."""
        keys = np.zeros(len(self._rows), np.uint64)
        usable = np.zeros(len(self._rows), bool)
        empty, unreadable = 0, []
        for row in range(len(self._rows)):
            try:
                key, content = self._rows[row]
            except InvalidRecordError as error:
                if not skip:
                    raise ValueError(f"{error} (--on-error=skip skips such records.)") from None
                unreadable.append(row)
                if len(unreadable) == 1:
                    first = str(error)
                continue
            if key is None or not (content.captions or content.regions):
                empty += 1
                continue
            keys[row], usable[row] = _hashed(key), True
        places = np.flatnonzero(usable).astype(np.uint32)
        if unreadable:
            self.merge_notes.append(
                f"{len(unreadable):,} annotations of {path} cannot be read and are left out; the "
                f"first: {first}"
            )
        if empty:
            self.merge_notes.append(f"{empty:,} annotations of {path} say nothing or have no key.")
        if not len(places):
            raise ValueError(f"--merge_annotations={path} has no annotation that can be joined.")
        order = np.argsort(keys[places], kind="stable")
        keys, places = keys[places][order], places[order]
        if repeated := len(keys) - len(np.unique(keys)):
            self.merge_notes.append(
                f"{repeated:,} annotations of {path} have the {self._by} of an earlier one; an "
                "image gets all of its own."
            )
        return keys, places

    def _matches(self, item: ImportedImage) -> dict[int, ImportedImage]:
        """Rows of the image and what they say, in the order of the file."""
        key = self._key(item)
        hashed = np.uint64(_hashed(key))
        start, stop = (int(np.searchsorted(self._keys, hashed, side)) for side in ("left", "right"))
        rows = {row: self._rows[row] for row in self._places[start:stop].tolist()}
        return {row: content for row, (own, content) in rows.items() if own == key}

    def _key(self, item: ImportedImage) -> str:
        if self._by == "hash":
            return hashlib.sha256(read_image(item, self._images)).hexdigest()
        return item.id if self._by == "id" else _path_key(item.image)

    def _size(self, item: ImportedImage) -> tuple[int, int]:
        height, width = image_shape(read_image(item, self._images))
        return width, height


class _JsonRows:
    """JSON lines in the form of the importer of that name; `image` may be left out if not used."""

    def __init__(self, path: Path, by: MergeBy) -> None:
        try:
            self._lines = JsonLines(path)
        except ValueError as error:
            raise ValueError(str(error).replace("--input=", "--merge_annotations=")) from None
        self._by = by

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, row: int, /) -> tuple[str | None, ImportedImage]:
        try:
            return self._read(self._lines.line(row))
        except InvalidRecordError as error:
            where = self._lines.where(row)
            message = str(error)
            raise InvalidRecordError(
                message if message.startswith(where) else f"{where}: {message}"
            ) from None

    def _read(self, line: bytes) -> tuple[str, ImportedImage]:
        entry = parse_object(line, expected="an object with 'captions' or 'regions'")
        digest = entry.pop(HASH_FIELD, None)
        if self._by == "hash":
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest.lower()):
                raise InvalidRecordError(
                    f"{HASH_FIELD!r} must be the SHA-256 of the image file, 64 hexadecimal digits, "
                    f"got {shown(digest)}."
                )
            entry.setdefault("image", digest)
        elif self._by == "id":
            if entry.get("id") is None and entry.get("image") is None:
                raise InvalidRecordError("'id' is missing, by which annotations find their image.")
            entry.setdefault("image", str(entry.get("id")))
        content = parse_entry(entry)
        if self._by == "hash":
            return str(digest).lower(), content
        return (content.id if self._by == "id" else _path_key(content.image)), content

    def fingerprint(self) -> dict[str, object]:
        whole = self._lines.checksum(0, len(self)) if len(self) else ""
        return {**self._lines.fingerprint(), "sha256": whole}


class _FolderRows:
    """A folder of `annotate`, one row for each image."""

    def __init__(self, path: Path, by: MergeBy) -> None:
        try:
            self._annotations: Annotations = read_annotations(path)
        except ImportError as error:
            raise ValueError(str(error)) from None
        self._by = by

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, row: int, /) -> tuple[str | None, ImportedImage]:
        found = self._annotations[row]
        content = imported_annotation(found)
        if found.dropped is not None:  # by audit or review: joins nothing
            return None, content
        if self._by == "hash":
            return found.image_hash, content
        return (content.id if self._by == "id" else _path_key(content.image)), content

    def fingerprint(self) -> dict[str, object]:
        digest = hashlib.sha256()
        for row in range(len(self)):
            digest.update(json.dumps(self._annotations.identity(row)).encode())
        folder = str(self._annotations.folder.resolve())
        return {"path": folder, "images": len(self), "sha256": digest.hexdigest()}


def _open_rows(path: Path, by: MergeBy) -> _Rows:
    assert by in get_args(MergeBy)
    return _FolderRows(path, by) if path.is_dir() else _JsonRows(path, by)


def _path_key(path: str) -> str:
    return posixpath.normpath(path.replace("\\", "/"))


def _hashed(key: str) -> int:
    """64 bits; rows that share them are told apart by their keys."""
    data = key.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def merged(
    item: ImportedImage,
    found: Mapping[int, ImportedImage],
    size: Callable[[], tuple[int, int]],
) -> ImportedImage:
    """An image with the captions and regions of its annotations, by their rows, behind its own.

    A caption that it has already is not added. Boxes in different units become fractions, for
    which `size` gives (width, height) of the image. Raises `InvalidRecordError` where boxes refer
    to a size of another aspect ratio.
    """
    if not found:
        return item
    parts = [part for part in (item, *found.values()) if part.regions]
    units = {(part.box_unit, part.size if part.box_unit == "pixel" else None) for part in parts}
    regions = [region for part in parts for region in part.regions]
    unit, sides = units.pop() if len(units) == 1 else ("fraction", None)
    if units:  # more than one
        regions = [region for part in parts for region in _in_fractions(part, size())]
    return dataclasses.replace(
        item,
        captions=(*item.captions, *_new_captions(item, found.values())),
        regions=tuple(regions),
        label=item.label or next((part.label for part in found.values() if part.label), None),
        box_unit=unit,
        size=sides,
        sides_given=bool(parts) and all(part.sides_given for part in parts),
        ignored=(
            *item.ignored,
            *(f"merged: {name}" for part in found.values() for name in part.ignored),
        ),
        merged_rows=tuple(found),
    )


def _new_captions(item: ImportedImage, found: Iterable[ImportedImage]) -> Iterator[Caption]:
    """The captions of annotations that the image does not have yet, each once."""
    seen = {normalize_text(caption.text) for caption in item.captions}
    for part in found:
        for caption in part.captions:
            if (text := normalize_text(caption.text)) not in seen:
                seen.add(text)
                yield caption


def _in_fractions(part: ImportedImage, image: tuple[int, int]) -> Iterator[ImportedRegion]:
    """The regions of a part with boxes in fractions; `image`: its width and height."""
    if part.box_unit == "fraction":
        yield from part.regions
        return
    if part.size is not None:
        check_size(part.size, image, part.image)
    width, height = part.size or image
    for region in part.regions:
        x0, y0, x1, y1 = region.box_xyxy
        box = (x0 / width, y0 / height, x1 / width, y1 / height)
        yield dataclasses.replace(region, box_xyxy=box)
