"""Parts of images as images of their own."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from grain_jax.data.image_digest import crop_digest, image_digest
from grain_jax.data.records import Record, Source
from grain_jax.data.transforms import decode_image

ROUNDING = 1e-3  # pixels by which a box in float32 may miss the edge of one


class Crops:
    """A source of crops of images: record k is the part `boxes[k]` of image `rows[k]`."""

    def __init__(
        self, images: Source, rows: Int[np.ndarray, "K"], boxes: Float[np.ndarray, "K 4"]
    ) -> None:
        self._images, self._rows, self._boxes = images, rows, boxes
        self._last: tuple[int, str, np.ndarray] | None = None  # the image decoded last
        self._digests: dict[int, bytes] = {}  # of whole images

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Record:
        row, last = int(self._rows[index]), self._last
        if last is None or last[0] != row:
            record = self._images[row]
            self._last = last = row, record.id, decode_image(record.image)
        return Record(id=last[1], image=crop(last[2], self._boxes[index]))

    def image_digests(self, indices: Sequence[int]) -> list[bytes]:
        """What stands for the crops in keys: the bytes of the image, and the box."""
        return [
            crop_digest(self._digest(int(self._rows[index])), self._boxes[index].tolist())
            for index in indices
        ]

    def _digest(self, row: int) -> bytes:
        if row not in self._digests:
            self._digests[row] = image_digest(self._images[row].image)
        return self._digests[row]


def crop(
    pixels: UInt8[np.ndarray, "H W 3"], box_xyxy: Float[np.ndarray, "4"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Every pixel that the box touches, at least one."""
    height, width = pixels.shape[:2]
    x0, x1 = _span(float(box_xyxy[0]) * width, float(box_xyxy[2]) * width, width)
    y0, y1 = _span(float(box_xyxy[1]) * height, float(box_xyxy[3]) * height, height)
    return pixels[y0:y1, x0:x1]


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    start = min(max(math.floor(low + ROUNDING), 0), size - 1)
    return start, min(max(math.ceil(high - ROUNDING), start + 1), size)
