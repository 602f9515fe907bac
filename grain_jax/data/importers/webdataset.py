"""Tars of images and texts as img2dataset and pixparse write them: KEY.jpg, KEY.txt, KEY.json.

Members are read at their places in the tar; nothing is unpacked, so that millions of samples are as
many files as there are tars. `--input` is a tar, a pattern of names, or a folder of tars, of which
the part that `--subset` or the name of the split tells is read, in the order of their names.
A tar's index of places is made when one of its samples is read, and two of them are kept.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers.columns import texts_of
from grain_jax.data.importers.input_files import file_states, find_files
from grain_jax.data.importers.item import (
    FilePart,
    ImagesFolder,
    ImportedImage,
    InvalidRecordError,
)
from grain_jax.data.importers.json_values import parse_object
from grain_jax.data.records import Caption

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
TEXT_SUFFIX, JSON_SUFFIX = "txt", "json"
CAPTION_FIELDS = ("caption", "captions", "text")  # of the JSON file, where there is no text file
MAX_TEXT_BYTES = 4 * 2**20
INDEXES_KEPT = 2


@dataclass
class _Sample:
    """The members of one key: suffix -> (offset, size); or what stands in its place."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    problem: tuple[str, str] | None = None  # reason and message of a sample that is skipped


@dataclass
class _Index:
    """The samples of a tar, and the number of members whose names begin with a dot."""

    samples: list[_Sample] = field(default_factory=list)
    hidden: int = 0


class WebDataset:
    """The samples of all tars. An `Importer`."""

    images_folder: ClassVar[ImagesFolder] = "inside"

    def __init__(
        self,
        path: Path,
        *,
        split: str = "",
        subset: str | None = None,
        caption_columns: Sequence[str] | None = None,
    ) -> None:
        self._tars = find_files(path, ".tar", split, subset)
        folders = [tar.parent for tar in self._tars]
        self._root = path if path.is_dir() else Path(os.path.commonpath(folders))
        self._fields = caption_columns
        self._kept: dict[int, list[_Sample]] = {}
        hidden = 0
        lengths = []
        for tar in self._tars:
            index = index_tar(tar, self._name(tar))
            lengths.append(len(index.samples))
            hidden += index.hidden
        self.notes = [
            f"{hidden:,} members of the tars have names that begin with a dot, such as those that "
            "macOS writes, and were left out."
        ] * bool(hidden)
        self._bounds = np.cumsum([0, *lengths])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, index: int) -> ImportedImage:
        number = int(np.searchsorted(self._bounds, index, side="right")) - 1
        tar = self._tars[number]
        sample = self._samples(number)[index - int(self._bounds[number])]
        where = f"{self._name(tar)}/{sample.key}"
        if sample.problem is not None:
            raise SkippedSample(*sample.problem)
        images = [suffix for suffix in IMAGE_SUFFIXES if suffix in sample.members]
        if not images:
            held = ", ".join(sorted(sample.members))
            raise SkippedSample("no image in the archive", f"{where}: it has only {held}.")
        known = {images[0], TEXT_SUFFIX, JSON_SUFFIX}
        try:
            captions = self._captions(tar, sample)
        except InvalidRecordError as error:
            raise InvalidRecordError(f"{where}{error}") from None
        return ImportedImage(
            id=sample.key,
            image=f"{where}.{images[0]}",
            captions=captions,
            content=FilePart(tar, *sample.members[images[0]]),
            ignored=tuple(f"member .{suffix}" for suffix in sample.members if suffix not in known),
        )

    def fingerprint(self) -> dict[str, object]:
        return {"path": str(self._root.resolve()), "tars": file_states(self._tars)}

    def checksum(self, start: int, stop: int) -> str:
        first, last = np.searchsorted(self._bounds, [start, stop - 1], side="right") - 1
        spans = [*self._bounds[first : last + 2].tolist(), start, stop]
        states = file_states(self._tars[first : last + 1])
        return hashlib.sha256(json.dumps([states, spans]).encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": {}}  # each process makes the indexes it needs

    def _samples(self, number: int) -> list[_Sample]:
        if number not in self._kept:
            while len(self._kept) >= INDEXES_KEPT:
                del self._kept[next(iter(self._kept))]
            tar = self._tars[number]
            self._kept[number] = index_tar(tar, self._name(tar)).samples
        return self._kept[number]

    def _name(self, tar: Path) -> str:
        return tar.relative_to(self._root).as_posix()

    def _captions(self, tar: Path, sample: _Sample) -> tuple[Caption, ...]:
        text, entry = sample.members.get(TEXT_SUFFIX), sample.members.get(JSON_SUFFIX)
        if text is not None and self._fields is None:
            return (Caption(_utf8(_read(tar, text, TEXT_SUFFIX))),)
        if entry is None:
            return ()
        data = _read(tar, entry, JSON_SUFFIX)
        try:
            given = parse_object(data)
        except InvalidRecordError as error:
            raise InvalidRecordError(f".{JSON_SUFFIX}: {error}") from None
        if self._fields is None:
            names = [name for name in CAPTION_FIELDS if given.get(name)][:1]
        else:
            names = list(self._fields)
        return tuple(
            Caption(text)
            for name in names
            for text in texts_of(given.get(name), f".{JSON_SUFFIX}: {name!r}")
        )


def index_tar(path: Path, name: str) -> _Index:
    """The samples of a tar called `name` in messages, members of one key in a row together.

    Members whose names begin with a dot are counted alone. Links, devices, paths that lead out,
    members twice and a tar that is cut off stand in the list as samples with a `problem`. Raises
    ValueError for a file that is not a tar.
    """
    index = _Index()
    samples = index.samples
    size = path.stat().st_size
    try:
        for member in _headers(path):
            if member.isdir():
                continue
            if member.name.rpartition("/")[2].startswith("."):
                index.hidden += 1
                continue
            if problem := _problem(member, size):
                reason, message = problem
                samples.append(_Sample("", problem=(reason, f"{name}/{member.name}: {message}")))
                continue
            key, suffix = _split(member.name)
            if not samples or samples[-1].key != key or samples[-1].problem:
                samples.append(_Sample(key))
            if suffix in samples[-1].members:
                message = f"{name}/{member.name} is there twice."
                samples[-1].problem = "member of the archive twice", message
            samples[-1].members[suffix] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError, ArithmeticError) as error:  # a header of no number too
        if not samples:
            raise ValueError(_not_a_tar(path)) from None
        samples.append(_Sample("", problem=("truncated archive", f"{name}: {error}.")))
    if not samples and size < tarfile.BLOCKSIZE:
        raise ValueError(_not_a_tar(path))
    return index


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """Every member, read from its header, up to one that the file does not hold whole.

    Raises ReadError where the members do not end with the mark of the end: the library takes a
    damaged header for the end.
    """
    size = path.stat().st_size
    with tarfile.open(path, "r:") as archive:
        while (member := archive.next()) is not None:
            vars(archive)["members"] = []  # else it keeps them all
            yield member
            if member.size < 0 or member.offset_data + member.size > size:
                return
        with path.open("rb") as file:
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"damaged or cut off at byte {archive.offset}")


def _problem(member: tarfile.TarInfo, size: int) -> tuple[str, str] | None:
    if not member.isreg() or member.issparse():
        return "not a plain file in the archive", "a link, a device or a sparse file."
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "path outside the archive", "the path leads out of the folder."
    if member.size < 0:
        return "truncated archive", f"its header gives it {member.size} bytes."
    if member.offset_data + member.size > size:
        return "truncated archive", "the archive ends within this member."
    return None


def _split(name: str) -> tuple[str, str]:
    """Key and suffix, which begins at the first dot of the file's name, as WebDataset has it."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _not_a_tar(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    compressed = start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))
    hint = "; it is compressed, so members have no places: decompress it first" * compressed
    return f"{path} is not a tar{hint}."


def _read(tar: Path, place: tuple[int, int], suffix: str) -> bytes:
    offset, size = place
    if size > MAX_TEXT_BYTES:
        raise InvalidRecordError(f".{suffix}: larger than {MAX_TEXT_BYTES} bytes.")
    with tar.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRecordError(
            f".{TEXT_SUFFIX}: not UTF-8 text ({error.reason} at byte {error.start})."
        ) from None
