"""SHA-256 of everything that an embedding depends on: weights, settings, code, images."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

import grain_jax
from grain_jax.data.image_digest import image_digest
from grain_jax.data.records import Source, read_records

CODE = ("models", "data", "boxes.py", "inference/encoder.py", "inference/length_groups.py")
LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers")
RECORDS_AT_ONCE = 64
Found = TypeVar("Found")
THREADS = 8  # that read and hash; hashlib lets go of the interpreter meanwhile


def sha256_of_json(content: Any) -> str:
    """Hexadecimal SHA-256 of what JSON can hold, and of dataclasses; keys in any order."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no fingerprint; expected JSON or a dataclass.")


def params_sha256(params: Any) -> str:
    """Of the names, shapes, types and bytes of all parameters.

    With several hosts every one calls it: parts of a sharded parameter are gathered.
    """
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        value = _on_host(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _on_host(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def model_settings(model: nn.Module) -> dict[str, Any]:
    """The class of a model and its fields."""
    own = [
        field.name for field in dataclasses.fields(model) if field.name not in ("parent", "name")
    ]
    kind = type(model)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        **{name: getattr(model, name) for name in own},
    }


@functools.cache
def environment() -> dict[str, Any]:
    """What else decides about the bits of an embedding: the code that makes it, the libraries
    beneath, and the kind of device.
    """
    settings: Any = jax.config
    devices = sorted({device.device_kind for device in jax.devices()})
    return {
        "code": code_sha256(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "devices": [jax.default_backend(), *devices],
        "matmul_precision": settings.jax_default_matmul_precision,
    }


def code_sha256() -> str:
    """Of the source files between an image or a text and its embedding."""
    root, found = Path(grain_jax.__file__).parent, hashlib.sha256(grain_jax.__version__.encode())
    for place in CODE:
        path = root / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if file.is_file():
                found.update(f"{file.relative_to(root).as_posix()}\n".encode())
                found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def images_sha256(source: Source) -> str:
    """Of the content of all images of a source, in their order; each is read once and not decoded.

    A source whose images are drawn may have a `fingerprint`, JSON that says what they are; one
    whose images are made from others `image_digests` (`data/image_digest.py`).
    """
    drawn = getattr(source, "fingerprint", None)
    if drawn is not None:
        return sha256_of_json([len(source), drawn])
    digests_of = getattr(source, "image_digests", None)

    def hash_block(block: range) -> bytes:
        if digests_of is not None:
            return b"".join(digests_of(block))
        return b"".join(image_digest(record.image) for record in read_records(source, block))

    found = hashlib.sha256()
    for digests in in_blocks(source, hash_block):
        found.update(digests)
    return found.hexdigest()


def in_blocks(source: Source, of_block: Callable[[range], Found]) -> Iterator[Found]:
    """What `of_block` returns for the positions of some records at a time, in order; called in
    several threads, unless all of the source is `read_in_order`.
    """
    starts = range(0, len(source), RECORDS_AT_ONCE)
    blocks = (range(start, min(start + RECORDS_AT_ONCE, len(source))) for start in starts)
    with ThreadPoolExecutor(1 if getattr(source, "read_in_order", False) else THREADS) as threads:
        yield from threads.map(of_block, blocks)


def text_digests(texts: Sequence[str]) -> list[bytes]:
    """SHA-256 of each text."""
    return [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
