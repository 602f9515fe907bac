"""Read and write checkpoint files of the official code.

Such a file holds two state dicts, `backbone_state_dict` of a `CLIP_VIT*` and `state_dict` of an
`ObjDecoder`, with the names of the bare modules or those of `DistributedDataParallel` and
`torch.compile`. Files written by grain_jax have a third entry, which the official code ignores: the
metadata (numbers of heads, tokenizer, preprocessing), and a separate scale of region logits and the
bias of a sigmoid loss, which the official code does not have.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_jax.config import DecoderConfig, ModelConfig, TextConfig, VisionConfig, vision_variant
from grain_jax.data.tokenizer import ClipTokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.formats.files import read_torch, torch_array
from grain_jax.formats.format import Export
from grain_jax.formats.grain_reference import from_official, to_official
from grain_jax.formats.metadata import exported_model, portable_metadata
from grain_jax.formats.parameter_names import LOGIT_BIAS
from grain_jax.formats.parity import Inputs, Outputs
from grain_jax.formats.pretrained import WEIGHTS, OpenClip, loaded_model
from grain_jax.formats.weight_files import PART
from grain_jax.formats.wrapped_names import unwrapped_names
from grain_jax.models.bundle import ModelBundle

BACKBONE, DECODER = "backbone_state_dict", "state_dict"
OFFICIAL_FILE = "checkpoint.pth"  # in the folder of an export
EXTRA, METADATA = "grain_jax", "metadata"
REGION_SCALE = "region_logit_scale"
ADDED = {REGION_SCALE: f"decoder.{REGION_SCALE}", "logit_bias": LOGIT_BIAS}  # in the third entry
MAX_BYTES = 8 * 2**30
CONSTRUCTORS = {"CLIP_VITS16": "S/16", "CLIP_VITB16": "B/16", "CLIP_VITL14": "L/14"}
NOT_OF_THE_MODEL = {"position_init", "initializer", "token_init_std", "dropout", "num_queries"}
TEXT_HEAD, DECODER_HEADS = 64, 8  # sizes that no tensor shape shows


class Official:
    """The format of the official code: a checkpoint file under any name, or a folder with one."""

    title = "an official checkpoint (.pth)"
    weights = (OFFICIAL_FILE,)
    dtypes = ("float32",)

    def recognises(self, path: Path) -> bool:
        if not path.is_file():
            return (path / OFFICIAL_FILE).is_file()
        of_a_folder = path.suffix == ".safetensors" or path.name in WEIGHTS
        return not (of_a_folder or PART.search(path.name) or OpenClip().recognises(path))

    def read(self, path: Path) -> ModelBundle:
        """Reads a checkpoint; without metadata of grain_jax, sizes are inferred from shapes."""
        path = path if path.is_file() else path / OFFICIAL_FILE
        file = read_official(path)
        if file.metadata is not None:
            return exported_model(
                file.metadata,
                lambda whole: jax.tree.map(
                    jnp.asarray,
                    from_official(
                        file.tensors,
                        whole.model,
                        sigmoid=whole.loss.image_caption == "sigmoid",
                    ),
                ),
                export=str(path),
                where=f"The metadata of {path}",
            )
        model = _inferred_config(file.tensors, path)
        return loaded_model(
            path.stem,
            model,
            from_official(file.tensors, model),
            tokenizer=ClipTokenizer(),
            tokenizer_name="clip",
            preprocessing=Preprocessing(image_size=model.image_size),
        )

    def write(self, loaded: ModelBundle, folder: Path, *, dtype: str = "float32") -> None:
        save_official(loaded, folder / OFFICIAL_FILE)

    def outputs(self, folder: Path, *, dtype: str) -> Callable[[Inputs], Outputs]:
        """Those of the torch model, which has the names that the file has."""
        from grain_jax.formats.huggingface import torch_model, torch_outputs

        model = torch_model(self.read(folder))
        return lambda inputs: torch_outputs(model, inputs)

    def finish(self, loaded: ModelBundle, export: Export) -> Sequence[str]:
        config, spec = loaded.config.model, loaded.preprocessing
        if name := constructor(config):
            queries = config.decoder.num_queries + 1
            decoder = f" and ObjDecoder(num_queries={queries}, ...)"
            notes = [f"Loads into {name}(){decoder if config.type == 'grain' else ''}."]
        else:
            notes = [
                "No CLIP_VIT* of the official code has these sizes: give its classes those of the "
                "run's config.json, the number of heads too, which no shape would reveal."
            ]
        if "logit_bias" in loaded.params:
            notes.append(
                "It was trained with the sigmoid loss of images and captions, and the official "
                f"code has only a softmax: the bias of its logits is kept apart, under {EXTRA!r}."
            )
        if spec != Preprocessing() or not isinstance(loaded.tokenizer, ClipTokenizer):
            notes.append(
                "The official scripts squash images to a square of 224 pixels, take ImageNet's "
                "mean and standard deviation, and CLIP's words. This model was trained on others: "
                f"{json.dumps(spec.spec())}, tokenizer {loaded.tokenizer.spec()['kind']}."
            )
        return notes


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
        if own in ADDED:
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
    for own, name in ADDED.items():
        if own in extra:
            found[name] = _array(path, f"{EXTRA}[{own!r}]", extra[own])
    if METADATA not in extra:
        return OfficialFile(found, metadata=None)
    try:
        metadata = json.loads(extra[METADATA])
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {EXTRA}[{METADATA!r}] is not JSON: {error}") from error
    return OfficialFile(found, _mapping(path, f"{EXTRA}[{METADATA!r}]", metadata))


def _inferred_config(state: dict[str, Any], path: Path) -> ModelConfig:
    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise ValueError(
                f"{path} has no tensor {name}; it is not a model of the official code."
            )
        return state[name].shape

    def depth(prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        numbers = [int(match[1]) for name in state if (match := pattern.match(name))]
        return 1 + max(numbers, default=-1)

    visual = "backbone.visual"
    width, _, patch, _ = shape(f"{visual}.patch_embed.proj.weight")
    side = round((shape(f"{visual}.pos_embed")[1] - 1) ** 0.5)
    vocabulary, text_width = shape("backbone.token_embedding.weight")
    model = ModelConfig(
        type="grain" if any(name.startswith("decoder.") for name in state) else "clip",
        image_size=side * patch,
        embed_dim=shape("backbone.text_projection")[1],
        vision=VisionConfig(
            patch_size=patch,
            width=width,
            depth=depth(f"{visual}.blocks"),
            num_heads=width // shape(f"{visual}.blocks.0.attn.q_norm.weight")[0],
            mlp_ratio=shape(f"{visual}.blocks.0.mlp.fc1.weight")[0] / width,
        ),
        text=TextConfig(
            vocab_size=vocabulary,
            context_length=shape("backbone.positional_embedding")[0],
            width=text_width,
            depth=depth("backbone.transformer.resblocks"),
            num_heads=max(1, text_width // TEXT_HEAD),
            mlp_ratio=shape("backbone.transformer.resblocks.0.mlp.c_fc.weight")[0] / text_width,
        ),
        dtype="float32",
    )
    if model.type == "grain":
        queries, decoder_width = shape("decoder.query_embed.weight")
        layers = "decoder.transformer.decoder.layers"
        model.decoder = DecoderConfig(
            width=decoder_width,
            depth=depth(layers),
            num_heads=DECODER_HEADS,
            mlp_dim=shape(f"{layers}.0.linear1.weight")[0],
            num_queries=queries - 1,
        )
    return model


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
