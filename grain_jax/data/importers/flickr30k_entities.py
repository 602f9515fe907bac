"""Flickr30k Entities as published: `Annotations/*.xml`, `Sentences/*.txt`, and the photographs.

`--input` is the folder that holds the two, for all images, or a list of ids beside them
(`train.txt`, `val.txt`, `test.txt`), for those images. Photographs are `<id>.jpg` in the
images folder.

A phrase chain is one thing that the five sentences mention, with zero or more boxes; its phrases
are paraphrases. Each box of each chain becomes one region, described by the longest phrase (the
first of equals): short ones are often pronouns. Regions come in the order in which the sentences
first mention them; training keeps the first M of them.
"""

import contextlib
import hashlib
import re
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

from grain_jax.data.importers.item import (
    MAX_SIDE,
    ImportedImage,
    ImportedRegion,
    InvalidRecordError,
)
from grain_jax.data.records import Caption

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^\s\]]+)*\s+([^\]]*)\]")
NOT_VISUAL = "0"  # the chain of mentions of nothing that can be seen
MAX_FILE_BYTES = 2**20


class Flickr30kEntities:
    """One record per image id, in the order of the list, or sorted. An `Importer`."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent if path.is_file() else path
        for name in ("Annotations", "Sentences"):
            if not (self._folder / name).is_dir():
                raise ValueError(
                    f"--input={path} needs {name}/ in {self._folder}; give the folder of Flickr30k "
                    "Entities or its train.txt."
                )
        if path.is_file():
            self._ids = path.read_text(encoding="utf-8").split()
        else:
            self._ids = sorted(file.stem for file in (path / "Sentences").glob("*.txt"))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> ImportedImage:
        name = self._ids[index]
        sentences = published_text(self._folder / "Sentences" / f"{name}.txt")
        captions, phrases = parse_sentences(sentences)
        place = self._folder / "Annotations" / f"{name}.xml"
        try:
            size, boxes = parse_annotation(published_text(place))
        except (ElementTree.ParseError, ValueError, AttributeError) as error:
            if isinstance(error, InvalidRecordError):
                raise
            raise InvalidRecordError(
                f"{place}: not an annotation of Flickr30k Entities ({error})."
            ) from None
        regions = tuple(
            ImportedRegion(box, max(mentions, key=len))
            for chain, mentions in phrases.items()
            for box in boxes.get(chain, ())
        )
        return ImportedImage(
            id=name,
            image=f"{name}.jpg",
            captions=tuple(Caption(text) for text in captions),
            regions=regions,
            box_unit="pixel",
            size=size,
        )

    def fingerprint(self) -> dict[str, object]:
        checksum = zlib.crc32(" ".join(self._ids).encode())
        return {"path": str(self._folder.resolve()), "ids": len(self), "crc32": checksum}

    def checksum(self, start: int, stop: int) -> str:
        digest = hashlib.sha256()
        for name in self._ids[start:stop]:
            digest.update(name.encode("utf-8", "replace"))
            for folder, suffix in (("Sentences", ".txt"), ("Annotations", ".xml")):
                with contextlib.suppress(OSError):  # a missing file is reported when it is read
                    digest.update((self._folder / folder / f"{name}{suffix}").read_bytes())
        return digest.hexdigest()


def published_text(path: Path) -> str:
    """The text of a file. Raises `InvalidRecordError` where it is missing or too large."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidRecordError(f"{path}: larger than {MAX_FILE_BYTES} bytes.")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InvalidRecordError(f"{path}: {error.strerror}.") from None


def mentions(sentence: str) -> list[tuple[str, str]]:
    """Chain and words of every mention of a sentence, in order; words may be ""."""
    return [(chain, phrase.strip()) for chain, phrase in _PHRASE.findall(sentence)]


def parse_sentences(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """The plain sentences, and the phrases of each chain, chains in order of first mention."""
    phrases: dict[str, list[str]] = {}
    captions = []
    for line in text.splitlines():
        for chain, phrase in mentions(line):
            if chain != NOT_VISUAL and phrase:
                phrases.setdefault(chain, []).append(phrase)
        if plain := " ".join(_PHRASE.sub(r"\2", line).split()):
            captions.append(plain)
    return captions, phrases


Box = tuple[float, float, float, float]


def parse_annotation(text: str) -> tuple[tuple[int, int], dict[str, list[Box]]]:
    """((width, height), boxes of each chain) as x0, y0, x1, y1 in pixels from 0.

    The file counts pixels from 1 and includes the last one. An object may name several chains.
    Raises ValueError or ParseError.
    """
    root = ElementTree.fromstring(text)
    size = _integer(root, "size/width"), _integer(root, "size/height")
    if min(size) < 1:
        raise ValueError(f"<size> of {size[0]} x {size[1]} pixels")
    boxes: dict[str, list[Box]] = {}
    for item in root.iter("object"):
        bndbox = item.find("bndbox")
        if bndbox is None:  # a scene, or not visible
            continue
        x0, y0, x1, y1 = (_integer(bndbox, name) for name in ("xmin", "ymin", "xmax", "ymax"))
        for name in item.findall("name"):
            boxes.setdefault((name.text or "").strip(), []).append(
                (float(x0 - 1), float(y0 - 1), float(x1), float(y1))
            )
    return size, boxes


def _integer(element: ElementTree.Element, path: str) -> int:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no <{path}>")
    number = int(text)
    if abs(number) > MAX_SIDE:
        raise ValueError(f"<{path}> beyond {MAX_SIDE} pixels")
    return number
