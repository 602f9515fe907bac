"""Images and texts as a caller gives them: read or refused."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grain_jax.data.classification.class_names import with_nearest
from grain_jax.data.image_digest import image_digest
from grain_jax.data.image_files import SkippedSample, read_image_bytes
from grain_jax.data.records import Record
from grain_jax.data.transforms import (
    ImageError,
    Pixels,
    Preprocessing,
    Window,
    image_shape,
    upright_rgb,
)
from grain_jax.paths import user_path

ImageInput = Image.Image | np.ndarray | str | Path | bytes
ACCEPTED_IMAGES = "a file's path, its bytes, a PIL image or a uint8 array [H, W, 3]"


class ImageInputs:
    """Images as squares of the model, and what happened to each on the way there."""

    def __init__(
        self,
        images: Sequence[ImageInput],
        preprocessing: Preprocessing,
        *,
        skip: bool,
        names: Sequence[str] | None = None,
    ):
        """`names`: what to call the images; None: their file or position."""
        self.shapes: dict[int, tuple[int, int]] = {}  # height, width
        self.windows: dict[int, Window] = {}
        self.failed: dict[int, str] = {}
        self._images, self._preprocessing, self._skip = images, preprocessing, skip
        self._names = names
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> Record:
        size = self._preprocessing.image_size
        try:
            image = self._read(self._images[index])
            window, shape = self._preprocessing.window(image), image_shape(image)
            square = self._preprocessing(image)
        except (ImageError, SkippedSample) as error:
            if not self._skip:
                raise ImageError(f"Image {self.name(index)!r}: {error}") from None
            self.failed[index] = str(error)
            square = np.zeros((size, size, 3), np.uint8)
        else:
            self.shapes[index], self.windows[index] = shape, window
        return Record(id=self.name(index), image=square)

    def name(self, index: int) -> str:
        """The file, or the position among those given."""
        if self._names is not None:
            return self._names[index]
        image = self._images[index]
        return str(image) if isinstance(image, str | Path) else f"image {index}"

    def sha256(self, index: int) -> bytes:
        """Of the content of an image, as it was given; `ImageError` for one that is not read."""
        try:
            image = self._read(self._images[index])
        except (ImageError, SkippedSample) as error:
            raise ImageError(f"Image {self.name(index)!r}: {error}") from None
        return image_digest(image)

    def part(self, indices: Sequence[int]) -> "ImageInputs":
        """Some of the images, with their names."""
        return ImageInputs(
            [self._images[i] for i in indices],
            self._preprocessing,
            skip=self._skip,
            names=[self.name(i) for i in indices],
        )

    def _read(self, image: ImageInput) -> bytes | Pixels:
        """Raises `ImageError` or `SkippedSample`."""
        if isinstance(image, bytes):
            return image
        if isinstance(image, np.ndarray):
            return _checked_pixels(image)
        if isinstance(image, Image.Image):
            with self._lock:  # one that is given twice must not be decoded by two threads at once
                return np.asarray(upright_rgb(image))
        if not isinstance(image, str | Path):
            raise ImageError(f"a {type(image).__name__} is no image; expected {ACCEPTED_IMAGES}.")
        if "://" in str(image):
            raise ImageError("a file of this machine is needed; download it first.")
        path = user_path(image)
        if not os.path.isfile(path):  # unlike Path.is_file, false of names that are too long
            raise ImageError("it is a folder." if os.path.isdir(path) else "there is no such file.")
        return read_image_bytes(path, name=path.name)


def _checked_pixels(image: np.ndarray) -> Pixels:
    """Raises `ImageError`."""
    shape = image.shape
    gray = len(shape) == 2
    if image.dtype != np.uint8 or not (gray or (len(shape) == 3 and shape[2] == 3)):
        hint = " Give a list of images, one array each." if len(shape) == 4 else ""
        raise ImageError(
            f"an array of {image.dtype} {list(shape)} is no image; expected uint8 [H, W, 3] "
            f"(RGB, 0 to 255) or [H, W] (gray).{hint}"
        )
    if image.size == 0:
        raise ImageError(f"an array of shape {list(shape)} has no pixels.")
    return np.repeat(image[:, :, None], 3, axis=2) if gray else image


def checked_texts(texts: Sequence[str], what: str) -> Sequence[str]:
    """Raises ValueError unless they are a list of texts, none of them empty."""
    if isinstance(texts, str):
        raise ValueError(f"{what} takes a list of texts, not one: [{texts!r}].")
    if not isinstance(texts, Sequence):
        hint = "; classify(images, descriptions=...) takes labels with their descriptions"
        hint = hint if isinstance(texts, Mapping) else ""
        raise ValueError(f"{what} takes a list of texts, not a {type(texts).__name__}{hint}.")
    if len(texts) == 0:
        raise ValueError(f"There are no {what}; give at least one.")
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{what}[{position}] is {text!r}; expected a text.")
    return texts


def checked_mapping(descriptions: Any) -> Mapping[str, Any]:
    """Raises ValueError unless it is a mapping."""
    if not isinstance(descriptions, Mapping):
        given = "neither" if descriptions is None else f"a {type(descriptions).__name__}"
        raise ValueError(
            f"Give labels, or descriptions as {{label: [text, ...]}}, or both; got {given}."
        )
    return descriptions


def check_known(given: Sequence[str], labels: Sequence[str], what: str) -> None:
    """Raises ValueError where some of what is `given` for labels are none, with the nearest."""
    known = set(labels)
    if unknown := [label for label in given if label not in known]:
        texts = [str(label) for label in unknown]
        raise ValueError(
            f"{what} has {len(unknown)} of {len(given)} names that are not among the "
            f"{len(labels)} labels; nearest of these: {with_nearest(texts, labels)}. Spell them "
            "as the labels, add them to the labels, or leave them out."
        )


def checked_descriptions(
    descriptions: Mapping[str, Any] | None, labels: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """{} for none; raises ValueError for labels that are not given, and for what is no text."""
    if descriptions is None:
        return {}
    check_known(list(checked_mapping(descriptions)), labels, "descriptions")
    for label, texts in descriptions.items():
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            kind = type(texts).__name__
            given = (
                f"a dictionary with the keys {list(texts)[:3]}" if kind == "dict" else repr(texts)
            )
            raise ValueError(
                f"The descriptions of {label!r} must be a list of texts; got {given[:100]}."
            )
    if not any(text.strip() for texts in descriptions.values() for text in texts):
        raise ValueError("descriptions holds no text; leave it out to classify by name.")
    return {label: tuple(texts) for label, texts in descriptions.items()}
