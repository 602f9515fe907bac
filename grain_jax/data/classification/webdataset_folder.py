"""Labelled images in tars, in the layout of CLIP_benchmark.

  classnames.txt                         (the name of class k in line k + 1)
  zeroshot_classification_templates.txt  (prompts with "{c}" for the name)
  test/0.tar, 1.tar, ...                 (KEY.webp, .jpg or .png, and KEY.cls, the class's number)
  test/nshards.txt                       (how many tars)

Images are read at their places in the tars; nothing is unpacked. Only local files are read.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from grain_jax.data.classification.stored_classes import SplitChoice, StoredImages
from grain_jax.data.image_files import MAX_IMAGE_BYTES, SkippedSample, read_image_bytes
from grain_jax.data.importers.webdataset import IMAGE_SUFFIXES, index_tar
from grain_jax.data.records import Record
from grain_jax.data.text_files import read_text_file

NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
KIND, COUNT, LABEL = "dataset_type.txt", "nshards.txt", "cls"
KIND_OF_CLASSES = "classification"
MAX_NAMES_BYTES = 16 * 2**20
MAX_LABEL_BYTES = 32


@dataclass(frozen=True, eq=False)
class TarImages:
    """A source of labelled images inside tars, read at each access.

    `__getitem__` raises ValueError where the tar has gone or ends before the image.
    """

    tars: tuple[Path, ...]
    places: Int[np.ndarray, "N 3"]  # tar, offset and size in bytes of each image
    files: tuple[str, ...]  # "test/0.tar/KEY.webp"
    labels: tuple[str, ...]  # class name of each image

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Record:
        tar, offset, size = self.places[index].tolist()
        name = self.files[index]
        try:
            image = read_image_bytes(self.tars[tar], name=name, offset=offset, size=size)
        except SkippedSample as error:
            raise ValueError(f"Image {error} Download the tar again.") from error
        return Record(id=name, image=image, label=self.labels[index])


def is_webdataset(root: Path) -> bool:
    """Whether a folder has tars, or folders of tars and a list of class names."""
    return any(root.glob("*.tar")) or ((root / NAMES).is_file() and any(root.glob("*/*.tar")))


def open_webdataset(root: Path, split: SplitChoice) -> StoredImages:
    """The images of a split: a subfolder of tars, or the folder itself where it has the tars.

    Raises ValueError for tars that lack or are too many, a sample without an image or a label, a
    link or a path out of the tar, a tar that is cut off, and a set of captions or of several
    labels an image.
    """
    where = repr(str(root))
    _check_kind(root, where)
    folder = _folder_of_split(root, split)
    tars = _tars(folder)
    places: list[tuple[int, int, int]] = []
    files: list[str] = []
    classes: list[int] = []
    for number, tar in enumerate(tars):
        name = tar.relative_to(root).as_posix()
        for key, suffix, place, label in _samples(tar, name):
            places.append((number, *place))
            files.append(f"{name}/{key}.{suffix}")
            classes.append(label)
    if not files:
        raise ValueError(f"The tars of {str(folder)!r} hold no labelled image.")
    if len(set(files)) < len(files):
        raise ValueError(f"The tars of {str(folder)!r} hold an image of the same name twice.")
    names_file = root / NAMES
    names = _lines(names_file) if names_file.is_file() else ()
    return StoredImages(
        classes=classes,
        names=names,
        names_file=str(names_file) if names else "",
        where=where,
        open_images=lambda labels: TarImages(
            tuple(tars), np.array(places, np.int64), tuple(files), labels
        ),
        templates_file=str(root / TEMPLATES) if (root / TEMPLATES).is_file() else "",
        beside=root,
        split="" if folder == root else folder.name,
    )


def open_tar_images(root: Path, split: SplitChoice) -> TarImages:
    """The images of tars, whose other members are not looked at, such as captions.

    `root` and `split` as in `open_webdataset`, or a tar. Raises ValueError as it does, but for
    labels; a sample without an image is left out.
    """
    if root.is_file():
        split.refuse(f"{str(root)!r} is one file")
        folder, tars, root = root, [root], root.parent
    else:
        folder = _folder_of_split(root, split)
        tars = _tars(folder)
    places: list[tuple[int, int, int]] = []
    files: list[str] = []
    for number, tar in enumerate(tars):
        name = tar.relative_to(root).as_posix()
        for sample in _sound_samples(tar, name):
            for suffix in IMAGE_SUFFIXES:
                if suffix in sample.members:
                    places.append((number, *sample.members[suffix]))
                    files.append(f"{name}/{sample.key}.{suffix}")
    if not files:
        raise ValueError(f"The tars of {str(folder)!r} hold no image.")
    return TarImages(tuple(tars), np.array(places, np.int64), tuple(files), ("",) * len(files))


def _folder_of_split(root: Path, split: SplitChoice) -> Path:
    splits = sorted({tar.parent.name for tar in root.glob("*/*.tar")})
    if splits:
        return root / split.among(splits, repr(str(root)))
    split.refuse(f"{str(root)!r} has tars and no splits")
    return root


def _check_kind(root: Path, where: str) -> None:
    if not (root / KIND).is_file():
        return
    kind = read_text_file(root / KIND, max_bytes=1 << 10).strip()
    if kind != KIND_OF_CLASSES:
        raise ValueError(
            f"{where} is a set for {kind!r} ({KIND}), and labelled images with one class each are "
            "read here."
        )


def _tars(folder: Path) -> list[Path]:
    """The tars of a folder by their numbers; all that `nshards.txt` counts, and no others."""
    found = sorted(folder.glob("*.tar"), key=_by_number)
    if not (folder / COUNT).is_file():
        return found
    text = read_text_file(folder / COUNT, max_bytes=1 << 10).strip()
    if not re.fullmatch(r"[0-9]{1,7}", text):
        raise ValueError(f"{str(folder / COUNT)!r} should hold the number of tars, got {text!r}.")
    if len(found) != int(text):
        raise ValueError(
            f"{str(folder / COUNT)!r} counts {int(text)} tars, and {len(found)} are there. "
            "Download those that lack, or remove those of another set."
        )
    return found


def _by_number(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isascii() and path.stem.isdigit() else -1, path.name)


def _sound_samples(tar: Path, name: str) -> Sequence[Any]:
    """The samples of a tar. Raises ValueError where one of them cannot be read."""
    samples = index_tar(tar, name).samples
    if problem := next((sample.problem for sample in samples if sample.problem), None):
        raise ValueError(f"{problem[1]} Download the tar again, or repair it.")
    return samples


def _samples(tar: Path, name: str) -> Iterator[tuple[str, str, tuple[int, int], int]]:
    """Key, suffix, place (offset and size) and class number of each image of a tar."""
    samples = _sound_samples(tar, name)
    with tar.open("rb") as file:
        for sample in samples:
            where = f"{name}/{sample.key}"
            images = [suffix for suffix in IMAGE_SUFFIXES if suffix in sample.members]
            if len(images) != 1 or LABEL not in sample.members:
                raise ValueError(
                    f"{where} has {', '.join(sorted(sample.members))}; expected one image "
                    f"(.jpg, .png or .webp) and its class in .{LABEL}."
                )
            if sample.members[images[0]][1] > MAX_IMAGE_BYTES:
                raise ValueError(f"{where}.{images[0]} is larger than {MAX_IMAGE_BYTES} bytes.")
            offset, size = sample.members[LABEL]
            file.seek(offset)
            text = file.read(min(size, MAX_LABEL_BYTES)).strip()
            if not re.fullmatch(rb"-?[0-9]{1,9}", text):
                raise ValueError(
                    f"{where}.{LABEL} should hold the number of a class, got {text!r}."
                )
            yield sample.key, images[0], sample.members[images[0]], int(text)


def _lines(path: Path) -> tuple[str, ...]:
    """A name a line; the end of the file may be an empty line, no other is."""
    text = read_text_file(path, max_bytes=MAX_NAMES_BYTES)
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text.rstrip("\r\n"))]
    if "" in lines:
        raise ValueError(
            f"Line {lines.index('') + 1} of {str(path)!r} is empty; it should name class "
            f"{lines.index('')}."
        )
    return tuple(lines)
