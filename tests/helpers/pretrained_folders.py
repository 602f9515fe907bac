"""Small models of transformers and open_clip with random weights, in folders as they are given."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TOWER = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {"image_size": 32, "patch_size": 8}


def randomized(model: Any, folder: Path, *, seed: int = 0) -> Any:
    """Saved with random weights that depend on `seed` alone."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.eval().save_pretrained(folder)
    return model


def save_clip(folder: Path) -> Any:
    """A CLIPModel; vision and text differ in width, as they mostly do."""
    text = {"hidden_size": 32, "vocab_size": 49_408, "max_position_embeddings": 12}
    vision = {"hidden_size": 48, **IMAGE, "layer_norm_eps": 1e-4}
    config = transformers.CLIPConfig(
        text_config=TOWER | text, vision_config=TOWER | vision, projection_dim=24
    )
    return randomized(transformers.CLIPModel(config), folder)


def save_siglip(folder: Path) -> Any:
    """A SiglipModel with a tokenizer that pads."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    text = {"hidden_size": 32, "vocab_size": 12, "max_position_embeddings": 8}
    vision = {"hidden_size": 32, **IMAGE}
    config = transformers.SiglipConfig(
        text_config=TOWER | text | {"projection_size": 32, "pad_token_id": 1},
        vision_config=TOWER | vision,
    )
    model = randomized(transformers.SiglipModel(config), folder)
    words = ["[UNK]", "</s>", "a", "photo", "of", "cat", "dog", "red", "green", "blue", "bird", "x"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="[UNK]"
    ).save_pretrained(folder)
    return model


def open_clip_state(model: Any) -> dict[str, Any]:
    """The weights of a CLIPModel under the names of open_clip, written down by hand."""
    state, found = model.state_dict(), {}

    def layers(theirs, ours):
        for i in range(TOWER["num_hidden_layers"]):
            old, new = f"{theirs}.encoder.layers.{i}", f"{ours}.resblocks.{i}"
            for kind in ("weight", "bias"):
                qkv = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                found[f"{new}.attn.in_proj_{kind}"] = torch.cat(qkv)
                found[f"{new}.attn.out_proj.{kind}"] = state[f"{old}.self_attn.out_proj.{kind}"]
                found[f"{new}.mlp.c_fc.{kind}"] = state[f"{old}.mlp.fc1.{kind}"]
                found[f"{new}.mlp.c_proj.{kind}"] = state[f"{old}.mlp.fc2.{kind}"]
                for norm in "12":
                    found[f"{new}.ln_{norm}.{kind}"] = state[f"{old}.layer_norm{norm}.{kind}"]

    layers("vision_model", "visual.transformer")
    layers("text_model", "transformer")
    image, text = "vision_model.embeddings", "text_model.embeddings"
    found["visual.class_embedding"] = state[f"{image}.class_embedding"]
    found["visual.conv1.weight"] = state[f"{image}.patch_embedding.weight"]
    found["visual.positional_embedding"] = state[f"{image}.position_embedding.weight"]
    found["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    found["token_embedding.weight"] = state[f"{text}.token_embedding.weight"]
    found["positional_embedding"] = state[f"{text}.position_embedding.weight"]
    found["text_projection"] = state["text_projection.weight"].T.contiguous()
    found["logit_scale"] = state["logit_scale"]
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        found[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
    return found


OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 12}
        | {"patch_size": 8, "mlp_ratio": 64 / 48},
        "text_cfg": {"context_length": 12, "vocab_size": 49_408, "width": 32, "heads": 4}
        | {"layers": 2, "mlp_ratio": 2.0},
    },
    "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "shortest"},
}


def save_open_clip(model: Any, folder: Path) -> None:
    """The weights of a CLIPModel as a training checkpoint of open_clip; its norms have eps 1e-5."""
    state = {f"module.{name}": value for name, value in open_clip_state(model).items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
