"""An embedding for every box that a text may choose: the model's region, or the encoded crop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grain_jax.boxes import cxcywh_to_xyxy, pairwise_iou
from grain_jax.data.image_variants import crop
from grain_jax.data.records import Record, Selection, Source
from grain_jax.data.transforms import Preprocessing, decode_image
from grain_jax.inference.encoder import Encoder

BLOCK = 16  # batches of crops whose features are held at once


@dataclass(frozen=True)
class BoxFeatures:
    """Of each of N images its boxes, an embedding of each, and the query whose region it is."""

    boxes: tuple[Float[np.ndarray, "_ 4"], ...]
    embed: tuple[Float[np.ndarray, "_ E"], ...]
    queries: tuple[Int[np.ndarray, "_"], ...] | None  # None where no query has to do with it


@dataclass(frozen=True)
class BoxAnswers:
    """The box with the highest score of each of T texts; the first of equals."""

    rows: Int[np.ndarray, "T"]  # among the boxes of the text's image
    boxes_xyxy: Float[np.ndarray, "T 4"]
    cosines: Float[np.ndarray, "T"]
    queries: Int[np.ndarray, "T"] | None  # of the decoder; None where none has to do with it


def boxes_of_images(
    boxes_cxcywh: Float[np.ndarray, "N Q 4"],
    shapes: Sequence[tuple[int, int]],
    preprocessing: Preprocessing,
) -> Float[np.ndarray, "N Q 4"]:
    """Predicted boxes as xyxy in [0, 1] of whole images of these heights and widths, cut at their
    edges.

    The model sees the square that the preprocessing makes, with "crop" only the middle of an image.
    """
    squares = cxcywh_to_xyxy(boxes_cxcywh)
    found = np.empty_like(squares)
    for row, (height, width) in enumerate(shapes):
        blank = np.broadcast_to(np.uint8(0), (height, width, 3))  # a shape, without its memory
        found[row] = preprocessing.window(blank).to_image(squares[row])
    return found.clip(0.0, 1.0)


def predicted_regions(
    boxes: Float[np.ndarray, "N Q 4"], regions: Float[np.ndarray, "N Q E"]
) -> BoxFeatures:
    """The model's own boxes with their region embeddings."""
    every = np.arange(boxes.shape[1])
    return BoxFeatures(tuple(boxes), tuple(regions), tuple(every for _ in boxes))


def given_regions(
    given: Sequence[Float[np.ndarray, "_ 4"]],
    boxes: Float[np.ndarray, "N Q 4"],
    regions: Float[np.ndarray, "N Q E"],
) -> BoxFeatures:
    """Given boxes, each with the region embedding of the query whose box overlaps it best."""
    queries = [nearest_queries(own, predicted) for own, predicted in zip(given, boxes, strict=True)]
    embed = [own[chosen] for own, chosen in zip(regions, queries, strict=True)]
    return BoxFeatures(tuple(given), tuple(embed), tuple(queries))


def nearest_queries(
    given: Float[np.ndarray, "C 4"], predicted: Float[np.ndarray, "Q 4"]
) -> Int[np.ndarray, "C"]:
    """The predicted box with the largest IoU; of equals, as where none overlaps, that with the
    nearest centre.
    """
    iou = pairwise_iou(given, predicted)
    centres = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (given, predicted)]
    distance = ((centres[0][:, None] - centres[1][None]) ** 2).sum(axis=-1)
    distance = np.where(iou == iou.max(axis=1, keepdims=True), distance, np.inf)
    return distance.argmin(axis=1)


class Crops:
    """A source of crops of images: record k is the part `boxes[k]` of image `rows[k]`."""

    def __init__(
        self, images: Source, rows: Int[np.ndarray, "K"], boxes: Float[np.ndarray, "K 4"]
    ) -> None:
        self._images, self._rows, self._boxes = images, rows, boxes
        self._last: tuple[int, str, np.ndarray] | None = None  # the image decoded last

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Record:
        row, last = int(self._rows[index]), self._last
        if last is None or last[0] != row:
            record = self._images[row]
            self._last = last = row, record.id, decode_image(record.image)
        return Record(id=last[1], image=crop(last[2], self._boxes[index]))


def cropped(
    encoder: Encoder,
    images: Source,
    boxes: Sequence[Float[np.ndarray, "_ 4"]],
    *,
    queries: tuple[Int[np.ndarray, "_"], ...] | None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> BoxFeatures:
    """Each box with the image embedding of its crop, encoded in batches as any image.

    `on_block` is told how many of how many crops are done. Raises ValueError as `Encoder.images`.
    """
    counts = [len(own) for own in boxes]
    rows = np.repeat(np.arange(len(boxes)), counts)
    crops = Crops(images, rows, np.concatenate(boxes))
    step, parts = BLOCK * encoder.batch_size, []
    for start in range(0, len(crops), step):  # a block at once: regions of crops are large
        part = Selection(crops, range(start, min(start + step, len(crops))))
        parts.append(encoder.images(part).image)
        on_block(min(start + step, len(crops)), len(crops))
    embed = np.split(np.concatenate(parts), np.cumsum(counts)[:-1])
    return BoxFeatures(tuple(boxes), tuple(embed), queries)
