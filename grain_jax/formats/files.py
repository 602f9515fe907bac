"""Read files of other programs: with size limits, without executing them, errors with the name."""

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.extras import how_to_install
from grain_jax.formats.file_kinds import other_kind

HUGGINGFACE_CONFIG = "config.json"
MAX_BYTES = 16 * 2**30  # of a weight file
MAX_JSON_BYTES = 64 * 2**20
MAX_DEPTH = 32  # of nested dictionaries in a torch file
TORCH_TYPES = (
    *("float64", "float32", "float16", "bfloat16", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError for other content and for a file too large."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is larger than {MAX_JSON_BYTES} bytes.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object.")
    return content


def model_type(folder: Path) -> Any:
    """The model_type of a folder of Hugging Face; "" where there is none.

    Raises ValueError where its `config.json` cannot be read.
    """
    path = folder / HUGGINGFACE_CONFIG
    return read_json(path).get("model_type", "") if path.is_file() else ""


def present(given: Any) -> dict[str, Any]:
    """The entries of a JSON object that are not null; {} for None."""
    return {name: value for name, value in (given or {}).items() if value is not None}


def read_torch(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a torch file, read without executing anything in it.

    Raises ValueError where it is too large or cannot be read safely, and for tensors that are not
    stored completely: a file of a few bytes can declare one of terabytes.
    """
    if other := other_kind(path):
        raise ValueError(f"{path} {other}.")
    check_size(path, max_bytes)
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is a torch file; give safetensors, or {how_to_install('torch')}"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # torch raises nearly anything for a file that is not a checkpoint
        raise ValueError(f"{path} cannot be read safely: {_reason(error)}") from None
    for name, tensor in _tensors(path, content, "", torch.Tensor, set()):
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise ValueError(
                f"{path}: {name} is not a dense tensor; save the state dict with dense tensors."
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {name} says {list(tensor.shape)}, but fewer values are stored."
            )
    return content


def torch_array(path: Path, name: str, tensor: Any) -> np.ndarray:
    """A torch tensor as a float32 array. Raises ValueError for types not in `TORCH_TYPES`."""
    if (kind := str(tensor.dtype).removeprefix("torch.")) not in TORCH_TYPES:
        raise ValueError(odd_type(path, name, kind))
    return tensor.float().numpy()


def odd_type(path: Path, name: str, kind: str) -> str:
    """The error for a tensor of an unsupported type."""
    return (
        f"{path}: {name} is of type {kind}, which is not read. Give weights in float32, float16 or "
        "bfloat16."
    )


def _tensors(
    path: Path, content: Any, name: str, kind: type, walked: set[int], depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Named tensors in nested dictionaries.

    Raises ValueError for dictionaries nested too deeply or in themselves, as pickle allows.
    """
    if depth > MAX_DEPTH:
        raise ValueError(
            f"{path} has dictionaries in dictionaries, more than {MAX_DEPTH} deep: {name[:60]}... "
            "Save only the state dict: torch.save(model.state_dict(), FILE)."
        )
    if isinstance(content, kind):
        yield name, content
    elif isinstance(content, Mapping) and id(content) not in walked:
        for key, value in content.items():
            yield from _tensors(path, value, f"{name}[{key!r}]", kind, walked, depth + 1)
        walked.add(id(content))  # shared dictionaries would be walked 2**depth times


def _reason(error: Exception) -> str:
    """The reason of an error, without torch's advice to load the file unsafely."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"it holds {found[1]}, an object of Python that only running code of the file creates. "
            "Save the state dict alone where it was trained: torch.save(model.state_dict(), FILE)."
        )
    if isinstance(error, pickle.UnpicklingError):
        return (
            "it holds more than tensors, or is damaged. Save the state dict alone where it was "
            "trained: torch.save(model.state_dict(), FILE)."
        )
    first = " ".join(text.partition("\n")[0].split())[:200]
    return f"it is damaged, or is not a file of torch ({first or type(error).__name__})."


def _is_zip(path: Path) -> bool:
    """Whether torch can memory-map the file; files before torch 1.6 are read as a whole."""
    return zipfile.is_zipfile(path)


def check_size(path: Path, max_bytes: int = MAX_BYTES) -> None:
    """Raises ValueError for a file of more than `max_bytes`."""
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"{path} has {size / 2**30:.1f} GiB; expected at most {max_bytes >> 30}.")
