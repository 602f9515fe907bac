"""SHA-256 of what was evaluated, and with what: of content, wherever it lies.

Two evaluations whose digests are equal saw the same images, labels and texts by the same model.
Images count in any order; texts in theirs, as some methods take the first, or draw by position.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grain_jax.data.image_digest import image_digest
from grain_jax.data.records import Record, Source, read_records
from grain_jax.evaluation.digests import sha256_of
from grain_jax.inference.encoder import Encoder
from grain_jax.inference.fingerprints import (
    in_blocks,
    model_settings,
    params_sha256,
    sha256_of_json,
)

# Keys of what a result says that name a place, and "texts", which a digest beside them covers.
PLACES = ("data", "file", "file_sha256", "folder", "images_folder", "texts")

# Digests of the records of a source, by its identity.
_KNOWN: dict[int, tuple[weakref.ref[Any], list[str]]] = {}


def unordered_sha256(items: Iterable[Any]) -> str:
    """Of what JSON can hold, in any order."""
    return sha256_of(sorted(sha256_of(item) for item in items))


def labelled_sha256(source: Source, labels: Sequence[str]) -> str:
    """Of the bytes of every image with its label, in any order; names of files do not count. Images
    that are drawn go by their `fingerprint`, in order, where the source has one.

    Reads every image that is not drawn, without decoding it, once for each source.
    """
    if (drawn := getattr(source, "fingerprint", None)) is not None:
        return sha256_of([len(source), drawn, list(labels)])
    found = _known(source)
    return unordered_sha256(zip(found, labels or [""] * len(found), strict=True))


def records_sha256(source: Source) -> str:
    """Of the bytes of every image with its captions and regions, in any order, as by
    `labelled_sha256`.
    """
    if (drawn := getattr(source, "fingerprint", None)) is not None:
        return sha256_of([len(source), drawn])
    return unordered_sha256(_known(source))


def _known(source: Source) -> list[str]:
    """Of each record; kept as long as the source is, so that further models read nothing again."""
    key = id(source)
    kept = _KNOWN.get(key)
    if kept is None or kept[0]() is not source:

        def forget(_: Any) -> None:
            _KNOWN.pop(key, None)

        kept = weakref.ref(source, forget), _read(source)
        _KNOWN[key] = kept
    return kept[1]


def _read(source: Source) -> list[str]:
    def digests(block: range) -> list[str]:
        return [_of_record(record) for record in read_records(source, block)]

    return [digest for found in in_blocks(source, digests) for digest in found]


def _of_record(record: Record) -> str:
    said = {"captions": record.captions, "regions": record.regions}
    return sha256_of_json([image_digest(record.image).hex(), said])


def model_sha256(encoder: Encoder) -> str:
    """Of the weights, the model's settings, the tokenizer, the lengths of texts and the
    preprocessing. Every process of a multi-host run has to call it.
    """
    tokenizer = [type(encoder.tokenizer).__name__, encoder.tokenizer.spec(), encoder.lengths]
    settings = sha256_of_json(model_settings(encoder.model))
    weights = params_sha256(encoder.params)
    return sha256_of([weights, settings, tokenizer, encoder.preprocessing.spec()])


def without_places(value: Any) -> Any:
    """What a result says, without the paths in it."""
    if isinstance(value, Mapping):
        return {
            name: without_places(one)
            for name, one in value.items()
            if name not in PLACES or isinstance(one, Mapping)
        }
    if isinstance(value, list | tuple):
        return [without_places(one) for one in value]
    return value
