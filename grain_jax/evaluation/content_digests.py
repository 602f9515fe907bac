"""SHA-256 of what was evaluated, and with what: of content, wherever and in whatever order it lies.

Two evaluations whose digests are equal saw the same images, labels and texts by the same model.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grain_jax.data.image_digest import image_digest
from grain_jax.data.records import Source, read_records
from grain_jax.evaluation.digests import sha256_of
from grain_jax.inference.encoder import Encoder
from grain_jax.inference.fingerprints import THREADS, params_sha256

AT_ONCE = 64  # records that are read together
# Keys of what a result says that name a place, and "texts", which a digest beside them covers.
PLACES = ("data", "file", "file_sha256", "folder", "images_folder", "texts")


def unordered_sha256(items: Iterable[Any]) -> str:
    """Of what JSON can hold, in any order."""
    return sha256_of(sorted(sha256_of(item) for item in items))


def texts_sha256(texts: Mapping[str, Sequence[str]]) -> str:
    """Of the texts of each class, classes and texts in any order."""
    return sha256_of({name: sorted(found) for name, found in texts.items()})


def labelled_sha256(source: Source, labels: Sequence[str]) -> str:
    """Of the bytes of every image with its label, in any order; names of files do not count. Images
    that are drawn go by their `fingerprint`, in order, where the source has one.

    Reads every image that is not drawn, without decoding it.
    """
    if (drawn := getattr(source, "fingerprint", None)) is not None:
        return sha256_of([len(source), drawn, list(labels)])

    def digests(start: int) -> list[str]:
        block = range(start, min(start + AT_ONCE, len(source)))
        return [image_digest(record.image).hex() for record in read_records(source, block)]

    count = 1 if getattr(source, "read_in_order", False) else THREADS
    with ThreadPoolExecutor(count) as threads:
        blocks = threads.map(digests, range(0, len(source), AT_ONCE))
        found = [digest for block in blocks for digest in block]
    return unordered_sha256(zip(found, labels or [""] * len(found), strict=True))


def records_sha256(source: Source) -> str | None:
    """Of what a split of prepared records says of itself, or drawn images of themselves; None where
    neither is known.
    """
    if (drawn := getattr(source, "fingerprint", None)) is not None:
        return sha256_of([len(source), drawn])
    while (inner := getattr(source, "source", None)) is not None:
        source = inner
    return getattr(source, "info_sha256", None)


def model_sha256(encoder: Encoder) -> str:
    """Of the weights, the tokenizer and the preprocessing. Every process of a multi-host run has to
    call it.
    """
    tokenizer = [type(encoder.tokenizer).__name__, encoder.tokenizer.spec()]
    return sha256_of([params_sha256(encoder.params), tokenizer, encoder.preprocessing.spec()])


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
