"""Weights and settings that others wrote: size limits, no pickle, errors that name the file."""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from grain_jax.extras import how_to_install

MAX_BYTES = 16 * 2**30  # of a file of weights
MAX_JSON_BYTES = 64 * 2**20


def read_weights(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The first of the named files that is there, as float32 arrays. Raises ValueError."""
    for name in names:
        path = folder / name
        if not path.is_file():
            continue
        return read_safetensors(path) if path.suffix == ".safetensors" else _state_dict(path)
    split = [path.name for path in sorted(folder.glob("*.index.json"))]
    hint = f" {split[0]} says that they are split, which is not read." if split else ""
    raise ValueError(f"{folder} has no weights; looked for {', '.join(names)}.{hint}")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of any float type as float32, others as they are. Raises ValueError."""
    from safetensors import SafetensorError
    from safetensors.flax import load_file  # unlike numpy's, it knows bfloat16

    _check_size(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    return {
        name: np.asarray(value, np.float32)
        if jnp.issubdtype(value.dtype, jnp.floating)
        else np.asarray(value)
        for name, value in tensors.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError for any other content, and for a huge file."""
    if not path.is_file():
        raise ValueError(f"There is no {path}.")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is larger than {MAX_JSON_BYTES} bytes.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, needed an object.")
    return content


def present(given: Any) -> dict[str, Any]:
    """The settings of an object in JSON that are not null; {} for none."""
    return {name: value for name, value in (given or {}).items() if value is not None}


def read_torch(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """What a torch file holds, with nothing in it executed. Raises ValueError.

    Tensors must be stored in full: a file of a few bytes can claim one of terabytes.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is a torch file; give safetensors, or {how_to_install('torch')}"
        ) from error
    _check_size(path, max_bytes)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # torch raises nearly anything on a file that is no checkpoint
        raise ValueError(f"{path} cannot be read safely: {error}") from error
    for name, tensor in _tensors(content, "", torch.Tensor):
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise ValueError(f"{path}: {name} is no tensor that is stored as plain numbers.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: {name} says {list(tensor.shape)}, and has less stored.")
    return content


def _tensors(content: Any, name: str, kind: type) -> Iterator[tuple[str, Any]]:
    if isinstance(content, kind):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{name}[{key!r}]", kind)


def _is_zip(path: Path) -> bool:
    """Whether torch can map the file; files of before torch 1.6 are read as a whole."""
    return zipfile.is_zipfile(path)


def _check_size(path: Path, max_bytes: int = MAX_BYTES) -> None:
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"{path} has {size / 2**30:.1f} GiB; expected at most {max_bytes >> 30}.")


def _state_dict(path: Path) -> dict[str, np.ndarray]:
    content = read_torch(path)
    import torch  # it is there, as the file was read

    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # of a training checkpoint
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, needed a state dict.")
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if odd := [name for name in tensors if not isinstance(name, str)]:
        raise ValueError(f"{path} has a tensor called {odd[0]!r}, needed a name.")
    return {name.removeprefix("module."): value.float().numpy() for name, value in tensors.items()}
