"""The export command: every output compared, official files to the bit, and what is refused."""

import dataclasses
import json
import pickle
import re
import sys

import jax
import numpy as np
import official_golden
import pytest
from tiny_model import tiny_model, write_run

from grain_jax import export
from grain_jax.config import ModelConfig, vision_variant
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.formats import grain_reference_files, parity
from grain_jax.formats import huggingface as huggingface_folder
from grain_jax.formats.grain_reference import from_official, to_official
from grain_jax.formats.parameter_names import unused_shapes
from grain_jax.loading.load import read_model

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
torch.set_num_threads(1)  # of models so small, threads would only wait for each other

BOTH = {
    *("image_features", "text_features", "image_embeds", "text_embeds"),
    *("logit_scale", "logits_per_image"),
}
REGIONS = {"region_embeds", "pred_boxes", "region_logit_scale", "description_scores"}


def run_export(*arguments) -> int:
    return export.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(tiny_model(), folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"region_logit_scale": "own"},
        {"decoder__share_projection": True, "vision__qk_norm": False},
        {"scan_layers": True, "vision__activation": "quick_gelu", "init_logit_scale": 1.0},
        {"type": "clip"},
    ],
    ids=["own scale", "shared, no qk norm", "scan", "clip"],
)
def test_every_output_of_every_kind_of_model(changes):
    loaded = tiny_model(**changes)
    config = loaded.config.model
    model = huggingface_folder.torch_model(loaded)
    ours = parity.jax_outputs(config)
    differences = parity.compare(
        lambda inputs: ours(loaded.params, inputs),
        lambda inputs: huggingface_folder.torch_outputs(model, inputs),
        [parity.random_inputs(config, count=3)],
    )
    expected = BOTH if config.type == "clip" else BOTH | REGIONS
    assert {found.output for found in differences} == expected
    assert max(found.absolute for found in differences) < 1e-5


def test_a_command_writes_what_it_found(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_export("--checkpoint", run, "--to=official", "--out", out) == 0
    printed = capsys.readouterr()
    assert "description_scores" in printed.out
    assert "the number of heads too" in printed.err
    report = json.loads((out / "parity.json").read_text())
    found = {(entry["inputs"], entry["output"]) for entry in report["differences"]}
    assert found == {(kind, name) for kind in ("random", "real") for name in BOTH | REGIONS}
    for entry in report["differences"]:
        assert 0 <= entry["absolute"] < report["tolerance"] == 1e-4
        assert 0 <= entry["relative"] < 1e-4
    assert {path.name for path in out.iterdir()} == {"checkpoint.pth", "parity.json"}


def test_a_wrong_conversion_fails_and_names_the_output(run, tmp_path, capsys, monkeypatch):
    def wrong(*args, **kwargs):
        state = to_official(*args, **kwargs)
        state["decoder.obj_proj"] = state["decoder.obj_proj"][:, ::-1]
        return state

    monkeypatch.setattr(huggingface_folder, "to_official", wrong)
    out = tmp_path / "out"
    assert run_export("--checkpoint", run, "--to=huggingface", "--out", out) == 2
    error = capsys.readouterr().err
    assert "region_embeds on random inputs by" in error
    assert "description_scores on real inputs by" in error
    assert "pred_boxes" not in error
    assert "image_embeds" not in error
    assert list(tmp_path.iterdir()) == []  # nobody shall use it


@pytest.mark.parametrize("value", [np.nan, 1.001])
def test_the_tolerance_is_kept(value, tmp_path):
    ours = {"image_embeds": np.array([0.5, 1.0], np.float32), "boxes": np.ones(2, np.float32)}
    theirs = {"image_embeds": np.array([0.5, value], np.float32), "boxes": np.ones(2, np.float32)}
    inputs = parity.random_inputs(tiny_model().config.model)
    differences = parity.compare(lambda _: ours, lambda _: theirs, [inputs])
    with pytest.raises(ValueError, match="image_embeds on random inputs") as error:
        parity.write_parity(differences, tmp_path)
    assert "boxes" not in str(error.value)
    with pytest.raises(ValueError, match="gives no boxes"):
        parity.compare(lambda _: ours, lambda _: {"image_embeds": ours["image_embeds"]}, [inputs])


def test_without_its_data_a_run_is_compared_on_random_inputs(tmp_path, capsys):
    loaded = tiny_model(type="clip")
    loaded.config.data.dataset, loaded.config.data.data_dir = "tfds", str(tmp_path / "gone")
    write_run(loaded, tmp_path / "run")
    arguments = ("--checkpoint", tmp_path / "run", "--to=official", "--out", tmp_path / "out")
    assert run_export(*arguments) == 0
    assert "random inputs only" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert {entry["inputs"] for entry in report["differences"]} == {"random"}


# The official file, against the official code's own tensors


@pytest.fixture(scope="module")
def golden_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "checkpoint.pth"
    grain_reference_files.save_official(golden_model(), path)
    return path


def golden_model():
    loaded = tiny_model()
    loaded.config.model = official_golden.CONFIG
    return dataclasses.replace(loaded, params=official_golden.params())


def test_official_names_shapes_and_values(golden_file):
    content = torch.load(golden_file, weights_only=True)
    golden = official_golden.state_dict()
    written = {f"backbone.{name}": t for name, t in content["backbone_state_dict"].items()}
    written |= {f"decoder.{name}": t for name, t in content["state_dict"].items()}
    assert written.keys() == golden.keys()
    for name, tensor in written.items():
        assert tensor.dtype == torch.float32
        if name.startswith("decoder.class_embed"):  # of the size that the official scripts give it
            assert tensor.shape[0] == 22_048
            assert tensor.shape[1:] == golden[name].shape[1:]
        else:
            assert tuple(tensor.shape) == golden[name].shape
        if name in unused_shapes(official_golden.CONFIG):
            assert not tensor.any()
        else:
            np.testing.assert_array_equal(tensor.numpy(), golden[name])
    assert (content["epoch"], content["iteration"]) == (0, 0)


def test_official_and_back_to_the_bit(golden_file):
    back = read_model(golden_file).params
    jax.tree.map(np.testing.assert_array_equal, back, official_golden.params())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module.", "module._orig_mod."])
def test_a_file_of_a_distributed_or_compiled_run_is_read(golden_file, tmp_path, wrapper):
    content = torch.load(golden_file, weights_only=True)
    for part in ("backbone_state_dict", "state_dict"):
        content[part] = {f"{wrapper}{name}": tensor for name, tensor in content[part].items()}
    torch.save(content, tmp_path / "ddp.pth")
    back = read_model(tmp_path / "ddp.pth").params
    jax.tree.map(np.testing.assert_array_equal, back, official_golden.params())


def test_the_torch_model_is_the_official_one(golden_file):
    """Its outputs on the official weights are those that the official code computed."""
    golden = official_golden.tensors()
    model = huggingface_folder.torch_model(read_model(golden_file))
    images, texts = (torch.from_numpy(golden[f"in.{name}"]) for name in ("images", "text"))
    with torch.no_grad():
        image, regions, boxes = model.decoder(model.backbone.visual(images))
        found = {
            "out.tokens": model.backbone.visual(images),
            "out.image_embed": image,
            "out.region_embed": regions,
            "out.boxes_cxcywh": boxes,
            "out.text_embed": model.get_text_features(texts.long()).pooler_output,
            "out.logit_scale": model.logit_factor()[None],
        }
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), golden[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["grain", "clip"])
def test_what_no_official_tensor_says_comes_back_too(kind, tmp_path):
    """Heads, words, cut, prompts, and a scale of regions, in an entry that official code skips."""
    loaded = tiny_model(type=kind, region_logit_scale="own", decoder__num_heads=2)
    loaded.config.data.data_dir = "/somewhere/private"
    loaded.config.evaluation.zero_shot_during_training = ("/somewhere/private/birds",)
    loaded.params["region_logit_scale"] = np.float32(3.25)
    grain_reference_files.save_official(loaded, tmp_path / "checkpoint.pth")
    again = read_model(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, jax.device_get(loaded.params))
    assert again.config.model == loaded.config.model
    assert again.preprocessing == loaded.preprocessing
    assert (again.step, again.templates) == (loaded.step, loaded.templates)
    assert again.tokenizer.spec() == loaded.tokenizer.spec()
    assert b"private" not in (tmp_path / "checkpoint.pth").read_bytes()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"decoder__share_projection": True}, "model.decoder.share_projection=True"),
        ({"vision__qk_norm": False}, "train one with --model.vision.qk_norm=true"),
        ({"vision__activation": "quick_gelu"}, "model.vision.activation=quick_gelu"),
        ({"text__norm_eps": 1e-6}, "--model.text.norm_eps=1e-05"),
    ],
)
def test_what_the_official_code_cannot_be_is_refused(changes, named, tmp_path):
    loaded = tiny_model(**changes)
    path = tmp_path / "out" / "checkpoint.pth"
    with pytest.raises(ValueError, match="--to=huggingface") as error:
        grain_reference_files.save_official(loaded, path)
    assert named in str(error.value)
    assert not path.parent.exists()


def test_sizes_that_the_official_code_builds():
    assert grain_reference_files.constructor(ModelConfig()) == "CLIP_VITB16"
    large = ModelConfig(vision=vision_variant("L/14"), type="clip")
    large.decoder.depth = 1  # which CLIP has not
    assert grain_reference_files.constructor(large) == "CLIP_VITL14"
    other = ModelConfig()
    other.decoder.num_heads = 4  # as many parameters, another model
    assert grain_reference_files.constructor(other) == ""


class Malicious:
    """Unpickling it runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("by_torch", [True, False])
def test_a_file_with_code_in_it_is_refused(tmp_path, by_torch):
    content = {"backbone_state_dict": {"a": Malicious(tmp_path / "ran")}, "state_dict": {}}
    path = tmp_path / "bad.pth"
    if by_torch:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        grain_reference_files.read_official(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"weights": {}}, "has no 'backbone_state_dict'"),
        ([1], "has list"),
        ({"backbone_state_dict": {"a": 1}}, "'a'] is a int"),
        ({"backbone_state_dict": [1]}, "backbone_state_dict is a list"),
        ({"backbone_state_dict": {}, "grain_jax": {"metadata": "{"}}, "'metadata'] is not JSON"),
        ({"backbone_state_dict": {}, "grain_jax": {"metadata": "[]"}}, "'metadata'] is a list"),
        ({"backbone_state_dict": {}, "grain_jax": {"metadata": "{}"}}, "damaged: KeyError"),
    ],
)
def test_other_files_are_named(tmp_path, content, named):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth") as error:
        read_model(tmp_path / "other.pth")
    assert named in str(error.value)


def test_a_file_of_any_size_is_not_read(golden_file, monkeypatch):
    assert grain_reference_files.MAX_BYTES == 8 * 2**30
    monkeypatch.setattr(grain_reference_files, "MAX_BYTES", golden_file.stat().st_size - 1)
    with pytest.raises(ValueError, match="GiB; expected at most"):
        read_model(golden_file)


def test_from_official_keeps_its_word_on_what_is_missing(golden_file):
    state = grain_reference_files.read_official(golden_file).tensors
    del state["decoder.proj.weight"]
    with pytest.raises(ValueError, match=r"missing decoder\.proj\.weight"):
        from_official(state, official_golden.CONFIG)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--to=official", "--dtype=bfloat16"), "--dtype=bfloat16 is for --to=huggingface"),
        (("--to=huggingface", "--step=3"), "no step 3"),
    ],
)
def test_what_cannot_be_done_is_said(run, tmp_path, capsys, arguments, named):
    assert run_export("--checkpoint", run, "--out", tmp_path / "out", *arguments) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert run_export("--checkpoint", run, "--to=official", "--out", tmp_path) == 2
    assert "give a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_torch_it_says_what_to_install(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run_export("--checkpoint", run, "--to=official", "--out", tmp_path / "out") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "[torch]" in error
    assert "without an NVIDIA GPU first pip install torch --index-url" in error


def test_a_tokenizer_that_gives_other_ids_is_refused(tmp_path):
    loaded = tiny_model()
    huggingface_folder.write_folder(loaded, tmp_path)
    huggingface_folder.compare_tokens(loaded, tmp_path)
    words = loaded.tokenizer.words
    other = dataclasses.replace(loaded, tokenizer=WordTokenizer(words[::-1]))
    with pytest.raises(ValueError, match="exported tokenizer takes 'a red bird' for"):
        huggingface_folder.compare_tokens(other, tmp_path)
