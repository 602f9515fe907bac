"""Counts of a split that can be added: of records, tokens, boxes and image sizes.

Everything is a count of whole numbers, so that the sum of the parts of a split does not depend on
how it was cut or on the order in which the parts were done.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from grain_jax.data.image_files import MAX_IMAGE_BYTES
from grain_jax.data.inspection.worst import Worst, box_area
from grain_jax.data.records import Record
from grain_jax.data.text_lengths import num_tokens
from grain_jax.data.tokenizer import Tokenizer
from grain_jax.data.transforms import ImageError, image_shape

MAX_TOKENS = 512  # of a text that are counted; more counts as one more
SIDE_BINS = 40  # of the side of a box, the square root of its area, from 0 to 1
PER_OCTAVE = 4  # bins of an aspect ratio from 1 to 2
MAX_OCTAVES = 4  # wider than 16:1 counts as 16:1
WHOLE = 0.95  # fraction of the image from which a box says nothing about where things are
PATCH_SIDE = 16 / 224  # of a patch, as a fraction of the image's side


@dataclass
class Measurements:
    """Counts over the records of a split, or over a part of them."""

    images: int = 0
    captions: int = 0
    regions: int = 0
    images_with_regions: int = 0
    labelled: int = 0
    unreadable: int = 0  # images whose size cannot be read
    image_bytes: int = 0
    caption_sources: Counter[str] = field(default_factory=Counter)
    caption_tokens: Counter[int] = field(default_factory=Counter)  # captions by their tokens
    description_tokens: Counter[int] = field(default_factory=Counter)
    boxes: Counter[int] = field(default_factory=Counter)  # images by their number of boxes
    box_sides: Counter[int] = field(default_factory=Counter)  # boxes by bin of their side
    box_aspects: Counter[int] = field(default_factory=Counter)  # boxes by `aspect_bin`
    whole_boxes: int = 0  # boxes that cover at least `WHOLE` of the image
    tiny_boxes: int = 0  # boxes smaller than a patch of 16 pixels at 224
    scored_boxes: int = 0  # boxes with a score other than 1
    short_sides: Counter[int] = field(default_factory=Counter)  # images by pixels
    long_sides: Counter[int] = field(default_factory=Counter)
    image_aspects: Counter[int] = field(default_factory=Counter)
    worst: Worst = field(default_factory=Worst)

    def add(self, indices: Sequence[int], records: Sequence[Record], tokenizer: Tokenizer) -> None:
        """Counts more records, of these positions in the split."""
        captions = [caption.text for record in records for caption in record.captions]
        descriptions = [region.description for record in records for region in record.regions]
        caption_tokens = num_tokens(captions, tokenizer, MAX_TOKENS)
        description_tokens = num_tokens(descriptions, tokenizer, MAX_TOKENS)
        self.caption_tokens.update(caption_tokens)
        self.description_tokens.update(description_tokens)
        caption = description = 0  # positions of the next record's texts
        for index, record in zip(indices, records, strict=True):
            self._add(record)
            last_caption = caption + len(record.captions)
            last_description = description + len(record.regions)
            self.worst.add(
                index,
                record,
                caption_tokens=caption_tokens[caption:last_caption],
                description_tokens=description_tokens[description:last_description],
            )
            caption, description = last_caption, last_description

    def merge(self, other: "Measurements") -> None:
        """Adds the counts of another part of the split."""
        for name, value in vars(other).items():
            own = getattr(self, name)
            if isinstance(value, int):
                setattr(self, name, own + value)
            elif isinstance(value, Counter):
                own.update(value)
            else:
                own.merge(value)

    def _add(self, record: Record) -> None:
        self.images += 1
        self.captions += len(record.captions)
        self.regions += len(record.regions)
        self.images_with_regions += bool(record.regions)
        self.labelled += record.label is not None
        self.caption_sources.update(caption.source for caption in record.captions)
        self.boxes[len(record.regions)] += 1
        size = self._add_image(record)
        for region in record.regions:
            area = box_area(region.box_xyxy)
            self.box_sides[min(int(math.sqrt(area) * SIDE_BINS), SIDE_BINS - 1)] += 1
            self.whole_boxes += area >= WHOLE
            self.tiny_boxes += area < PATCH_SIDE**2
            self.scored_boxes += region.score != 1.0
            x0, y0, x1, y1 = region.box_xyxy
            if size is not None:
                self.box_aspects[aspect_bin((x1 - x0) * size[1], (y1 - y0) * size[0])] += 1

    def _add_image(self, record: Record) -> tuple[int, int] | None:
        """Counts the image; its height and width, None where they cannot be read."""
        assert isinstance(record.image, bytes)
        self.image_bytes += len(record.image)
        try:
            if len(record.image) > MAX_IMAGE_BYTES:
                raise ImageError("too large")
            height, width = image_shape(record.image)
        except ImageError:
            self.unreadable += 1
            return None
        self.short_sides[min(height, width)] += 1
        self.long_sides[max(height, width)] += 1
        self.image_aspects[aspect_bin(width, height)] += 1
        return height, width


def aspect_bin(width: int | float, height: int | float) -> int:
    """Bin of width / height on a logarithmic scale, 0 for a square, `PER_OCTAVE` for 2:1."""
    most = MAX_OCTAVES * PER_OCTAVE
    if width <= 0 or height <= 0:
        return most if width > height else -most
    return min(max(round(PER_OCTAVE * math.log2(width / height)), -most), most)
