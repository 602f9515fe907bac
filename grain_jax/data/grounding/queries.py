"""The queries of a grounding benchmark, and how what a reader found becomes them.

A query is one text asked of one image, with every box that it means. Nothing is merged or dropped
but what has no box in the image, and that is counted by reason.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from grain_jax.boxes import Box
from grain_jax.data.checks import check_size
from grain_jax.data.image_files import SkippedSample, read_image_bytes
from grain_jax.data.image_paths import path_inside
from grain_jax.data.records import Record
from grain_jax.data.transforms import ImageError, image_shape

MENTION, EXPRESSION, CLASS, CAPTION, TEXT = (
    "every mention in every sentence that has a box",
    "every sentence of every expression",
    "every class with a box in the image",
    "every true caption of every image",
    "every text of every image",
)
EVERY_BOX = "every annotated box of the image"
OF_QUERIES = "the boxes of the image's queries only"


@dataclass(frozen=True)
class GivenQuery:
    """A text and its boxes as the files have them."""

    text: str
    boxes_xyxy: tuple[Box, ...]
    negatives: tuple[str, ...] = ()  # texts that do not describe the box, though nearly


@dataclass(frozen=True)
class GivenImage:
    """An image with its queries as the files have them, boxes in pixels of `size`, or fractions."""

    id: str
    file: str  # relative to the folder of the images
    queries: tuple[GivenQuery, ...]
    others: tuple[Box, ...] = ()  # annotated boxes that no query asks for
    size: tuple[int, int] | None = None  # width, height that boxes refer to; None: the file's
    fractions: bool = False


@dataclass
class GivenSet:
    """What a reader found, before images are looked at."""

    images: list[GivenImage]
    queries_are: str  # one of the sentences above
    boxes_are: str = OF_QUERIES  # what the boxes of an image are, with boxes given
    left_out: Counter[str] = field(default_factory=Counter)  # texts without a box, by reason
    name: str = ""
    images_in: tuple[Path, ...] = ()  # folders of images, where none is named: the first that is


@dataclass(frozen=True)
class GroundingQuery:
    """A text asked of an image, and every box it means, xyxy in [0, 1] of the upright image."""

    image: int
    text: str
    boxes_xyxy: Float[np.ndarray, "n 4"]
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageList:
    """A source of image files by id, read at each access.

    `__getitem__` raises ValueError for a file that is missing or too large.
    """

    folder: Path
    ids: tuple[str, ...]
    paths: tuple[str, ...]  # relative to `folder`

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int, /) -> Record:
        return Record(id=self.ids[index], image=_bytes(self.folder, self.paths[index]))


@dataclass(frozen=True)
class GroundingSet:
    """N images and T queries of them."""

    name: str
    images: ImageList
    queries: tuple[GroundingQuery, ...]
    boxes: tuple[Float[np.ndarray, "_ 4"], ...]  # of each image, different ones: what may be chosen
    shapes: tuple[tuple[int, int], ...]  # height and width of each image, upright
    queries_are: str
    boxes_are: str
    left_out: dict[str, int]  # texts that are no query, by reason


def make_set(given: GivenSet, folder: Path) -> GroundingSet:
    """Looks at every image file and turns boxes into fractions of it, cut at its edges.

    Images without a query are left out. Raises ValueError where an image is missing or unreadable,
    has another shape than its boxes refer to, where two have one id, or where no query is left.
    """
    left_out, seen = Counter(given.left_out), set[str]()
    ids: list[str] = []
    paths: list[str] = []
    shapes: list[tuple[int, int]] = []
    queries: list[GroundingQuery] = []
    boxes: list[np.ndarray] = []
    for image in given.images:
        if image.id in seen:
            raise ValueError(f"Image {image.id!r} is listed twice; give each image its own id.")
        seen.add(image.id)
        if not image.queries:
            continue
        path, shape = _look_at(image, folder)
        size = (1, 1) if image.fractions else image.size or (shape[1], shape[0])
        own: list[GroundingQuery] = []
        for query in image.queries:
            found = _fractions(query.boxes_xyxy, size)
            if isinstance(found, str):
                left_out[found] += 1
            else:
                own.append(GroundingQuery(len(ids), query.text, found, query.negatives))
        if not own:
            continue
        others = _fractions(image.others, size)
        every = [query.boxes_xyxy for query in own]
        every += [] if isinstance(others, str) else [others]
        ids.append(image.id)
        paths.append(path)
        shapes.append(shape)
        queries += own
        boxes.append(np.unique(np.concatenate(every), axis=0))
    if not queries:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ValueError(f"No text has a box in its image: {reasons or 'there is no text'}.")
    return GroundingSet(
        name=given.name,
        images=ImageList(folder, tuple(ids), tuple(paths)),
        queries=tuple(queries),
        boxes=tuple(boxes),
        shapes=tuple(shapes),
        queries_are=given.queries_are,
        boxes_are=given.boxes_are,
        left_out=dict(sorted(left_out.items())),
    )


def images_folder(given: GivenSet, images: Path | None) -> Path:
    """The folder of the images: the one named, or the first usual one that exists.

    Raises ValueError without any.
    """
    choices = given.images_in if images is None else (images,)
    for folder in choices:
        if folder.is_dir():
            return folder
    if images is not None:
        raise ValueError(f"--images={images} is not a folder; give the one that holds the images.")
    looked = ", ".join(str(folder) for folder in choices)
    raise ValueError(f"There is no folder of images ({looked}); give it with --images.")


def _bytes(folder: Path, path: str) -> bytes:
    try:
        return read_image_bytes(folder / path, name=path)
    except SkippedSample as error:
        raise ValueError(
            f"Image {error} A figure that leaves images out is not comparable; get the file, or "
            "give another folder with --images."
        ) from None


def _look_at(image: GivenImage, folder: Path) -> tuple[str, tuple[int, int]]:
    """Path of an image file, and its height and width, upright."""
    path = path_inside(image.file, folder)
    try:
        height, width = image_shape(_bytes(folder, path))
    except ImageError as error:
        raise ValueError(f"Image {image.file!r} cannot be read: {error}") from None
    if image.size is not None and not image.fractions:
        check_size(image.size, (width, height), image.file)
    return path, (height, width)


def _fractions(boxes: Sequence[Box], size: tuple[int, int]) -> Float[np.ndarray, "n 4"] | str:
    """The boxes that have an area in the image, each different one once; or why there is none."""
    if not boxes:
        return "without a box"
    given = np.array(boxes, np.float64)
    finite = given[np.isfinite(given).all(axis=1)]
    if not len(finite):
        return "with a box that is not finite"
    solid = finite[(finite[:, 2:] > finite[:, :2]).all(axis=1)]
    if not len(solid):
        return "with a box of no area"
    scaled = (solid / np.array([*size, *size], np.float64)).clip(0.0, 1.0).astype(np.float32)
    inside = scaled[(scaled[:, 2:] > scaled[:, :2]).all(axis=1)]
    return np.unique(inside, axis=0) if len(inside) else "with a box outside the image"


def grouped(pairs: Iterable[tuple[str, Box]]) -> tuple[GivenQuery, ...]:
    """One query a text, with all boxes that have it, in the order of first mention."""
    found: dict[str, list[Box]] = {}
    for text, box in pairs:
        found.setdefault(text, []).append(box)
    return tuple(GivenQuery(text, tuple(boxes)) for text, boxes in found.items())
