"""One process's rows of one batch, from nothing but (seed, step)."""

import dataclasses
import logging
import random
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from grain_jax.config import DataConfig
from grain_jax.data.memory import memory_limit
from grain_jax.data.records import Record, Region, Source
from grain_jax.data.texts import choose_caption
from grain_jax.data.tokenizer import Tokenizer, token_keys
from grain_jax.data.transforms import (
    ImageError,
    Pixels,
    Square,
    Window,
    bbox_to_cxcywh,
    decode_image,
    fit_image,
    select_regions,
    training_window,
)

logger = logging.getLogger(__name__)

_CACHE_SHARE = 0.8  # of the memory this process may use
_MAX_REPLACEMENTS = 20  # records in a row that fail to decode before the data set is given up


class ImageCache:
    """Decoded images and their records in the memory of this process, filled as they are first
    read.

    With resize "squash" an image costs image_size^2 * 3 bytes, and a data set that does not fit is
    refused with ValueError. With "crop" it costs all pixels of the decoded original, as the crop is
    new each time; where these do not fit, the rest is decoded each time, with one warning. Threads
    may share it.
    """

    def __init__(self, source: Source, config: DataConfig, image_size: int) -> None:
        self._source = source
        self._size = image_size
        self._interpolation = config.interpolation
        self._records: list[Record | None] = [None] * len(source)
        self._decoded: list[Pixels | None] | None = None
        memory = memory_limit()
        self._room = int(_CACHE_SHARE * memory)  # bytes that decoded originals may still take
        self._full = False
        self._lock = threading.Lock()
        if config.resize == "crop":
            self._decoded = [None] * len(source)
            return
        shape = (len(source), image_size, image_size, 3)
        needed = int(np.prod(shape, dtype=np.int64))
        if needed > self._room:
            raise ValueError(
                f"data.cache='memory' needs {needed / 2**30:.1f} GiB for {len(source)} images of "
                f"{image_size} pixels a side, and there are {memory / 2**30:.1f} GiB; set "
                "data.cache='none'."
            )
        self._squares = np.empty(shape, np.uint8)  # pages are taken only as they are written

    def read(self, index: int) -> tuple[Record, Pixels]:
        """The record without its encoded image, and the pixels. Raises `ImageError`."""
        record = self._records[index]
        if record is None:
            record = self._source[index]
            if self._decoded is None:
                self._squares[index] = fit_image(
                    record.image, self._size, interpolation=self._interpolation
                )
                record = dataclasses.replace(record, image=b"")
            else:
                pixels = decode_image(record.image)
                record = dataclasses.replace(record, image=b"")
                if not self._reserve(pixels.nbytes):
                    return record, pixels
                self._decoded[index] = pixels
            self._records[index] = record  # last: tells other threads that the pixels are there
        if self._decoded is None:
            return record, self._squares[index]
        kept = self._decoded[index]
        assert kept is not None
        return record, kept

    def _reserve(self, size: int) -> bool:
        with self._lock:
            if not self._full and size <= self._room:
                self._room -= size
                return True
            first, self._full = not self._full, True
        if first:
            held = sum(record is not None for record in self._records)
            logger.warning(
                "data.cache='memory' is full with %d of %d images: the others are decoded each "
                "time. Give the machine more memory, prepare the data with --max_image_side, or "
                "set data.resize='squash'.",
                held,
                len(self._records),
            )
        return False


class BatchMaker:
    """step -> arrays of the fields of `Batch`. Pickled to the loader's processes."""

    def __init__(
        self,
        *,
        source: Source,
        order: Any,
        config: DataConfig,
        tokenizer: Tokenizer,
        image_size: int,
        batch_size: int,
        seed: int,
        rows: Sequence[int],
    ) -> None:
        self._source = source
        self._order = order  # global position -> record index
        self._config = config
        self._tokenizer = tokenizer
        self._image_size = image_size
        self._batch_size = batch_size
        self._seed = seed
        self._rows = rows
        in_memory = config.cache == "memory"
        self._cache = ImageCache(source, config, image_size) if in_memory else None
        self._replacement: dict[int, int] = {}  # of records that failed before

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        config, count, limit = self._config, len(self._rows), self._config.max_regions
        images = np.empty((count, self._image_size, self._image_size, 3), np.uint8)
        index = np.zeros(count, np.int32)
        replaced = np.zeros(count, bool)
        boxes = np.zeros((count, limit, 4), np.float32)
        mask = np.zeros((count, limit), bool)
        description_key = np.zeros((count, limit), np.uint32)
        captions: list[str] = []
        descriptions: list[str] = []
        for row, number in enumerate(self._rows):
            position = step * self._batch_size + number
            wanted = int(self._order[position])
            used, record, window, rng = self._place_image(images[row], wanted, position)
            index[row], replaced[row] = used, used != wanted
            visible = [
                Region(bbox, region.description, region.score)
                for region in record.regions
                if (bbox := window.box(region.bbox)) is not None
            ]
            chosen = select_regions(
                visible,
                limit=limit,
                nms_iou=config.region_nms_iou,
                unique_descriptions=config.unique_descriptions,
            )
            for slot, region in enumerate(chosen):
                boxes[row, slot] = bbox_to_cxcywh(region.bbox)
                descriptions.append(region.description)
            mask[row, : len(chosen)] = True
            captions.append(choose_caption(record, visible, config, rng))
        caption_ids, cut = self._tokenizer.encode(captions, config.caption_length)
        truncated = cut.astype(np.int32)
        description_ids = np.zeros((count, limit, config.description_length), np.int32)
        if descriptions:
            ids, cut = self._tokenizer.encode(descriptions, config.description_length)
            description_ids[mask] = ids
            description_key[mask] = token_keys(ids, pad_id=self._tokenizer.pad_id)
            np.add.at(truncated, np.nonzero(mask)[0], cut.astype(np.int32))
        return {
            "images": images,
            "captions": caption_ids,
            "caption_key": token_keys(caption_ids, pad_id=self._tokenizer.pad_id),
            "descriptions": description_ids,
            "description_key": description_key,
            "boxes": boxes,
            "region_mask": mask,
            "index": index,
            "replaced": replaced,
            "truncated": truncated,
        }

    def _place_image(
        self, out: Square, wanted: int, position: int
    ) -> tuple[int, Record, Window, random.Random]:
        """Writes the square of record `wanted`, or of its replacement, into `out`.

        The replacement depends on `wanted` alone, and the generator starts afresh at each attempt:
        a process that already knows that a record is bad makes the same sample as one that finds
        out.
        """
        used = self._replacement.get(wanted, wanted)
        for attempt in range(_MAX_REPLACEMENTS):
            rng = random.Random(self._seed << 64 | position)
            try:
                record, image = self._read(used)
                window = training_window(self._config, image, rng)
                out[:] = fit_image(
                    image,
                    self._image_size,
                    interpolation=self._config.interpolation,
                    window=window,
                )
            except ImageError as error:
                following = zlib.crc32(f"{wanted}/{attempt}".encode()) % len(self._source)
                bad = self._source[used].id
                logger.warning("Image %r is replaced by record %d: %s", bad, following, error)
                used = following
                continue
            if used != wanted:
                self._replacement[wanted] = used
            return used, record, window, rng
        raise ValueError(
            f"{_MAX_REPLACEMENTS} images in a row cannot be decoded, record {wanted} first; "
            "prepare the data set again with `python -m grain_jax.prepare`."
        )

    def _read(self, index: int) -> tuple[Record, bytes | Pixels]:
        if self._cache is not None:
            return self._cache.read(index)
        record = self._source[index]
        return record, record.image
