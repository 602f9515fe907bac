"""Parts of images as images of their own."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from grain_jax.data.image_digest import crop_digest, image_digest
from grain_jax.data.image_variants import crop
from grain_jax.data.records import Record, Source
from grain_jax.data.transforms import decode_image

RULE = "fractions of the image, every pixel that is touched"  # of the digests


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
            crop_digest(
                self._digest(int(self._rows[index])), self._boxes[index].tolist(), rule=RULE
            )
            for index in indices
        ]

    def _digest(self, row: int) -> bytes:
        if row not in self._digests:
            self._digests[row] = image_digest(self._images[row].image)
        return self._digests[row]
