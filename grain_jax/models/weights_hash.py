"""A name for the weights of a model that no other weights have."""

import hashlib
from typing import Any

import jax
import numpy as np


def weights_sha256(params: Any) -> str:
    """Hexadecimal SHA-256 of the names, shapes, types and values of all parameters."""
    found = hashlib.sha256()
    leaves = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    for name, leaf in sorted(leaves, key=lambda one: one[0]):
        values = np.ascontiguousarray(jax.device_get(leaf))
        found.update(f"{name} {values.dtype} {values.shape}\n".encode())
        found.update(values.tobytes())
    return found.hexdigest()
