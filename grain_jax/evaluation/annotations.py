"""What the records of a split say is true: captions, boxes and phrases in the frame the
model sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from grain_jax.data.captions import normalize_text
from grain_jax.data.records import Record, Source
from grain_jax.data.transforms import ImageError, Preprocessing
from grain_jax.evaluation.grounding import Phrase


@dataclass(frozen=True)
class Annotations:
    """Of N images, in order."""

    captions: list[list[str]]
    boxes: list[Float[np.ndarray, "_ 4"]]  # xyxy; equal boxes once, however many phrases share them
    phrases: list[Phrase]  # each different phrase of an image once, with every box it may mean
    ids: list[str] = field(default_factory=list)  # of the records


def read_annotations(
    source: Source, preprocessing: Preprocessing, *, caption_source: str
) -> Annotations:
    """Reads every record once.

    `caption_source` "original" or "synthetic" is preferred; an image that has none of these gives
    all of its captions. Boxes outside the centre crop of "crop" are left out, those on its edge are
    cut. Raises ValueError where the size of an image, which "crop" needs, cannot be read.
    """
    captions, boxes, phrases, ids = [], [], [], []
    for i in range(len(source)):
        record = source[i]
        ids.append(record.id)
        texts = [c.text for c in record.captions if c.source == caption_source]
        captions.append(texts or [caption.text for caption in record.captions])
        own: dict[str, tuple[str, list[np.ndarray]]] = {}  # by text up to case and spacing
        for text, box in _visible_regions(record, preprocessing):
            own.setdefault(normalize_text(text), (text, []))[1].append(box)
        every = [box for _, group in own.values() for box in group]
        boxes.append(np.unique(every, axis=0) if every else np.zeros((0, 4), np.float32))
        phrases += [Phrase(i, text, np.unique(group, axis=0)) for text, group in own.values()]
    return Annotations(captions, boxes, phrases, ids)


def _visible_regions(
    record: Record, preprocessing: Preprocessing
) -> Iterator[tuple[str, Float[np.ndarray, "4"]]]:
    if not record.regions:
        return
    try:
        window = preprocessing.window(record.image)
    except ImageError as error:
        raise ValueError(
            f"The boxes of image {record.id!r} cannot be placed: {error} Take it out of the set; "
            "where it was prepared, prepare it again, which drops such images."
        ) from error
    for region in record.regions:
        if (box := window.box(region.box_xyxy)) is not None:
            yield region.description, np.array(box, np.float32)
