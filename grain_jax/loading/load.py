"""Load a trained model of any supported format as a `ModelBundle`:

- a run folder of `python -m grain_jax.train`, the only format with several steps;
- a folder of `python -m grain_jax.export --to=huggingface`;
- a checkpoint file of the official code (.pth), or of `--to=official`;
- a folder of a `CLIPModel` or `SiglipModel` of Hugging Face, or of a model of open_clip;
- a state dict or training checkpoint of open_clip, with its `open_clip_config.json` beside it;
- the name of one of these on the Hugging Face hub, "openai/clip-vit-base-patch16", where there is
  no folder "openai"; "openai/clip-vit-base-patch16@REVISION" for a commit, branch or tag.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grain_jax.config import DecoderConfig, ModelConfig, TextConfig, VisionConfig
from grain_jax.data.tokenizer import ClipTokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.extras import how_to_install
from grain_jax.formats.files import read_json
from grain_jax.formats.grain_reference import from_official
from grain_jax.formats.grain_reference_files import OFFICIAL_FILE, read_official
from grain_jax.formats.huggingface import read_folder
from grain_jax.formats.metadata import exported_model
from grain_jax.formats.pretrained import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    WEIGHTS,
    loaded_model,
    read_huggingface_clip,
    read_open_clip,
)
from grain_jax.formats.pretrained_images import HUGGINGFACE_CONFIG
from grain_jax.formats.weight_files import INDEX, part_names
from grain_jax.models.bundle import ModelBundle
from grain_jax.paths import user_path
from grain_jax.training.run_folder import is_run

KINDS = (
    "a run folder, an export, an official .pth, or a CLIP or SigLIP of Hugging Face or open_clip"
)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
PART = re.compile(r"-\d{5}-of-\d{5}\.\w+$|\.index\.json$")  # of weights in several files
HUB_SETTINGS = ("*.json", "*.txt", "*.model")
OUR_FOLDERS = ("runs", "exports")  # a missing "runs/demo" is not looked for on the hub
OFFICIAL_TEXT_HEAD, OFFICIAL_DECODER_HEADS = 64, 8  # sizes that no tensor shape shows


def read_model(
    path: str | Path, *, step: int | None = None, best: bool = False, mesh: Mesh | None = None
) -> ModelBundle:
    """The model at `path`, a path or a name on the Hugging Face hub.

    Args:
        step: of a run folder, the step of the checkpoint (default: the newest).
        best: of a run folder, load the checkpoint with the best metric.
        mesh: shard the parameters of a run over it; those of other formats are replicated.

    Raises ValueError where there is no model, its format is not supported, or it is damaged.
    """
    path = user_path(path)
    name = str(path)
    if is_run(path):
        from grain_jax.training import checkpoint  # with Orbax, which no other format needs

        return checkpoint.load(path, step=step, best=best, mesh=mesh)
    if step is not None or best:
        raise ValueError(
            f"{name} is not a run folder, so there is no step to choose; leave out step and best."
        )
    loaded = _read_other(path, name)
    if mesh is None:
        return loaded
    everywhere = NamedSharding(mesh, PartitionSpec())
    return dataclasses.replace(loaded, params=jax.device_put(loaded.params, everywhere))


def _read_other(path: Path, name: str) -> ModelBundle:
    on_hub = HUB_NAME.fullmatch(name) and path.parts[0] not in OUR_FOLDERS
    if on_hub and not path.exists() and not path.parent.exists():
        loaded = _read_other(_download(name), name)
        loaded.config.name = name
        return loaded
    if path.is_file():
        if (path.parent / OPEN_CLIP_CONFIG).is_file():  # a training checkpoint of open_clip
            return read_open_clip(path.parent, weights=(path.name,))
        if path.suffix == ".safetensors" or path.name in WEIGHTS or PART.search(path.name):
            raise ValueError(
                f"{name} is a file of weights alone; give its folder, {str(path.parent)!r}, which "
                "has the configuration."
            )
        return _read_official(path)
    if (path / OFFICIAL_FILE).is_file():
        return _read_official(path / OFFICIAL_FILE)
    if (path / HUGGINGFACE_CONFIG).is_file():
        config = read_json(path / HUGGINGFACE_CONFIG)
        if config.get("model_type") == "grain":
            return read_folder(path)
        if "model_type" in config:
            return read_huggingface_clip(path)
    if (path / OPEN_CLIP_CONFIG).is_file():
        return read_open_clip(path)
    what = "There is no" if not path.exists() else "There is no supported model in"
    raise ValueError(f"{what} {name}; expected {KINDS}.{_hint(path)}")


def _hint(path: Path) -> str:
    """How to join weights that a training framework wrote in several files; "" for none."""
    if (path / "zero_to_fp32.py").is_file():
        return (
            " It is a checkpoint of DeepSpeed; zero_to_fp32.py, beside the weights, joins them into"
            " one file."
        )
    if (path / ".metadata").is_file() and any(path.glob("*.distcp")):
        return (
            " It is a distributed checkpoint of torch: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE joins it."
        )
    return ""


def _read_official(path: Path) -> ModelBundle:
    """Reads a checkpoint file; without metadata of grain_jax, sizes are inferred from shapes."""
    file = read_official(path)
    state = file.tensors
    if file.metadata is not None:
        return exported_model(
            file.metadata,
            lambda whole: jax.tree.map(jnp.asarray, from_official(state, whole.model)),
            export=str(path),
            where=f"The metadata of {path}",
        )
    model = _official_config(state, path)
    return loaded_model(
        path.stem,
        model,
        from_official(state, model),
        tokenizer=ClipTokenizer(),
        tokenizer_name="clip",
        preprocessing=Preprocessing(image_size=model.image_size),
    )


def _official_config(state: dict[str, Any], path: Path) -> ModelConfig:
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
            num_heads=max(1, text_width // OFFICIAL_TEXT_HEAD),
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
            num_heads=OFFICIAL_DECODER_HEADS,
            mlp_dim=shape(f"{layers}.0.linear1.weight")[0],
            num_queries=queries - 1,
        )
    return model


def _download(name: str) -> Path:
    """The local folder of a model on the hub, "owner/name" or "owner/name@revision".

    Without a network, the copy of an earlier download. Raises ValueError where there is neither.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"There is no folder {name}; to look for it on the Hugging Face hub: "
            f"{how_to_install('tokenizers')}"
        ) from error
    repository, _, revision = name.partition("@")
    download = functools.partial(snapshot_download, repository, ignore_patterns=["*/*"])
    try:
        # Settings and tokenizer first, which determine the format of the weights to download.
        settings = download(revision=revision or None, allow_patterns=list(HUB_SETTINGS))
        folder = Path(str(settings))
        for file in _weights(folder):
            download(revision=folder.name, allow_patterns=[file])
            if (folder / file).is_file():
                break
            if (index := folder / f"{file}{INDEX}").is_file():  # downloaded with the settings
                download(revision=folder.name, allow_patterns=list(part_names(index)))
                break
    except Exception as error:  # the transport of the hub's client has error types of its own
        raise ValueError(
            f"There is no folder {name}, and the Hugging Face hub did not return it: {error}"
        ) from error
    return folder


def _weights(folder: Path) -> Sequence[str]:
    """Weight files that the model of a folder may have, in the order of `_read_other`."""
    if (folder / HUGGINGFACE_CONFIG).is_file() and "model_type" in read_json(
        folder / HUGGINGFACE_CONFIG
    ):
        return WEIGHTS
    return OPEN_CLIP_WEIGHTS if (folder / OPEN_CLIP_CONFIG).is_file() else (OFFICIAL_FILE,)
