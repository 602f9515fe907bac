"""Tests of composition as they are published: SugarCrepe, Winoground, ARO; and captioned images.

Files are JSON in UTF-8, images are files in a folder; all is checked before an image is read.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from grain_jax.data.compositional.questions import (
    CaptionChoice,
    CaptionChoices,
    CaptionedImages,
    ImageIndex,
    Pairing,
    Pairings,
    PixelBox,
    pixel_box,
)
from grain_jax.data.importers.json_values import as_number
from grain_jax.data.text_files import read_text_file

MAX_BYTES = 256 * 2**20
# Winoground names images without their suffix; they are published as PNG, and copied as JPEG.
WINOGROUND_SUFFIXES = ("", ".png", ".jpg")
WINOGROUND_FILE = "examples.jsonl"
ARO_FILES = ("visual_genome_relation.json", "visual_genome_attribution.json")
MIN_ATTRIBUTES = 25  # questions of a pair of attributes that ARO's average counts
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")

Test = CaptionChoices | Pairings | CaptionedImages


def read_sugarcrepe(data: Path, images: Path) -> list[CaptionChoices]:
    """SugarCrepe: JSON files of {"0": {filename, caption, negative_caption}}, one a category.

    `data`: the folder of them, or one. The name of a file is that of its category. Raises
    ValueError for other content, and for images that do not exist.
    """
    files = sorted(data.glob("*.json")) if data.is_dir() else [data]
    if not files:
        raise ValueError(f"{str(data)!r} holds no .json files of SugarCrepe.")
    index = ImageIndex(images)
    questions = []
    for file in files:
        content = _json(file)
        if not isinstance(content, dict | list) or not content:
            raise ValueError(f"{str(file)!r} should hold an object of SugarCrepe's questions.")
        entries = content.items() if isinstance(content, dict) else enumerate(content)
        for key, entry in entries:
            where = f"Question {key!r} of {str(file)!r}"
            text = functools.partial(_text, entry, where)
            questions.append(
                CaptionChoice(
                    index.add(text("filename"), where),
                    text("caption"),
                    text("negative_caption"),
                    file.stem,
                )
            )
    return [CaptionChoices("sugarcrepe", tuple(questions), index.source())]


def read_winoground(data: Path, images: Path) -> list[Pairings]:
    """Winoground: lines of {image_0, image_1, caption_0, caption_1}.

    `data`: `examples.jsonl`, or its folder. Raises ValueError as `read_sugarcrepe`.
    """
    file = data / WINOGROUND_FILE if data.is_dir() else data
    index = ImageIndex(images, WINOGROUND_SUFFIXES)
    questions = []
    for where, entry in _lines(file):
        text = functools.partial(_text, entry, where)
        questions.append(
            Pairing(
                (index.add(text("image_0"), where), index.add(text("image_1"), where)),
                (text("caption_0"), text("caption_1")),
            )
        )
    return [Pairings("winoground", tuple(questions), index.source())]


def read_aro(data: Path, images: Path) -> list[CaptionChoices]:
    """ARO's Visual Genome tests: a list of {image_path, true_caption, false_caption, bbox_x, ...}.

    The image is cropped to its box. Groups are relations (`relation_name`), or pairs of attributes
    (`attributes`). As published, the average over groups leaves some relations out, and pairs of
    attributes with fewer than 25 questions. `data`: a file of either test, or a folder with the
    published names. Raises ValueError as `read_sugarcrepe`.
    """
    files = [data]
    if data.is_dir():
        files = [data / name for name in ARO_FILES if (data / name).is_file()]
    if not files:
        raise ValueError(f"{str(data)!r} has neither {ARO_FILES[0]} nor {ARO_FILES[1]}.")
    return [_read_aro(file, images) for file in files]


def read_captioned(data: Path, images: Path) -> list[CaptionedImages]:
    """Lines of {image, text}; an image may come again, with another text.

    Raises ValueError as `read_sugarcrepe`.
    """
    index = ImageIndex(images)
    captions: dict[int, list[str]] = {}
    for where, entry in _lines(data):
        image = index.add(_text(entry, where, "image"), where)
        captions.setdefault(image, []).append(_text(entry, where, "text"))
    if len(captions) < 2:
        raise ValueError(f"{str(data)!r} has one image only, so that every recall would be 100 %.")
    return [CaptionedImages(data.stem, tuple(map(tuple, captions.values())), index.source())]


READERS: Mapping[str, Callable[[Path, Path], list[Any]]] = {
    "sugarcrepe": read_sugarcrepe,
    "winoground": read_winoground,
    "aro": read_aro,
    "retrieval": read_captioned,
}


@functools.cache
def aro_left_out() -> frozenset[str]:
    """Relations that ARO's published average leaves out: those that hold both ways, or are rare."""
    file = resources.files("grain_jax.data.compositional") / "aro_left_out.txt"
    return frozenset(file.read_text(encoding="utf-8").splitlines())


def _read_aro(file: Path, images: Path) -> CaptionChoices:
    content = _json(file)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{str(file)!r} should hold a list of ARO's questions.")
    index = ImageIndex(images)
    questions = []
    relations = isinstance(content[0], dict) and "relation_name" in content[0]
    for number, entry in enumerate(content):
        where = f"Question {number} of {str(file)!r}"
        text = functools.partial(_text, entry, where)
        questions.append(
            CaptionChoice(
                index.add(text("image_path"), where, box=_box(entry, where)),
                text("true_caption"),
                text("false_caption"),
                text("relation_name") if relations else _attributes(entry, where),
            )
        )
    return CaptionChoices(
        "aro_relation" if relations else "aro_attribution",
        tuple(questions),
        index.source(),
        left_out=aro_left_out() if relations else frozenset(),
        min_questions=1 if relations else MIN_ATTRIBUTES,
    )


def _box(entry: Any, where: str) -> PixelBox:
    given = [entry.get(name) if isinstance(entry, dict) else None for name in BOX]
    numbers = [as_number(value) for value in given]
    known = [number for number in numbers if number is not None]
    if len(known) < len(BOX):
        raise ValueError(f"{where} needs the numbers {', '.join(BOX)}, got {given}.")
    return pixel_box(known, where)


def _attributes(entry: Any, where: str) -> str:
    found = entry.get("attributes")
    if not isinstance(found, list) or [type(part) for part in found] != [str, str]:
        raise ValueError(f"{where} needs 'attributes', two texts (or 'relation_name', one).")
    return "_".join(found)


def _text(entry: Any, where: str, name: str) -> str:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} needs {name!r}, a text, got {value!r:.80}.")
    return value


def _json(file: Path) -> Any:
    return _parsed(read_text_file(file, max_bytes=MAX_BYTES), repr(str(file)))


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Where each line is, and what it holds. Raises ValueError where there is none."""
    count = 0
    for number, line in enumerate(read_text_file(file, max_bytes=MAX_BYTES).split("\n"), start=1):
        if line.strip():
            where = f"Line {number} of {str(file)!r}"
            count += 1
            yield where, _parsed(line, where)
    if not count:
        raise ValueError(f"{str(file)!r} is empty.")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}.") from None
