"""Variants of images, made from their pixels: crops at random places, crops at boxes, and images
that are blurred outside a box. Zero-shot methods with a second pass look at them.

A kind is an entry of `VARIANTS`, or of `with_crops`. `ImageVariants` makes them one batch at a
time, each as the square that the model sees, so that the variants of a large set are never held
together.
"""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter

from grain_jax.boxes import cxcywh_to_xyxy
from grain_jax.data.records import Record, Source, read_records
from grain_jax.data.transforms import ImageError, Pixels, Preprocessing, decode_image

RANDOM_CROPS = "random_crops"
ROUNDING = 1e-3  # pixels by which a box in float32 may miss the edge of one


@runtime_checkable
class VariantKind(Protocol):
    """What is made of an image; a dataclass whose fields are the numbers that decide about it."""

    needs_boxes: ClassVar[bool]

    def count(self, num_boxes: int) -> int:
        """Variants of an image with so many boxes."""
        ...

    def of_image(self, pixels: Pixels, boxes_xyxy: Float[np.ndarray, "Q 4"]) -> Iterator[Pixels]:
        """The variants in their order, of any size, each made when it is asked for; boxes are in
        [0, 1] of the image.
        """
        ...


@dataclass(frozen=True)
class RandomCrops:
    """WCA's crops: squares with a side uniform between two fractions of the image's shorter side,
    anywhere in the image. They depend on the pixels and the seed alone: not on the name of the
    image, nor on its place in a set or batch; the first of more crops are the same.
    """

    needs_boxes: ClassVar[bool] = False
    number: int = 60  # published: 60 on ImageNet, 100 on other sets
    smallest: float = 0.5
    largest: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if self.number < 1 or not 0 < self.smallest <= self.largest <= 1 or self.seed < 0:
            raise ValueError(
                f"{self} makes no crops; number must be 1 or more, 0 < smallest <= largest <= 1, "
                "and seed 0 or more."
            )

    def count(self, num_boxes: int) -> int:
        return self.number

    def of_image(self, pixels: Pixels, boxes_xyxy: Float[np.ndarray, "Q 4"]) -> Iterator[Pixels]:
        height, width = pixels.shape[:2]
        content = hashlib.sha256(f"{self.seed} {height} {width}\n".encode())
        content.update(np.ascontiguousarray(pixels).data)
        rng = np.random.default_rng(int.from_bytes(content.digest()))
        for _ in range(self.number):
            fraction, left, top = rng.uniform((self.smallest, 0, 0), (self.largest, 1, 1))
            side = max(1, round(fraction * min(height, width)))
            x, y = int(left * (width - side + 1)), int(top * (height - side + 1))
            yield pixels[y : y + side, x : x + side]


@dataclass(frozen=True)
class BoxCrops:
    """Crops at each box, whose edges move by these fractions of their distance to the edges of the
    image: at 0 the box, at 1 it would be the whole image. All margins of a box come after another.
    """

    needs_boxes: ClassVar[bool] = True
    margins: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8)

    def count(self, num_boxes: int) -> int:
        return num_boxes * len(self.margins)

    def of_image(self, pixels: Pixels, boxes_xyxy: Float[np.ndarray, "Q 4"]) -> Iterator[Pixels]:
        whole = np.array([0.0, 0.0, 1.0, 1.0])
        for box, margin in itertools.product(boxes_xyxy, self.margins):
            yield crop(pixels, (1 - margin) * box + margin * whole)


@dataclass(frozen=True)
class BoxBlurs:
    """The image blurred outside each box."""

    needs_boxes: ClassVar[bool] = True
    # Standard deviation of the Gaussian in longer sides of the image: 100 pixels of 640
    deviation: float = 100 / 640

    def count(self, num_boxes: int) -> int:
        return num_boxes

    def of_image(self, pixels: Pixels, boxes_xyxy: Float[np.ndarray, "Q 4"]) -> Iterator[Pixels]:
        deviation = self.deviation * max(pixels.shape[:2])
        image = Image.fromarray(np.ascontiguousarray(pixels))
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(deviation)))
        for box in boxes_xyxy:
            made = blurred.copy()
            x0, y0, x1, y1 = pixel_edges(pixels.shape[:2], box)
            made[y0:y1, x0:x1] = pixels[y0:y1, x0:x1]
            yield made


VARIANTS: Mapping[str, VariantKind] = {
    RANDOM_CROPS: RandomCrops(),
    "box_crops": BoxCrops(),
    "box_blurs": BoxBlurs(),
}
DRAWN = frozenset({RANDOM_CROPS})  # kinds that are drawn at random, by a seed


def crop_numbers(
    number: int | None, sizes: Sequence[float] | None, seed: int | None
) -> dict[str, Any]:
    """Those fields of `RandomCrops` that are given; `sizes` are the smallest and the largest."""
    smallest, largest = map(float, sizes) if sizes else (None, None)
    fields = {"number": number, "smallest": smallest, "largest": largest, "seed": seed}
    return {name: value for name, value in fields.items() if value is not None}


def with_crops(numbers: Mapping[str, Any]) -> Mapping[str, VariantKind]:
    """`VARIANTS`, with these fields of `RandomCrops`. Raises ValueError where they make none."""
    return {**VARIANTS, RANDOM_CROPS: RandomCrops(**numbers)}


def of_draw(kinds: Mapping[str, VariantKind], draw: int) -> dict[str, VariantKind]:
    """The kinds as they are drawn once more: random crops with the seed that is `draw` further."""
    return {
        name: dataclasses.replace(kind, seed=kind.seed + draw)
        if isinstance(kind, RandomCrops)
        else kind
        for name, kind in kinds.items()
    }


@dataclass(frozen=True, eq=False)
class ImageVariants:
    """The source of all variants of some images: those of an image come after another, in the order
    of the images.

    Args:
        images: the source they are made from.
        kind: what is made of each.
        preprocessing: what each becomes, as any image does.
        boxes_cxcywh: of the square that the model sees of each image; None where the kind needs no
            boxes.
    """

    images: Source
    kind: VariantKind
    preprocessing: Preprocessing
    boxes_cxcywh: Float[np.ndarray, "N Q 4"] | None = None

    def __post_init__(self) -> None:
        if self.kind.needs_boxes and self.boxes_cxcywh is None:
            raise ValueError(f"{type(self.kind).__name__} are made at boxes, and none are given.")
        if self.boxes_cxcywh is not None and len(self.boxes_cxcywh) != len(self.images):
            raise ValueError(
                f"There are boxes of {len(self.boxes_cxcywh)} images for {len(self.images)} images."
            )

    @property
    def of_each(self) -> int:
        """Variants of an image."""
        return self.kind.count(0 if self.boxes_cxcywh is None else self.boxes_cxcywh.shape[1])

    @property
    def described(self) -> dict[str, Any]:
        """JSON: all that the variants depend on beside the images and the preprocessing."""
        boxes: list[Any] = []
        if self.boxes_cxcywh is not None and self.kind.needs_boxes:
            own = np.ascontiguousarray(self.boxes_cxcywh)
            boxes = [str(own.dtype), own.shape, hashlib.sha256(own.data).hexdigest()]
        numbers = dataclasses.asdict(self.kind)  # type: ignore[call-overload]
        return {"kind": type(self.kind).__name__, "numbers": numbers, "boxes": boxes}

    @property
    def in_memory(self) -> bool:
        """Whether the images are kept in the memory of this process."""
        return getattr(self.images, "in_memory", False)

    @property
    def read_in_order(self) -> bool:
        """Whether one thread should read the images."""
        return getattr(self.images, "read_in_order", False)

    def __len__(self) -> int:
        return len(self.images) * self.of_each

    def __getitem__(self, index: int, /) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """`self[i]` for each of `indices`; an image is decoded once for those that follow each
        other. Raises `ImageError`, with the name of the image, where one cannot be decoded.
        """
        made: list[Record] = []
        for row, group in itertools.groupby(indices, key=lambda index: index // self.of_each):
            (record,) = read_records(self.images, [row])
            made += self._of_record(row, record, [index % self.of_each for index in group])
        return made

    def _of_record(self, row: int, record: Record, wanted: Sequence[int]) -> list[Record]:
        """Only the wanted ones become squares; those before them are made, which costs little."""
        squares: dict[int, np.ndarray] = {}
        try:
            pixels = decode_image(record.image)
            every = self.kind.of_image(pixels, self._boxes_of(row, pixels))
            for number, variant in enumerate(itertools.islice(every, max(wanted) + 1)):
                if number in wanted:
                    squares[number] = self.preprocessing(variant)
        except ImageError as error:
            raise ImageError(f"Image {record.id!r} cannot be evaluated on: {error}") from error
        return [Record(id=f"{record.id} #{number}", image=squares[number]) for number in wanted]

    def _boxes_of(self, row: int, pixels: Pixels) -> Float[np.ndarray, "Q 4"]:
        if self.boxes_cxcywh is None:
            return np.zeros((0, 4), np.float32)
        boxes = cxcywh_to_xyxy(self.boxes_cxcywh[row])
        return self.preprocessing.window(pixels).to_image(boxes).clip(0.0, 1.0)


def crop(
    pixels: UInt8[np.ndarray, "H W 3"], box_xyxy: Float[np.ndarray, "4"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Every pixel that the box touches, at least one."""
    x0, y0, x1, y1 = pixel_edges(pixels.shape[:2], box_xyxy)
    return pixels[y0:y1, x0:x1]


def pixel_edges(
    shape: tuple[int, int], box_xyxy: Float[np.ndarray, "4"]
) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the pixels that a box touches, at least one, in an image of this height
    and width; the box is in [0, 1] of it.
    """
    height, width = shape
    x0, x1 = _span(float(box_xyxy[0]) * width, float(box_xyxy[2]) * width, width)
    y0, y1 = _span(float(box_xyxy[1]) * height, float(box_xyxy[3]) * height, height)
    return x0, y0, x1, y1


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    start = min(max(math.floor(low + ROUNDING), 0), size - 1)
    return start, min(max(math.ceil(high - ROUNDING), start + 1), size)
