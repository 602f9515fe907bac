"""A trained model as a Hugging Face folder that `transformers` loads without this package."""

import copy
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.config import ModelConfig
from grain_jax.interop.fast_tokenizer import fast_tokenizer
from grain_jax.interop.official import Params, to_official
from grain_jax.interop.parity import Inputs, Outputs
from grain_jax.training.checkpoint import LoadedModel

CODE = ("configuration_grain.py", "modeling_grain.py", "processing_grain.py", "pipeline_grain.py")
TASK = "zero-shot-image-classification"
DTYPES = ("float32", "bfloat16")


def write_folder(loaded: LoadedModel, folder: Path, *, dtype: str = "float32") -> None:
    """Weights, configuration, tokenizer, image processor and the code that reads them."""
    model = torch_model(loaded, prompt=loaded.templates[0])
    folder.mkdir(parents=True, exist_ok=True)
    if dtype == "bfloat16":
        model = copy.deepcopy(model).bfloat16()
    model.save_pretrained(folder)
    tokenizer = fast_tokenizer(
        loaded.tokenizer, max_length=loaded.config.model.text.context_length
    )
    tokenizer.save_pretrained(folder)
    image_processor(loaded).save_pretrained(folder)
    for name in CODE:
        with resources.as_file(resources.files("grain_jax.interop.huggingface") / name) as file:
            shutil.copyfile(file, folder / name)


def torch_model(loaded: LoadedModel, *, prompt: str = "{}", params: Params | None = None) -> Any:
    """`GrainModel` in eval mode with the weights of `loaded`, or with other `params`."""
    import torch

    from grain_jax.interop.huggingface.configuration_grain import DECODER, TEXT, VISION, GrainConfig
    from grain_jax.interop.huggingface.modeling_grain import GrainModel

    config = loaded.config.model
    hf_config = GrainConfig(
        kind=config.kind,
        image_size=config.image_size,
        embed_dim=config.embed_dim,
        vision=_fields(config.vision, VISION),
        text=_fields(config.text, TEXT),
        decoder=_fields(config.decoder, DECODER),
        max_logit_scale=config.max_logit_scale,
        region_logit_scale=config.region_logit_scale,
        prompt=prompt,
        auto_map={
            "AutoConfig": "configuration_grain.GrainConfig",
            "AutoModel": "modeling_grain.GrainModel",
        },
        custom_pipelines={
            TASK: {
                "impl": "pipeline_grain.GrainZeroShotPipeline",
                "pt": ["AutoModel"],
                "tf": [],
                "type": "multimodal",
                "default": {},
            }
        },
    )
    model = GrainModel(hf_config).eval()
    wanted = set(model.state_dict())
    state = to_official(loaded.params if params is None else params, config, unused=False)
    tensors = {
        name: torch.from_numpy(np.array(value, np.float32))
        for name, value in state.items()
        if name in wanted  # a CLIP model has no use for a scale of regions
    }
    model.load_state_dict(tensors, strict=True)
    return model


def image_processor(loaded: LoadedModel) -> Any:
    """What makes the pixels that `loaded` was evaluated on."""
    from grain_jax.interop.huggingface.processing_grain import GrainImageProcessor

    spec = loaded.preprocessing
    processor = GrainImageProcessor(
        image_size=spec.image_size,
        resize=spec.resize,
        interpolation=spec.interpolation,
        image_mean=spec.mean,
        image_std=spec.std,
    )
    processor.auto_map = {"AutoImageProcessor": "processing_grain.GrainImageProcessor"}
    return processor


def torch_outputs(model: Any, inputs: Inputs) -> Outputs:
    """What a `GrainModel` says, under the names of `interop.parity.our_outputs`."""
    import torch

    with torch.no_grad():
        output = model(
            pixel_values=torch.from_numpy(inputs.pixels.transpose(0, 3, 1, 2).copy()),
            input_ids=torch.from_numpy(inputs.tokens.astype(np.int64)),
        )
    names = ("image_embeds", "text_embeds", "region_embeds", "pred_boxes")
    found = {name: getattr(output, name) for name in names}
    return {name: value.float().numpy() for name, value in found.items() if value is not None}


def _fields(part: Any, names: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(part, name) for name in names}


def model_config_of(config: Any) -> ModelConfig:
    """Our configuration of a `GrainConfig`."""
    model = ModelConfig(kind=config.kind, image_size=config.image_size, embed_dim=config.embed_dim)
    for name in ("vision", "text", "decoder"):
        for field, value in getattr(config, name).items():
            setattr(getattr(model, name), field, value)
    model.max_logit_scale = config.max_logit_scale
    model.region_logit_scale = config.region_logit_scale
    return model
