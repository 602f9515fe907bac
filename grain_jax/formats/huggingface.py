"""A trained model as a Hugging Face folder that `transformers` loads without this package.

Beside the files of transformers, `grain_jax.json` holds the metadata of a checkpoint, from which
`read_folder` restores exactly the same model.
"""

import copy
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_jax.config import TrainConfig
from grain_jax.formats.fast_tokenizer import fast_tokenizer
from grain_jax.formats.files import model_type, read_json
from grain_jax.formats.format import Export
from grain_jax.formats.grain_reference import Params, from_official, to_official
from grain_jax.formats.metadata import exported_model, portable_metadata
from grain_jax.formats.model_card import model_card
from grain_jax.formats.parity import Inputs, Outputs
from grain_jax.formats.weight_files import read_weights
from grain_jax.models.bundle import ModelBundle
from grain_jax.zero_shot.calibration import FILE as CALIBRATION
from grain_jax.zero_shot.calibration import Calibration, from_json

CODE = (
    "configuration_grain.py",
    "modeling_grain.py",
    "processing_grain.py",
    "scores_grain.py",
)
PIPELINE_METHODS = ("name", "description")  # by which the exported pipeline scores
# What the pipeline applies, beside what it was fitted for.
USED_BY_PIPELINE = ("temperature", "class_shift", "none_of_these", "label_sets", "seen_cosine")
TASK = "zero-shot-image-classification"
METADATA, WEIGHTS = "grain_jax.json", "model.safetensors"
TEXTS = (
    "a red bird",
    "  A photo of\ta BLACK cat's  two yellow-eyed kittens, 12 weeks old!",
    "a dog runs over the wet grass of a park while two children in blue coats look at it " * 3,
)


class HuggingFace:
    """The format of `export --to=huggingface`."""

    title = "an export for Hugging Face"
    weights = (WEIGHTS,)
    dtypes = ("float32", "bfloat16")

    def recognises(self, path: Path) -> bool:
        return model_type(path) == "grain"

    def read(self, path: Path) -> ModelBundle:
        return read_folder(path)

    def write(self, loaded: ModelBundle, folder: Path, *, dtype: str = "float32") -> None:
        from transformers.utils import logging

        logging.disable_progress_bar()
        write_folder(loaded, folder, dtype=dtype)
        compare_tokens(loaded, folder)

    def outputs(self, folder: Path, *, dtype: str) -> Callable[[Inputs], Outputs]:
        model = read_model(folder, dtype=dtype)
        return lambda inputs: torch_outputs(model, inputs)

    def finish(self, loaded: ModelBundle, export: Export) -> Sequence[str]:
        calibration, notes = calibrate_pipeline(export.folder)
        card = model_card(
            loaded,
            export.run,
            export.differences,
            dtype=export.dtype,
            calibration=calibration,
        )
        (export.folder / "README.md").write_text(card, encoding="utf-8")
        return notes


def write_folder(loaded: ModelBundle, folder: Path, *, dtype: str = "float32") -> None:
    """Writes weights (in `dtype`), configuration, tokenizer, processors and the model's code."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch_model(loaded).to(getattr(torch, dtype)).save_pretrained(folder)
    # safetensors makes weights readable only by their owner; give them the mode of the other files.
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", weights)
    processor(loaded).save_pretrained(folder)
    for name in CODE:
        with resources.as_file(resources.files("grain_jax.formats.torch_grain") / name) as file:
            shutil.copyfile(file, folder / name)
    (folder / METADATA).write_text(
        json.dumps(portable_metadata(loaded), indent=1), encoding="utf-8"
    )


def calibrate_pipeline(folder: Path) -> tuple[Calibration | None, list[str]]:
    """Gives the pipeline the folder's calibration, as `calibration` in config.json.

    Returns what the pipeline can use of it, None for nothing, and notes on what it cannot use.
    """
    if not (folder / CALIBRATION).is_file():
        return None, []
    content, config = read_json(folder / CALIBRATION), read_json(folder / "config.json")
    calibration = from_json(content, CALIBRATION)
    if calibration.method not in PIPELINE_METHODS:
        return None, [
            f"The pipeline of the export does not use the calibration, which is for the method "
            f"{calibration.method!r}: it scores by {' or '.join(PIPELINE_METHODS)}. grain_jax.load "
            "of the export uses it; calibrate with --method=description for the pipeline."
        ]
    used, notes = calibration, []
    if lacking := _undescribed(content):
        notes = [
            f"{lacking} of the {len(calibration.classes)} classes that the calibration was fitted "
            "to have no descriptions, and the pipeline of the export takes some of every label: of "
            f"the calibration it can use {_of_others(calibration)}. grain_jax.load of the export "
            "uses all of it; describe all classes and calibrate again for the pipeline."
        ]
        if calibration.class_shift is not None:
            return None, notes
        used = dataclasses.replace(
            calibration, none_of_these=None, label_sets=None, seen_cosine=None
        )
    fitted = content["fitted_for"]
    config["calibration"] = {
        **{name: fitted[name] for name in ("method", "alpha", "scoring", "texts_sha256")},
        **{name: content[name] for name in USED_BY_PIPELINE},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return used, notes


def _of_others(calibration: Calibration) -> str:
    """What holds for other classes and texts than those that a calibration was fitted to."""
    return "the temperature alone" if calibration.class_shift is None else "nothing"


def _undescribed(content: Mapping[str, Any]) -> int:
    """How many classes of a calibration by description the pipeline cannot be asked for."""
    described = content["report"].get("set", {}).get("descriptions")  # of a report of `calibrate`
    if content["fitted_for"]["method"] == "name" or described is None:
        return 0
    return len(content["fitted_for"]["classes"]) - described["classes_with_any"]


def compare_tokens(loaded: ModelBundle, folder: Path) -> None:
    """Raises ValueError where the folder's own tokenizer, as a reader gets it, gives other ids."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    length = loaded.config.data.caption_length
    ours, _ = loaded.tokenizer.encode(TEXTS, length)
    for text, row in zip(TEXTS, ours.tolist(), strict=True):
        ids = tokenizer(text, truncation=True, padding="max_length", max_length=length)
        used = [i for i, kept in zip(ids["input_ids"], ids["attention_mask"], strict=True) if kept]
        whole = ids["input_ids"] if loaded.config.model.text.pooling == "last" else used
        if row[: len(whole)] != whole:
            raise ValueError(f"The exported tokenizer takes {text!r} for {whole}, ours for {row}.")


def read_folder(folder: Path) -> ModelBundle:
    """The model that `write_folder` wrote, with its weights in float32.

    Nothing in the folder is executed. Raises ValueError where a file is missing or invalid.
    """
    if not (folder / METADATA).is_file():
        raise ValueError(
            f"{folder} has no {METADATA}, which holds the settings of its model. For a model that "
            "was fine-tuned in PyTorch, copy that of the export it came from beside its weights."
        )
    metadata = read_json(folder / METADATA)
    state = read_weights(folder, (WEIGHTS,))

    def params(whole: TrainConfig) -> Params:
        config = whole.model
        if config.type == "grain" and config.decoder.share_projection:
            state["decoder.obj_proj"] = state["decoder.img_proj"]
        if config.type == "clip" and config.region_logit_scale == "own":  # not read by CLIP
            scale = np.float32(math.log(config.init_logit_scale))
            state["decoder.region_logit_scale"] = np.asarray(scale)
        sigmoid = whole.loss.image_caption == "sigmoid"
        return jax.tree.map(jnp.asarray, from_official(state, config, sigmoid=sigmoid))

    where = str(folder / METADATA)
    return exported_model(metadata, params, export=str(folder), where=where)


def read_model(folder: Path, *, dtype: str) -> Any:
    """`GrainModel` of a folder, in eval mode, with this package's copy of its code."""
    import torch

    from grain_jax.formats.torch_grain.modeling_grain import GrainModel

    return GrainModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def torch_model(loaded: ModelBundle) -> Any:
    """`GrainModel` in eval mode with the weights of `loaded`."""
    import torch

    from grain_jax.formats.torch_grain.configuration_grain import DECODER, TEXT, VISION, GrainConfig
    from grain_jax.formats.torch_grain.modeling_grain import GrainModel

    config = loaded.config.model
    hf_config = GrainConfig(
        type=config.type,
        image_size=config.image_size,
        embed_dim=config.embed_dim,
        vision=_fields(config.vision, VISION),
        text=_fields(config.text, TEXT),
        decoder=_fields(config.decoder, DECODER),
        init_logit_scale=config.init_logit_scale,
        image_caption=loaded.config.loss.image_caption,
        init_sigmoid_scale=config.init_sigmoid_scale,
        init_logit_bias=config.init_logit_bias,
        max_logit_scale=config.max_logit_scale,
        region_logit_scale=config.region_logit_scale,
        templates=loaded.templates,
        prompt_ensembling=loaded.config.evaluation.prompt_ensembling,
        region_aggregation=loaded.config.evaluation.region_aggregation,
        description_length=loaded.config.data.description_length,
        **loaded.learned.metadata(),
        auto_map={
            "AutoConfig": "configuration_grain.GrainConfig",
            "AutoModel": "modeling_grain.GrainModel",
            "AutoModelForZeroShotImageClassification": "modeling_grain.GrainModel",
        },
        custom_pipelines={
            TASK: {
                "impl": "processing_grain.GrainZeroShotPipeline",
                "pt": ["AutoModel"],
                "tf": [],
                "type": "multimodal",
                "default": {},
            }
        },
    )
    model = GrainModel(hf_config).eval()
    wanted = set(model.state_dict())
    state = to_official(loaded.params, config, unused=False)
    tensors = {
        name: torch.from_numpy(np.array(value, np.float32))
        for name, value in state.items()
        if name in wanted  # CLIP has no region scale, a shared projection has one name
    }
    model.load_state_dict(tensors, strict=True)
    return model


def processor(loaded: ModelBundle) -> Any:
    """`GrainProcessor` with the preprocessing and tokenizer that `loaded` was evaluated with."""
    from grain_jax.formats.torch_grain.processing_grain import GrainImageProcessor, GrainProcessor

    spec, data = loaded.preprocessing, loaded.config.data
    images: Any = GrainImageProcessor(
        image_size=spec.image_size,
        resize=spec.resize,
        interpolation=spec.interpolation,
        image_mean=spec.mean,
        image_std=spec.std,
    )
    images.auto_map = {"AutoImageProcessor": "processing_grain.GrainImageProcessor"}
    # Not the context length: positions beyond the captions were never trained.
    tokenizer = fast_tokenizer(loaded.tokenizer, max_length=data.caption_length)
    whole: Any = GrainProcessor(
        images,
        tokenizer,
        description_length=data.description_length,
        padding="max_length" if loaded.config.model.text.pooling == "last" else "longest",
    )
    whole.auto_map = {"AutoProcessor": "processing_grain.GrainProcessor"}
    return whole


def torch_outputs(model: Any, inputs: Inputs) -> Outputs:
    """All outputs of a `GrainModel`, untrained ones included, named as in `parity.jax_outputs`."""
    import torch

    own = model.config
    model.config = copy.deepcopy(own)
    model.config.regions_trained = model.config.boxes_trained = True
    pixels = torch.from_numpy(inputs.pixels.transpose(0, 3, 1, 2).copy())
    tokens = torch.from_numpy(inputs.tokens.astype(np.int64))
    try:
        with torch.no_grad():
            found = dict(model(pixel_values=pixels, input_ids=tokens, description_ids=tokens))
            found["image_features"] = model.get_image_features(pixels).pooler_output
            found["text_features"] = model.get_text_features(tokens).pooler_output
            found["logit_scale"] = model.logit_factor()
            if model.config.type == "grain":
                found["region_logit_scale"] = model.region_logit_factor()
    finally:
        model.config = own
    return {name: value.float().numpy() for name, value in found.items()}


def _fields(part: Any, names: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(part, name) for name in names}
