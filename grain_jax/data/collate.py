"""Collate records into the rows of a batch, a pure function of (seed, step)."""

import dataclasses
import logging
import random
import threading
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from grain_jax.boxes import box_to_cxcywh
from grain_jax.config import DataConfig
from grain_jax.data.captions import choose_caption
from grain_jax.data.memory_limit import memory_limit
from grain_jax.data.mixture import Order, replacements
from grain_jax.data.records import Record, Region, Source, read_records
from grain_jax.data.tokenizer import Tokenizer, token_keys
from grain_jax.data.transforms import (
    ImageError,
    Pixels,
    Preprocessing,
    Square,
    Window,
    decode_image,
    fit_image,
    select_regions,
    training_window,
)

logger = logging.getLogger(__name__)

_CACHE_FRACTION = 0.8  # of the memory limit of this process
_MAX_REPLACEMENTS = 20  # consecutive records that fail to decode before an error


class ImageCache:
    """Records and decoded images in the memory of this process, filled at the first read of each.

    With resize "squash" an image takes image_size^2 * 3 bytes; raises ValueError where the data set
    does not fit. With "crop" it takes all pixels of the decoded original, because the crop differs
    each time; images that do not fit are decoded at each read, with one warning. Thread-safe.
    """

    def __init__(self, source: Source, config: DataConfig, image_size: int) -> None:
        self._source = source
        self._size = image_size
        self._interpolation = config.interpolation
        self._records: list[Record | None] = [None] * len(source)
        self._decoded: list[Pixels | None] | None = None
        memory = memory_limit()
        self._room = int(_CACHE_FRACTION * memory)  # bytes left for decoded originals
        self._full = False
        self._lock = threading.Lock()
        if config.resize == "crop":
            self._decoded = [None] * len(source)
            return
        shape = (len(source), image_size, image_size, 3)
        required = int(np.prod(shape, dtype=np.int64))
        if required > self._room:
            raise ValueError(
                f"data.cache='memory' needs {required / 2**30:.1f} GiB for {len(source)} images of "
                f"{image_size} pixels a side, and there are {memory / 2**30:.1f} GiB; set "
                "data.cache='none'."
            )
        self._squares = np.empty(shape, np.uint8)  # memory pages are allocated as they are written

    def read(self, index: int) -> tuple[Record, Pixels]:
        """The record without its encoded image, and its pixels. Raises `ImageError`."""
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
            self._records[index] = record  # last, as it marks the pixels as ready for other threads
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


def row_dtype(config: DataConfig, image_size: int) -> np.dtype:
    """The structured dtype of one row of a batch, with the fields of `Batch`."""
    size, limit = image_size, config.max_regions
    return np.dtype(
        [
            ("images", np.uint8, (size, size, 3)),
            ("captions", np.int32, (config.caption_length,)),
            ("caption_key", np.uint32),
            ("descriptions", np.int32, (limit, config.description_length)),
            ("description_key", np.uint32, (limit,)),
            ("boxes", np.float32, (limit, 4)),
            ("region_mask", np.bool_, (limit,)),
            ("index", np.int32),
            ("replaced", np.bool_),
            ("truncated", np.int32),
        ]
    )


class ImageCollator:
    """Collates images for evaluation: part number -> uint8 [N, S, S, 3].

    Parts are numbered as in `Collator`. Raises ValueError for an image that cannot be decoded.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        indices: np.ndarray,
        *,
        batch_size: int,
        parts: int,
    ) -> None:
        self._source = source
        self._preprocessing = preprocessing
        self._indices = indices
        self._batch_size = batch_size
        self._parts = parts

    def __call__(self, number: int) -> UInt8[np.ndarray, "N S S 3"]:
        batch, part = divmod(number, self._parts)
        rows = self._indices[batch * self._batch_size : (batch + 1) * self._batch_size]
        chosen = np.array_split(rows, self._parts)[part]
        size = self._preprocessing.image_size
        images = np.empty((len(chosen), size, size, 3), np.uint8)
        for row, record in enumerate(read_records(self._source, chosen.tolist())):
            try:
                images[row] = self._preprocessing(record.image)
            except ImageError as error:
                raise ValueError(
                    f"Image {record.id!r} cannot be evaluated on: {error} Take it out of the set, "
                    "or prepare the data set again, which skips such images."
                ) from error
        return images


class Collator:
    """Collates records for training: part number -> rows of a batch. Pickled to loader processes.

    The rows of a batch are made in `parts` of nearly equal size: part p of step k has the number
    `k * parts + p`.

    Args:
        order: global position (step * batch_size + row) -> index of the record in `source`.
        rows: rows of the global batch that this process makes.
        parts: elements that a batch is made in.
        packed: return one array of `row_dtype`, which takes one segment of shared memory, rather
            than a dictionary of arrays by field.
    """

    def __init__(
        self,
        *,
        source: Source,
        order: Order,
        config: DataConfig,
        tokenizer: Tokenizer,
        image_size: int,
        batch_size: int,
        seed: int,
        rows: Sequence[int],
        parts: int = 1,
        packed: bool = False,
    ) -> None:
        self._source = source
        self._order = order
        self._config = config
        self._tokenizer = tokenizer
        self._image_size = image_size
        self._batch_size = batch_size
        self._seed = seed
        self._parts = np.array_split(np.asarray(rows), parts)
        self._packed = packed
        in_memory = config.cache == "memory"
        self._cache = ImageCache(source, config, image_size) if in_memory else None
        self._replacement: dict[
            int, int
        ] = {}  # index of a record that failed to decode -> index of its replacement

    def __call__(self, number: int) -> dict[str, np.ndarray] | np.ndarray:
        step, part = divmod(number, len(self._parts))
        rows = self._parts[part]
        fields = row_dtype(self._config, self._image_size)
        if self._packed:
            packed = np.zeros(len(rows), fields)
            self._fill({name: packed[name] for name in fields.names or ()}, step, rows)
            return packed
        arrays = {
            name: np.zeros((len(rows), *fields[name].shape), fields[name].base)
            for name in fields.names or ()
        }
        self._fill(arrays, step, rows)
        return arrays

    def _fill(self, out: dict[str, np.ndarray], step: int, rows: np.ndarray) -> None:
        """Writes the `rows` of `step` into `out`, whose arrays are zeros."""
        config = self._config
        positions = [step * self._batch_size + int(number) for number in rows]
        wanted = [int(self._order[position]) for position in positions]
        first = [self._replacement.get(index, index) for index in wanted]
        records: list[Record | None] = [None] * len(rows)
        if self._cache is None:
            records = [*read_records(self._source, first)]
        captions: list[str] = []
        descriptions: list[str] = []
        mask = out["region_mask"]
        for row, position in enumerate(positions):
            used, record, window, rng = self._place_image(
                out["images"][row], wanted[row], first[row], records[row], position
            )
            records[row] = None  # lets the encoded image be freed
            out["index"][row], out["replaced"][row] = used, used != wanted[row]
            visible = [
                Region(box, region.description, region.score)
                for region in record.regions
                if (box := window.box(region.box_xyxy)) is not None
            ]
            chosen = select_regions(
                visible,
                limit=config.max_regions,
                nms_iou=config.region_nms_iou,
                unique_descriptions=config.unique_descriptions,
            )
            for slot, region in enumerate(chosen):
                out["boxes"][row, slot] = box_to_cxcywh(region.box_xyxy)
                descriptions.append(region.description)
            mask[row, : len(chosen)] = True
            captions.append(choose_caption(record, visible, config, rng))
        ids, cut = self._tokenizer.encode(captions, config.caption_length)
        out["captions"][:] = ids
        out["caption_key"][:] = token_keys(ids, pad_id=self._tokenizer.pad_id)
        out["truncated"][:] = cut.astype(np.int32)
        if descriptions:
            ids, cut = self._tokenizer.encode(descriptions, config.description_length)
            out["descriptions"][mask] = ids
            out["description_key"][mask] = token_keys(ids, pad_id=self._tokenizer.pad_id)
            np.add.at(out["truncated"], np.nonzero(mask)[0], cut.astype(np.int32))

    def _place_image(
        self, out: Square, wanted: int, first: int, read: Record | None, position: int
    ) -> tuple[int, Record, Window, random.Random]:
        """Writes the image of record `wanted`, or of its replacement, into `out`.

        `first` is the index to try first, and `read` that record if it has been read already.

        The replacement depends on `wanted` alone, and the random generator is seeded anew at each
        attempt. So a process that already knows the replacement makes the same sample as one that
        does not.
        """
        used = first
        for attempt in range(_MAX_REPLACEMENTS):
            rng = random.Random(self._seed << 64 | position)
            try:
                record, image = self._read(used, None if attempt else read)
                window = training_window(self._config, image, rng)
                out[:] = fit_image(
                    image,
                    self._image_size,
                    interpolation=self._config.interpolation,
                    window=window,
                )
            except ImageError as error:
                others = replacements(self._source, wanted)
                following = others[zlib.crc32(f"{wanted}/{attempt}".encode()) % len(others)]
                failed = self._source[used].id
                logger.warning("Image %r is replaced by record %d: %s", failed, following, error)
                used = following
                continue
            if used != wanted:
                self._replacement[wanted] = used
            return used, record, window, rng
        raise ValueError(
            f"{_MAX_REPLACEMENTS} consecutive images cannot be decoded, from record {wanted} on; "
            "prepare the data set again with `python -m grain_jax.prepare`."
        )

    def _read(self, index: int, read: Record | None) -> tuple[Record, bytes | Pixels]:
        if self._cache is not None:
            return self._cache.read(index)
        record = self._source[index] if read is None else read
        return record, record.image
