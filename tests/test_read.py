"""Models of other formats, read back: our exports, and files of the official code."""

import json

import jax
import numpy as np
import pytest
import tiny_model

from grain_jax.config import DecoderConfig, ModelConfig, TextConfig, VisionConfig
from grain_jax.data.tokenizer import ClipTokenizer
from grain_jax.interop import huggingface_folder
from grain_jax.interop.official import from_official, to_official
from grain_jax.interop.read import read_model
from grain_jax.models.build import abstract_params

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def official_model(kind):
    return ModelConfig(
        kind=kind,
        image_size=32,
        embed_dim=24,
        vision=VisionConfig(patch_size=8, width=32, depth=2, num_heads=4, mlp_ratio=3.0),
        text=TextConfig(vocab_size=90, context_length=9, width=64, depth=3, num_heads=1),
        decoder=DecoderConfig(width=16, depth=2, num_heads=8, mlp_dim=24, num_queries=4),
        dtype="float32",
    )


def random_params(config):
    rng = np.random.default_rng(0)
    shapes = abstract_params(config)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decoder__share_projection": True},
        {"region_logit_scale": "own"},
        {"kind": "clip", "region_logit_scale": "own"},
        {"scan_layers": True},
    ],
)
def test_an_export_reads_back_as_it_was(tmp_path, changes):
    loaded = tiny_model.tiny_model(**changes)
    loaded.config.data.directory = "/somewhere/private"
    huggingface_folder.write_folder(loaded, tmp_path)
    again = read_model(tmp_path)
    expected = jax.device_get(loaded.params)
    if changes.get("kind") == "clip":  # it has a scale of regions that nothing reads
        expected = expected | {"region_logit_scale": again.params["region_logit_scale"]}
    jax.tree.map(np.testing.assert_array_equal, again.params, expected)
    assert (again.step, again.templates) == (loaded.step, loaded.templates)
    assert again.tokenizer.spec() == loaded.tokenizer.spec()
    assert again.config.model == loaded.config.model
    assert "private" not in (tmp_path / "grain_jax.json").read_text()


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    huggingface_folder.write_folder(tiny_model.tiny_model(), tmp_path)
    metadata = json.loads((tmp_path / "grain_jax.json").read_text())
    del metadata["tokenizer"]
    (tmp_path / "grain_jax.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"grain_jax.json is not whole: KeyError\('tokenizer'\)"):
        read_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no safetensors file"):
        read_model(tmp_path)


@pytest.mark.parametrize("kind", ["grain", "clip"])
def test_an_official_file_tells_its_own_sizes(tmp_path, kind):
    config, path = official_model(kind), tmp_path / "checkpoint.pth"
    params = random_params(config)
    parts = {"backbone_state_dict": {}, "state_dict": {}}
    for name, value in to_official(params, config, num_classes=3).items():
        part, _, own = name.partition(".")
        whole = "backbone_state_dict" if part == "backbone" else "state_dict"
        parts[whole][f"module.{own}"] = torch.from_numpy(np.array(value))
    torch.save(parts, path)
    loaded = read_model(path)
    if kind == "clip":
        config.decoder = loaded.config.model.decoder
    assert loaded.config.model == config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert isinstance(loaded.tokenizer, ClipTokenizer)
    assert (loaded.preprocessing.image_size, loaded.preprocessing.resize) == (32, "squash")
    with pytest.raises(ValueError, match="no step to choose"):
        read_model(path, best=True)


def test_an_official_file_without_a_tensor_is_refused_by_its_name(tmp_path):
    config, path = official_model("grain"), tmp_path / "checkpoint.pth"
    state = to_official(random_params(config), config, num_classes=3)
    del state["backbone.visual.pos_embed"]
    backbone = {n.removeprefix("backbone."): v for n, v in state.items() if "backbone." in n}
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in backbone.items()}
    torch.save({"backbone_state_dict": tensors}, path)
    with pytest.raises(ValueError, match=r"has no tensor backbone.visual.pos_embed"):
        read_model(path)


def test_the_table_of_names_has_the_parts_of_pretrained_towers():
    """Patch without bias, norm before the layers, attention pool, and a bias on the projection."""
    config = official_model("clip")
    config.vision.patch_bias, config.vision.pre_norm, config.vision.pooling = False, True, "map"
    config.text.causal, config.text.pooling, config.text.projection_bias = False, "last", True
    params = random_params(config)
    state = to_official(params, config)
    assert "backbone.visual.cls_token" not in state
    assert state["backbone.visual.norm_pre.weight"].shape == (32,)
    assert state["backbone.visual.attn_pool.attn.in_proj_weight"].shape == (96, 32)
    assert state["backbone.text_projection_bias"].shape == (24,)
    assert len(state) == len(jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, from_official(state, config), params)
