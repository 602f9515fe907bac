"""Read tensors from safetensors or torch files, one file or several with an index."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from grain_jax.formats.file_kinds import AGAIN, is_safetensors, is_torch, other_kind
from grain_jax.formats.files import (
    MAX_BYTES,
    check_size,
    odd_type,
    read_json,
    read_torch,
    torch_array,
)
from grain_jax.formats.wrapped_names import unwrapped_names

INDEX = ".index.json"  # suffix to the name of the weights in one file
MAX_PARTS = 4096
PART = re.compile(r"-\d{5}-of-\d{5}\.\w+$|\.index\.json$")  # of weights in several files
STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")  # in training checkpoints
AVERAGES = ("state_dict_ema", "ema_state_dict", "model_ema", "ema")
OTHER_FORMATS = {
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "*.gguf": "llama.cpp",
    "*.onnx": "ONNX",
    "onnx/*.onnx": "ONNX",
}

SAFETENSORS_TYPES = (
    *("F64", "F32", "F16", "BF16", "BOOL"),
    *("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8"),
)
Tensors = dict[str, np.ndarray]


def read_weights(folder: Path, names: Sequence[str]) -> Tensors:
    """The tensors of the first of the named files that exists, or of the parts in its index.

    Floats of 16 to 64 bits are converted to float32; wrappers of training frameworks are removed
    from names. Raises ValueError where a file is missing or cannot be read.
    """
    for name in names:
        if (path := folder / name).is_file():
            return _unwrapped(_read(path), path)
        if (index := folder / f"{name}{INDEX}").is_file():
            return _unwrapped(_read_parts(index), index)
    raise ValueError(f"{folder} has no weights; looked for {', '.join(names)}.{_hint(folder)}")


def part_names(index: Path) -> dict[str, list[str]]:
    """File -> names of its tensors, from the index of weights in several files.

    Raises ValueError for a file outside the folder of the index: only plain names are allowed.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise ValueError(f"{index} has no weight_map, which says which file holds which tensor.")
    parts: dict[str, list[str]] = {}
    suffix = Path(index.name.removesuffix(INDEX)).suffix
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain(file):
            raise ValueError(
                f"{index} says that {tensor!r} is in {file!r}; expected the name of a file "
                "beside it."
            )
        if not file.endswith(suffix):
            raise ValueError(f"{index} says that {tensor!r} is in {file!r}; expected a {suffix}.")
        parts.setdefault(file, []).append(tensor)
    if len(parts) > MAX_PARTS:
        raise ValueError(f"{index} names {len(parts)} files; expected at most {MAX_PARTS}.")
    return parts


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a file: floats of 16 to 64 bits as float32, integers and booleans unchanged.

    Tensors are read one at a time, so that no second copy of the file is in memory. Raises
    ValueError for a damaged file, and for tensors of other types, such as floats of 8 bits.
    """
    from safetensors import SafetensorError, safe_open

    check_size(path)
    try:
        with (
            safe_open(path, framework="numpy") as plain,
            # Supports bfloat16 in every version, but would truncate integers to 32 bits.
            safe_open(path, framework="flax") as with_bfloat16,
        ):
            tensors = {}
            names = plain.keys()
            for name in names:
                kind = plain.get_slice(name).get_dtype()
                if kind not in SAFETENSORS_TYPES:
                    raise ValueError(odd_type(path, repr(name), kind))
                file = with_bfloat16 if kind == "BF16" else plain
                tensors[name] = _float32(file.get_tensor(name))
            return tensors
    except SafetensorError as error:
        why = _why_not_safetensors(path) or f"is not a safetensors file: {error}"
        raise ValueError(f"{path} {why}.") from error


def _read(path: Path) -> Tensors:
    return read_safetensors(path) if path.suffix == ".safetensors" else _state_dict(path)


def _read_parts(index: Path) -> Tensors:
    parts = part_names(index)
    paths = [index.parent / name for name in parts]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(
            f"{index} names {len(parts)} files, and {len(missing)} of them "
            f"{'is' if len(missing) == 1 else 'are'} missing: {', '.join(missing[:5])}. Copy or "
            f"download {'it' if len(missing) == 1 else 'them'} beside it."
        )
    if (size := sum(path.stat().st_size for path in paths)) > MAX_BYTES:
        raise ValueError(
            f"The files of {index} have {size / 2**30:.1f} GiB in all; expected at most "
            f"{MAX_BYTES >> 30}."
        )
    tensors: Tensors = {}
    origin: dict[str, str] = {}
    for path, wanted in zip(paths, parts.values(), strict=True):
        found = _read(path)
        if absent := sorted(set(wanted) - set(found)):
            raise ValueError(
                f"{index} says that {path.name} has {absent[0]!r} ({len(absent)} such tensors), "
                "but it does not; the files do not belong to one model."
            )
        for name in found:
            if (other := origin.setdefault(name, path.name)) != path.name:
                raise ValueError(
                    f"{name!r} is in both {other} and {path.name} of {index}; the files do "
                    "not belong to one model."
                )
        tensors |= found
    return tensors


def _is_plain(name: str) -> bool:
    """Whether it is the name of a file in the folder, and not a pattern for the hub's client."""
    odd = set('/\\:*?[]"<>|') & set(name)
    return name.isprintable() and not odd and not name.startswith(".") and bool(name)


def _unwrapped(tensors: Tensors, where: Path) -> Tensors:
    bare = unwrapped_names(tensors, where)
    return {bare[name]: value for name, value in tensors.items()}


def _float32(value: Any) -> np.ndarray:
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return np.asarray(value, np.float32) if floating else np.asarray(value)


def _state_dict(path: Path) -> Tensors:
    if is_safetensors(path):
        raise ValueError(f"{path} is a safetensors file: rename it to *.safetensors.")
    content = read_torch(path)
    import torch  # installed, as the file was read

    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state dict.")
    content = _of_training(path, content, lambda value: isinstance(value, torch.Tensor))
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if odd := [name for name in tensors if not isinstance(name, str)]:
        raise ValueError(f"{path} has a tensor called {odd[0]!r}, expected a name.")
    if not tensors:
        listed = ", ".join(map(repr, list(content)[:5])) or "nothing"
        raise ValueError(f"{path} holds no tensors, expected a state dict; it has {listed}.")
    return {name: torch_array(path, repr(name), value) for name, value in tensors.items()}


def _of_training(
    path: Path, content: Mapping[Any, Any], is_tensor: Callable[[Any], bool]
) -> Mapping[Any, Any]:
    """The state dict in a training checkpoint; else the content itself."""

    def state_dicts(names: Sequence[str]) -> Iterator[str]:
        for name in names:
            value = content.get(name)
            if isinstance(value, Mapping) and any(map(is_tensor, value.values())):
                yield name

    given = next(state_dicts(STATE_DICTS), None)
    average = next(state_dicts(AVERAGES), None)
    if given and average:
        raise ValueError(
            f"{path} holds two models, {given!r} and its average over steps, {average!r}. Save the "
            f"one to load: torch.save(checkpoint[{average!r}], FILE)."
        )
    chosen = given or average
    return content if chosen is None else content[chosen]


def _why_not_safetensors(path: Path) -> str:
    """The reason "is ...; what to do"; "" where the content does not show it."""
    if is_torch(path):
        kind = other_kind(path)
        return kind or "is a torch file under a name of safetensors: rename it to *.bin"
    if not is_safetensors(path):
        return other_kind(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    expected = 8 + length
    if len(header) == length:
        ends = re.findall(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,18})\s*\]', header)
        expected += max(map(int, ends), default=0)
    return f"ends early: it has {size} bytes of {expected}; {AGAIN}" if size < expected else ""


def _hint(folder: Path) -> str:
    for pattern, format_name in OTHER_FORMATS.items():
        if found := sorted(folder.glob(pattern)):
            return f" {found[0].name} is a file of {format_name}, which is not supported."
    return ""
