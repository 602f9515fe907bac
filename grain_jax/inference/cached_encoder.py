"""An `Encoder` that keeps its embeddings on disk and encodes only what is not there.

Images are kept a set at a time, texts one by one. What was kept is read back bit for bit.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from grain_jax.data.image_variants import ImageVariants
from grain_jax.data.records import Source
from grain_jax.inference.array_store import MAX_BYTES, ArrayStore
from grain_jax.inference.encoder import Encoder, ImageFeatures
from grain_jax.inference.fingerprints import (
    environment,
    images_sha256,
    model_settings,
    params_sha256,
    sha256_of_json,
    text_digests,
)
from grain_jax.parallel.processes import errors_in_all, from_first, same_in_all
from grain_jax.paths import user_path
from grain_jax.runtime import user_cache

NONE, AUTO = "none", "auto"
FOLDER = "embeddings"  # in the user's cache
NO_CACHE = "Embeddings: none were cached."
PARTS = ("image", "regions", "boxes")
IMAGES, WHOLE_IMAGES = "images-", "whole-"  # keys of entries begin so


def open_cache(setting: str, *, max_gib: int | None = None) -> ArrayStore | None:
    """The store of embeddings: a folder, "auto" (in the user's cache) or "none", of at most
    `max_gib` GiB.

    None for "none", and for "auto" where the user's cache cannot be written to, as in a container
    without a home folder. Raises ValueError for a folder that cannot be written to.
    """
    max_bytes = MAX_BYTES if max_gib is None else max_gib << 30
    if setting == NONE:
        return None
    if setting == AUTO:
        folder = user_cache(FOLDER)
        with contextlib.suppress(OSError):
            return None if folder is None else ArrayStore(folder, max_bytes=max_bytes)
        return None
    try:
        return ArrayStore(user_path(setting), max_bytes=max_bytes)
    except OSError as error:
        raise ValueError(
            f"--cache={setting} cannot hold embeddings ({error}); give a folder that can be "
            "written to, or --cache=none."
        ) from error


class _Row(NamedTuple):
    """Where the embedding of a text is."""

    embed: np.ndarray  # [T, E]
    cut: np.ndarray  # bool [T]: whether the text was longer than its length
    row: int


class CachedEncoder(Encoder):
    """See the module. The parameters are hashed once, when it is made; with others
    (`with_params`) nothing is kept. With several hosts every one calls it alike, the first one
    writes, and what not all of them find is encoded anew: the folder should be one that they share.
    """

    encoded_images: int  # by the model, not read from the store
    encoded_texts: int
    encoded_variants: int
    read_images: int
    read_texts: int
    read_variants: int

    @classmethod
    def of(
        cls, encoder: Encoder, store: ArrayStore, *, note: Callable[[str], None] = print
    ) -> "CachedEncoder":
        """The same encoder over a store; `note` is called where the disk refuses to keep more."""
        made = object.__new__(cls)
        made.__dict__.update(encoder.__dict__)
        made.encoded_images = made.encoded_texts = made.read_images = made.read_texts = 0
        made.encoded_variants = made.read_variants = 0
        made._store, made._note, made._variant_bytes, made._hashed = store, note, 0, (None, "")
        shared = {
            **environment(),
            "model": model_settings(encoder.model),
            "params": params_sha256(encoder.params),
        }
        made._of_images = sha256_of_json(
            [shared, encoder.preprocessing.spec(), dataclasses.asdict(encoder.learned)]
        )
        made._of_texts = sha256_of_json(
            [shared, type(encoder.tokenizer).__name__, encoder.tokenizer.spec()]
        )
        made._rows = {}
        made._counted_texts = {}
        return made

    _store: ArrayStore
    _note: Callable[[str], None]
    _of_images: str
    _of_texts: str
    _variant_bytes: int  # that this encoder wrote or read
    _hashed: tuple[Source | None, str]  # images of the last variants, and their SHA-256
    _rows: dict[str, dict[bytes, _Row]]  # of a kind of text
    _counted_texts: dict[str, set[bytes]]  # likewise, each once: read or encoded

    def images(
        self, source: Source, *, on_batch: Callable[[int], None] | None = None
    ) -> ImageFeatures:
        """As `Encoder.images`."""
        if len(source) == 0:
            return super().images(source, on_batch=on_batch)
        key = self._key(source)
        if (found := self._read(IMAGES + key, source)) is not None:
            if on_batch is not None:
                on_batch(len(source))
            return ImageFeatures(found["image"], found.get("regions"), found.get("boxes"))
        features = super().images(source, on_batch=on_batch)
        self.encoded_images += len(source)
        parts = {name: getattr(features, name) for name in PARTS}
        self._keep(IMAGES + key, {name: part for name, part in parts.items() if part is not None})
        return features

    def whole_images(self, source: Source) -> Float[np.ndarray, "N E"]:
        """As `Encoder.whole_images`; regions and boxes, which are many times larger, are not kept,
        and are read where `images` has kept them.
        """
        if len(source) == 0:
            return super().whole_images(source)
        key = self._key(source)
        for kind in (IMAGES, WHOLE_IMAGES):
            if (found := self._read(kind + key, source)) is not None:
                return found["image"]
        image = Encoder.images(self, source).image
        self.encoded_images += len(source)
        self._keep(WHOLE_IMAGES + key, {"image": image})
        return image

    def _key(self, source: Source) -> str:
        with errors_in_all():
            own = images_sha256(source) if jax.process_index() == 0 else ""
        return sha256_of_json([self._of_images, from_first(own)])

    def _read(self, key: str, source: Source) -> dict[str, np.ndarray] | None:
        """An entry of all images of the source, where every host finds one."""
        found = self._store.read(key)
        whole = found is not None and len(found.get("image", ())) == len(source)
        if not same_in_all(str(whole)) or not whole:
            return None
        self.read_images += len(source)
        return found

    def variants(self, source: ImageVariants) -> Float[np.ndarray, "N V E"]:
        """As `Encoder.variants`; kept by the content of the images, the kind of variant with its
        numbers, and the boxes. They take at most half of the store, so that they do not push out
        what is read more often.
        """
        if len(source) == 0:
            return super().variants(source)
        if self._hashed[0] is not source.images:  # several kinds are made of the same ones
            with errors_in_all():
                own = images_sha256(source.images) if jax.process_index() == 0 else ""
            self._hashed = source.images, from_first(own)
        of = [self._of_images, source.described, self._hashed[1]]
        key = f"variants-{sha256_of_json(of)}"
        found = (self._store.read(key) or {}).get("embed")
        whole = found is not None and found.shape[:2] == (len(source.images), source.of_each)
        if same_in_all(str(whole)) and whole and found is not None:
            self.read_variants += len(source)
            self._variant_bytes += found.nbytes
            return found
        embed = super().variants(source)
        self.encoded_variants += len(source)
        room, before = self._store.max_bytes // 2, self._variant_bytes
        self._variant_bytes += embed.nbytes
        if self._variant_bytes <= room:
            self._keep(key, {"embed": embed})
        elif before <= room:
            self._note(
                "embeddings of crops and other variants of images are more than "
                f"{room / 2**30:.1f} GiB, half of the cache, and the rest of them is not kept; "
                "give more with --cache_gib."
            )
        return embed

    def texts(self, texts: Sequence[str], *, kind: str) -> Float[np.ndarray, "T E"]:
        """As `Encoder.texts`."""
        if kind not in self.lengths or len(texts) == 0:
            return super().texts(texts, kind=kind)
        different = list(dict.fromkeys(texts))
        digest = dict(zip(different, text_digests(different), strict=True))
        rows = self._kept_rows(kind)
        missing = [text for text in different if digest[text] not in rows]
        if not same_in_all(hashlib.sha256(repr(missing).encode()).hexdigest()):
            missing = different
        fresh: dict[bytes, _Row] = {}
        before = self.truncated_texts
        if missing:
            embed = super().texts(missing, kind=kind)
            cut = self._tokens(tuple(missing), kind)[1]
            keys = [digest[text] for text in missing]
            fresh = {key: _Row(embed, cut, row) for row, key in enumerate(keys)}
            stored = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)
            name = hashlib.sha256(b"".join(keys)).hexdigest()[:32]
            self._keep(f"{self._prefix(kind)}{name}", {"keys": stored, "embed": embed, "cut": cut})
            self.encoded_texts += len(missing)
        known = self._counted_texts.setdefault(kind, set())
        self.read_texts += len({*digest.values()} - {*fresh} - known)
        known |= {*digest.values()}
        rows |= fresh
        found = [rows[digest[text]] for text in different]
        self.truncated_texts = before + sum(bool(row.cut[row.row]) for row in found)
        place = {text: number for number, text in enumerate(different)}
        embed = np.stack([row.embed[row.row] for row in found])
        return embed[[place[text] for text in texts]]

    def _prefix(self, kind: str) -> str:
        return f"texts-{sha256_of_json([self._of_texts, kind, self.lengths[kind]])}-"

    def _kept_rows(self, kind: str) -> dict[bytes, _Row]:
        """Every text of a kind that is stored, read once."""
        if kind not in self._rows:
            rows: dict[bytes, _Row] = {}
            for key in self._store.keys(self._prefix(kind)):
                found = self._store.read(key)
                if found is not None and {"keys", "embed", "cut"} <= set(found):
                    for row, stored in enumerate(found["keys"]):
                        rows.setdefault(stored.tobytes(), _Row(found["embed"], found["cut"], row))
            self._rows[kind] = rows
        return self._rows[kind]

    def _keep(self, key: str, arrays: dict[str, Any]) -> None:
        """Writes an entry by the first host; a disk that refuses does not end an evaluation."""
        if jax.process_index() != 0:
            return
        try:
            kept = self._store.write(key, arrays)
        except OSError as error:
            self._note(f"embeddings could not be kept in {self._store.folder}: {error}.")
            return
        if not kept and sum(array.nbytes for array in arrays.values()) > self._store.max_bytes:
            self._note(
                f"embeddings of {sum(array.nbytes for array in arrays.values()) / 2**30:.1f} GiB "
                f"are more than the {self._store.max_bytes / 2**30:.1f} GiB of the cache and were "
                "not kept; give more with --cache_gib."
            )

    def summary(self) -> str:
        """One sentence on what was read and what was encoded."""
        said = (
            f"Embeddings: {self.read_images:,} images and {self.read_texts:,} texts read from "
            f"{self._store.folder}, {self.encoded_images:,} and {self.encoded_texts:,} encoded."
        )
        if not self.read_variants + self.encoded_variants:
            return said
        return (
            f"{said} Of variants of images {self.read_variants:,} were read and "
            f"{self.encoded_variants:,} encoded."
        )
