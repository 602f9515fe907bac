"""Read and write checkpoint files of the official code.

Such a file holds two state dicts, `backbone_state_dict` of a `CLIP_VIT*` and `state_dict` of an
`ObjDecoder`, with the names of the bare modules or those of `DistributedDataParallel` and
`torch.compile`. Files written by grain_jax have a third entry, which the official code ignores: the
metadata (numbers of heads, tokenizer, preprocessing), and a separate scale of region logits, which
the official code does not have.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.config import DecoderConfig, ModelConfig, TextConfig, vision_variant
from grain_jax.formats.files import read_torch, torch_array
from grain_jax.formats.grain_reference import to_official
from grain_jax.formats.metadata import portable_metadata
from grain_jax.formats.wrapped_names import unwrapped_names
from grain_jax.models.bundle import ModelBundle

BACKBONE, DECODER = "backbone_state_dict", "state_dict"
OFFICIAL_FILE = "checkpoint.pth"  # in the folder of an export
EXTRA, METADATA = "grain_jax", "metadata"
REGION_SCALE = "region_logit_scale"
MAX_BYTES = 8 * 2**30
CONSTRUCTORS = {"CLIP_VITS16": "S/16", "CLIP_VITB16": "B/16", "CLIP_VITL14": "L/14"}
NOT_OF_THE_MODEL = {"position_init", "initializer", "token_init_std", "dropout", "num_queries"}


def save_official(loaded: ModelBundle, path: Path) -> None:
    """Writes a file that the official modules load with `strict=True`; unused tensors are zeros.

    Its epoch and iteration are 0, as `evaluate.py --resume` reads them. It has no optimizer state,
    so the official code cannot resume training from it. Raises ValueError for a model that the
    official code does not support.
    """
    import torch

    config = loaded.config.model
    _check_representable(config)
    extra: dict[str, Any] = {METADATA: json.dumps(portable_metadata(loaded))}
    parts: dict[str, Any] = {BACKBONE: {}, DECODER: {}, "epoch": 0, "iteration": 0, EXTRA: extra}
    for name, value in to_official(loaded.params, config).items():
        part, _, own = name.partition(".")
        destination = parts[BACKBONE if part == "backbone" else DECODER]
        if own == REGION_SCALE:
            destination = extra
        destination[own] = torch.from_numpy(np.array(value, np.float32))
    if config.type == "clip":
        del parts[DECODER]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(
        "wb"
    ) as file:  # unlike torch's own, its error says why the file cannot be written
        torch.save(parts, file)


def constructor(config: ModelConfig) -> str:
    """The official constructor of a backbone of these sizes; "" where there is none."""
    for name, variant in CONSTRUCTORS.items():
        published: list[Any] = [vision_variant(variant), TextConfig(), DecoderConfig()]
        own: list[Any] = [config.vision, config.text, config.decoder]
        if config.type == "clip":
            published, own = published[:2], own[:2]
        same = all(_same_sizes(*pair) for pair in zip(own, published, strict=True))
        if same and (config.image_size, config.embed_dim) == (224, 512):
            return name
    return ""


def _same_sizes(own: Any, published: Any) -> bool:
    names = {field.name for field in dataclasses.fields(published)} - NOT_OF_THE_MODEL
    return all(getattr(own, name) == getattr(published, name) for name in names)


@dataclasses.dataclass(frozen=True)
class OfficialFile:
    """The content of a checkpoint file."""

    tensors: dict[str, np.ndarray]  # by official name, `backbone.*` and `decoder.*`
    metadata: dict[str, Any] | None  # of files written by grain_jax


def read_official(path: Path) -> OfficialFile:
    """Reads a file of the official code or of `save_official`, without executing anything in it.

    Raises ValueError for a file that is too large or is not such a checkpoint.
    """
    content = read_torch(path, max_bytes=MAX_BYTES)
    if not isinstance(content, Mapping) or BACKBONE not in content:
        names = list(content)[:5] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"{path} has no {BACKBONE!r}, as official checkpoints have; it has {names}. Weights of "
            "open_clip need its open_clip_config.json beside them: no shape tells the activation."
        )
    found = {}
    for part, key in (("backbone", BACKBONE), ("decoder", DECODER)):
        given = _mapping(path, key, content.get(key, {}))
        for name, bare in unwrapped_names(given, f"{path}: {key}").items():
            found[f"{part}.{bare}"] = _array(path, f"{key}[{name!r}]", given[name])
    extra = _mapping(path, EXTRA, content.get(EXTRA, {}))
    if REGION_SCALE in extra:
        name = f"{EXTRA}[{REGION_SCALE!r}]"
        found[f"decoder.{REGION_SCALE}"] = _array(path, name, extra[REGION_SCALE])
    if METADATA not in extra:
        return OfficialFile(found, metadata=None)
    try:
        metadata = json.loads(extra[METADATA])
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {EXTRA}[{METADATA!r}] is not JSON: {error}") from error
    return OfficialFile(found, _mapping(path, f"{EXTRA}[{METADATA!r}]", metadata))


def _mapping(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}: {name} is a {type(value).__name__}, expected named entries.")
    if odd := [key for key in value if not isinstance(key, str)]:
        raise ValueError(f"{path}: {name} has an entry called {odd[0]!r}, expected names.")
    return dict(value)


def _array(path: Path, name: str, value: Any) -> np.ndarray:
    import torch

    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{path}: {name} is a {type(value).__name__}, not a tensor.")
    return torch_array(path, name, value)


def _check_representable(config: ModelConfig) -> None:
    expected: dict[str, Any] = {
        "vision.activation": "gelu",
        "text.activation": "quick_gelu",
        "vision.norm_eps": 1e-6,
        "text.norm_eps": 1e-5,
        "vision.qk_norm": True,
        "vision.patch_bias": True,
        "vision.pre_norm": False,
        "vision.pooling": "cls",
        "text.causal": True,
        "text.pooling": "end",
        "text.projection_bias": False,
    }
    if config.type == "grain":  # a shared projection would load, and be trained on as two
        expected["decoder.share_projection"] = False
    odd = []
    for path, official in expected.items():
        part, _, name = path.partition(".")
        if (value := getattr(getattr(config, part), name)) != official:
            odd.append((f"model.{path}={value}", f"--model.{path}={str(official).lower()}"))
    if odd:
        found, flags = (", ".join(found for found, _ in odd), " ".join(flag for _, flag in odd))
        raise ValueError(
            f"The official code has no such model: {found}. Export it with --to=huggingface, or "
            f"train one with {flags}."
        )
