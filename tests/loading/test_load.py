"""Models of other formats, read back: our exports, and files of the official code."""

import fnmatch
import json
import shutil

import jax
import numpy as np
import pytest
import tiny_model

from grain_jax.config import DecoderConfig, ModelConfig, TextConfig, VisionConfig
from grain_jax.data.tokenizer import ClipTokenizer
from grain_jax.formats import huggingface as huggingface_folder
from grain_jax.formats.grain_reference import from_official, to_official
from grain_jax.loading import load
from grain_jax.loading.hub import download
from grain_jax.loading.load import read_model
from grain_jax.models.image_text import abstract_params

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def official_model(kind):
    return ModelConfig(
        type=kind,
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
        {"type": "clip", "region_logit_scale": "own"},
        {"scan_layers": True},
    ],
)
def test_an_export_reads_back_as_it_was(tmp_path, changes):
    loaded = tiny_model.tiny_model(**changes)
    loaded.config.data.data_dir = "/somewhere/private"
    loaded.config.data.mixture = ("/somewhere/private=1",)
    huggingface_folder.write_folder(loaded, tmp_path)
    again = read_model(tmp_path)
    expected = jax.device_get(loaded.params)
    if changes.get("type") == "clip":  # it has a scale of regions that nothing reads
        expected = expected | {"region_logit_scale": again.params["region_logit_scale"]}
    jax.tree.map(np.testing.assert_array_equal, again.params, expected)
    assert (again.step, again.templates) == (loaded.step, loaded.templates)
    assert again.tokenizer.spec() == loaded.tokenizer.spec()
    assert again.config.model == loaded.config.model
    assert "private" not in (tmp_path / "grain_jax.json").read_text()


def test_an_incomplete_folder_is_refused(tmp_path):
    huggingface_folder.write_folder(tiny_model.tiny_model(), tmp_path)
    metadata = json.loads((tmp_path / "grain_jax.json").read_text())
    del metadata["tokenizer"]
    (tmp_path / "grain_jax.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"is incomplete or damaged: KeyError\('tokenizer'\)"):
        read_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is a text, not weights"):
        read_model(tmp_path)


@pytest.mark.parametrize("kind", ["grain", "clip"])
def test_sizes_are_inferred_from_an_official_file(tmp_path, kind):
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
    with pytest.raises(ValueError, match="best"):
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


def test_a_layer_of_a_huge_number_costs_nothing(tmp_path):
    state = to_official(random_params(official_model("clip")), official_model("clip"))
    backbone = {n.removeprefix("backbone."): v for n, v in state.items() if "backbone." in n}
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in backbone.items()}
    tensors["visual.blocks.999999999.x"] = torch.zeros(1)
    torch.save({"backbone_state_dict": tensors}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"vision\.depth=1000000000, and there are"):
        read_model(tmp_path / "checkpoint.pth")
    torch.save({"backbone_state_dict": {0: torch.zeros(1)}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="an entry called 0, expected names"):
        read_model(tmp_path / "checkpoint.pth")


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


CLIP, TIMM = json.dumps({"model_type": "clip"}), json.dumps({"architecture": "vit"})
SPLIT = json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
HUB = {  # files of a repository, and those of them that a download brings
    "both": (
        {"config.json": CLIP, "model.safetensors": "", "pytorch_model.bin": ""}
        | {"open_clip_config.json": "{}", "open_clip_model.safetensors": "", "README.md": ""},
        {"config.json", "open_clip_config.json", "model.safetensors"},
    ),
    "old": (
        {"config.json": CLIP, "pytorch_model.bin": "", "onnx/model.json": "{}", "vocab.txt": ""},
        {"config.json", "pytorch_model.bin", "vocab.txt"},
    ),
    "split": (
        {"config.json": CLIP, "a.safetensors": "", "b.safetensors": "", "c.safetensors": ""}
        | {"model.safetensors.index.json": SPLIT, "pytorch_model.bin": ""},
        {"config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"},
    ),
    "timm": (  # its config.json and model.safetensors are of another library
        {"config.json": TIMM, "model.safetensors": "", "open_clip_config.json": "{}"}
        | {"open_clip_model.safetensors": "", "tokenizer.json": "{}"},
        {"config.json", "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"},
    ),
    "official": ({"checkpoint.pth": "", "other.pth": ""}, {"checkpoint.pth"}),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, and the calls of it; what is downloaded lies in a folder of the commit's name."""
    import huggingface_hub

    requests = []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        requests.append((name, revision))
        if name.startswith("gone/"):
            raise RuntimeError("connection refused")  # transports have errors of their own
        folder = tmp_path / "cache" / "c0ffee"
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in HUB[name.partition("/")[2]][0].items():
            wanted = any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(file, pattern) for pattern in ignore_patterns):
                (folder / file).write_text(content)
        return str(folder)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return requests


@pytest.mark.parametrize("name", HUB)
def test_weights_are_downloaded_in_one_format(hub, name):
    folder = download(f"someone/{name}@v1.0")
    assert {path.name for path in folder.iterdir()} == HUB[name][1]
    assert hub[0] == (f"someone/{name}", "v1.0")
    assert set(hub[1:]) == {(f"someone/{name}", "c0ffee")}  # all of the same commit


def test_a_name_of_the_hub_is_read_and_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    huggingface_folder.write_folder(tiny_model.tiny_model(), tmp_path / "cache")
    monkeypatch.setattr(load, "download", lambda name: tmp_path / "cache")
    assert read_model("someone/model").config.name == "someone/model"


def test_errors_of_the_hub_are_reported(hub):
    with pytest.raises(ValueError, match=r"no folder gone/clip, .* connection refused"):
        read_model("gone/clip")


def test_a_mistake_in_a_path_is_not_looked_up_on_the_hub(hub, tmp_path):
    (tmp_path / "here").mkdir()
    for name in ("runs/dmeo", "exports/demo", "here/demo", "../demo"):
        with pytest.raises(ValueError, match=f"There is no .*{name}"):
            read_model(name)
    assert hub == []


def test_an_official_file_may_lie_beside_any_settings(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    torch.save({"backbone_state_dict": {}}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=r"best\.pth has no tensor backbone"):
        read_model(tmp_path / "best.pth")


def test_a_torch_file_that_claims_more_than_it_holds_is_refused(tmp_path):
    huge = torch.zeros(1).expand(2**20, 2**20)
    torch.save({"backbone_state_dict": {"a": huge}}, tmp_path / "huge.pth")
    assert (tmp_path / "huge.pth").stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"\['a'\] says \[1048576, 1048576\]"):
        read_model(tmp_path / "huge.pth")


def test_weights_fine_tuned_in_pytorch_are_read(tmp_path):
    """With the metadata of the export copied beside them; the message says what is missing."""
    loaded = tiny_model.tiny_model()
    huggingface_folder.write_folder(loaded, tmp_path / "export")
    model = huggingface_folder.read_model(tmp_path / "export", dtype="float32")
    with torch.no_grad():
        model.backbone.logit_scale.add_(1)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"copy that of the export it came from"):
        read_model(tmp_path / "tuned")
    shutil.copy(tmp_path / "export" / "grain_jax.json", tmp_path / "tuned")
    again = read_model(tmp_path / "tuned").params
    assert again.pop("logit_scale") == loaded.params["logit_scale"] + 1
    expected = {k: v for k, v in jax.device_get(loaded.params).items() if k != "logit_scale"}
    jax.tree.map(np.testing.assert_array_equal, again, expected)
    (tmp_path / "tuned" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        read_model(tmp_path / "tuned")
