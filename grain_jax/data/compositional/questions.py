"""What a test of composition asks, and the images that it asks about."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from grain_jax.data.image_digest import crop_digest, image_digest
from grain_jax.data.image_files import SkippedSample, read_image_bytes
from grain_jax.data.image_paths import path_inside
from grain_jax.data.records import Record
from grain_jax.data.transforms import decode_image

PixelBox = tuple[int, int, int, int]  # left, top, right, bottom; may reach beyond the image
MAX_CROP = 4  # times the area of its image
RULE = "pixels, black outside the image"  # of the digests


@dataclass(frozen=True)
class CroppedImages:
    """A source of image files, cropped where they have a box; read at each access.

    A crop reaches beyond the image where its box does, and is black there, as Pillow's is.
    `__getitem__` raises ValueError for a file that is missing, too large or not an image, and a
    box that is not of its image.
    """

    root: Path
    files: tuple[str, ...]  # relative to `root`, once for each box
    boxes: tuple[PixelBox | None, ...]
    # The image decoded last, by its file: boxes of an image follow each other
    _last: dict[str, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Record:
        name, box = self.files[index], self.boxes[index]
        if box is None:
            return Record(id=name, image=self._bytes(name))
        pixels = self._pixels(name)
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = box
        outside = x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0
        if outside or (x1 - x0) * (y1 - y0) > MAX_CROP * width * height:
            raise ValueError(
                f"The box {box} is not of image {name!r}, which has {width} x {height} pixels."
            )
        cropped = np.asarray(Image.fromarray(pixels).crop(box))
        return Record(id=f"{name}@{','.join(map(str, box))}", image=cropped)

    def image_digests(self, indices: Sequence[int]) -> list[bytes]:
        """What stands for the images in keys: their bytes, and their boxes where they have any."""
        digests = []
        for index in indices:
            whole, box = image_digest(self._bytes(self.files[index])), self.boxes[index]
            digests.append(whole if box is None else crop_digest(whole, box, rule=RULE))
        return digests

    def _pixels(self, name: str) -> np.ndarray:
        pixels = self._last.get(name)
        if pixels is None:
            image = self._bytes(name)
            try:
                pixels = decode_image(image)
            except ValueError as error:
                raise ValueError(f"Image {name!r}: {error}") from error
            self._last.clear()
            self._last[name] = pixels
        return pixels

    def _bytes(self, name: str) -> bytes:
        try:
            return read_image_bytes(self.root / name, name=name)
        except SkippedSample as error:
            raise ValueError(f"Image {error}") from error


class ImageIndex:
    """Numbers images as questions name them, each file and box once; finds their files.

    Raises ValueError for a path that leaves the folder and a file that does not exist.
    """

    def __init__(self, root: Path, suffixes: tuple[str, ...] = ("",)) -> None:
        if not root.is_dir():
            raise ValueError(f"There is no folder {str(root)!r}; give the images as --images.")
        self._root, self._suffixes = root, suffixes
        self._numbers: dict[tuple[str, PixelBox | None], int] = {}
        self._found: dict[str, str] = {}

    def add(self, name: str, where: str, *, box: PixelBox | None = None) -> int:
        """The number of an image. `where`: of its name, for errors."""
        if name not in self._found:
            try:
                inside = path_inside(name, self._root)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            files = [inside + suffix for suffix in self._suffixes]
            found = next((file for file in files if os.path.isfile(self._root / file)), None)
            if found is None:
                raise ValueError(
                    f"{where}: there is no image {files[0]!r} in {str(self._root)!r}; is --images "
                    "the right folder?"
                )
            self._found[name] = found
        key = (self._found[name], box)
        return self._numbers.setdefault(key, len(self._numbers))

    def source(self) -> CroppedImages:
        """The images by their numbers."""
        files, boxes = zip(*self._numbers, strict=True)
        return CroppedImages(self._root, files, boxes)


@dataclass(frozen=True)
class CaptionChoice:
    """An image, its caption, and one that is wrong."""

    image: int
    caption: str
    wrong: str
    group: str  # a category, a relation or a pair of attributes


@dataclass(frozen=True)
class CaptionChoices:
    """Questions of one test, whose accuracy is averaged over their groups."""

    name: str  # data set of the results
    questions: tuple[CaptionChoice, ...]
    images: CroppedImages
    left_out: frozenset[str] = frozenset()  # groups that the average leaves out
    min_questions: int = 1  # of a group that the average counts

    @property
    def texts(self) -> tuple[str, ...]:
        """Every caption, right or wrong."""
        return tuple(text for one in self.questions for text in (one.caption, one.wrong))


@dataclass(frozen=True)
class Pairing:
    """Two images and two captions: caption 0 is of image 0, caption 1 of image 1."""

    images: tuple[int, int]
    captions: tuple[str, str]


@dataclass(frozen=True)
class Pairings:
    """Questions of one test of pairs."""

    name: str
    questions: tuple[Pairing, ...]
    images: CroppedImages

    @property
    def texts(self) -> tuple[str, ...]:
        """Every caption."""
        return tuple(text for one in self.questions for text in one.captions)


@dataclass(frozen=True)
class CaptionedImages:
    """Images with their captions, for retrieval."""

    name: str
    captions: tuple[tuple[str, ...], ...]  # of each image
    images: CroppedImages

    @property
    def texts(self) -> tuple[str, ...]:
        """Every caption."""
        return tuple(text for captions in self.captions for text in captions)


def pixel_box(sides: Sequence[float], where: str) -> PixelBox:
    """The box of (left, top, width, height) in whole pixels, rounded as Pillow rounds.

    Raises ValueError for an empty one, and for numbers that are not of pixels.
    """
    left, top, width, height = sides
    numbers = (left, top, left + width, top + height)
    if not all(math.isfinite(number) and abs(number) < 1e6 for number in numbers):
        raise ValueError(f"{where} has a box that is not of pixels: {numbers}.")
    x0, y0, x1, y1 = (round(number) for number in numbers)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{where} has an empty box, {width:g} x {height:g} pixels.")
    return x0, y0, x1, y1
