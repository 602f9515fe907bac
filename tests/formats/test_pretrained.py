"""Pretrained towers: parity with models of transformers with random weights."""

import copy
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_folders import (
    OPEN_CLIP,
    TOWER,
)

from grain_jax import export
from grain_jax.data.tokenizer import ClipTokenizer, PaddedTokenizer, token_keys
from grain_jax.formats.pretrained import huggingface_model, read_huggingface_clip, read_open_clip
from grain_jax.loading.initialize import resize_positions
from grain_jax.loading.load import read_model
from grain_jax.models.image_text import abstract_params

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
PIXELS = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)


def ids(texts, length):
    return ClipTokenizer().encode(texts, length)[0]


def outputs(loaded, tokens):
    """Embeddings of `PIXELS` and of the tokens, of unit length."""
    params = {"params": loaded.params}
    pixels, tokens = jnp.asarray(PIXELS), jnp.asarray(tokens)
    image = loaded.model.apply(params, pixels, method="encode_images").image_embed
    text = loaded.model.apply(params, tokens, method="encode_texts")
    return [np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]


def torch_outputs(model, tokens):
    with torch.no_grad():
        output = model(
            pixel_values=torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()),
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
        )
    return output.image_embeds.numpy(), output.text_embeds.numpy()


def test_clip_embeds_as_in_transformers(clip):
    model, folder = clip
    loaded = read_model(folder)
    tokens = ids(["a photo of a cat", "cat", "a very long text about a small black cat"], 12)
    for ours, theirs in zip(outputs(loaded, tokens), torch_outputs(model, tokens), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert isinstance(loaded.tokenizer, ClipTokenizer)
    assert loaded.preprocessing.resize == "crop"
    assert loaded.preprocessing.mean[0] == pytest.approx(0.48145466)
    assert loaded.config.model.vision.activation == "quick_gelu"
    assert float(loaded.params["logit_scale"]) == pytest.approx(model.logit_scale.item())


def test_settings_that_a_config_leaves_out_are_those_of_transformers(clip, tmp_path):
    """Old files hold only what differs from the defaults, some of it in a second dictionary."""
    _, folder = clip
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    given = json.loads((folder / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        given[part] = {k: v for k, v in given[part].items() if k in {*TOWER, "hidden_size"}}
    given["text_config"] |= {"max_position_embeddings": 12}
    given["vision_config_dict"] = {"hidden_act": "gelu", "patch_size": 8, "image_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(given))
    model = read_huggingface_clip(tmp_path).config.model
    assert (model.vision.activation, model.text.activation) == ("gelu", "quick_gelu")
    assert (model.vision.patch_size, model.text.vocab_size) == (8, 49_408)


def test_siglip_embeds_as_in_transformers(siglip):
    model, folder = siglip
    loaded = read_model(folder)
    tokenizer = loaded.tokenizer
    assert isinstance(tokenizer, PaddedTokenizer)
    texts = ["A photo of a cat", "dog", "a red a green a blue bird x"]
    tokens, cut = tokenizer.encode(texts, 8)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=8, return_tensors="np"
    )["input_ids"]
    np.testing.assert_array_equal(tokens, theirs)
    assert cut.tolist() == [False, False, True]
    for ours, expected in zip(outputs(loaded, tokens), torch_outputs(model, tokens), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert loaded.preprocessing.resize == "squash"
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
    assert loaded.config.loss.image_caption == "sigmoid"
    for name in ("logit_scale", "logit_bias"):
        assert loaded.params[name].shape == ()
        assert float(loaded.params[name]) == pytest.approx(getattr(model, name).item())


def test_texts_of_a_padded_tokenizer_have_keys_of_their_own(siglip):
    """Its end-of-text is not the highest id, so a key must not end at the highest."""
    tokenizer = read_model(siglip[1]).tokenizer
    tokens, _ = tokenizer.encode(["bird cat", "bird dog", "bird  CAT"], 8)
    keys = token_keys(tokens, pad_id=tokenizer.pad_id)
    assert keys[0] == keys[2] != keys[1]


def test_open_clip_is_the_same_model(clip, open_clip):
    _, folder = clip
    expected, found = read_model(folder), read_model(open_clip)
    expected.config.model.vision.norm_eps = 1e-5
    assert found.config.model == expected.config.model
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert found.preprocessing.std == (0.4, 0.5, 0.6)


def test_an_open_clip_of_the_sigmoid_loss_keeps_its_bias(open_clip):
    path, settings = open_clip / "open_clip_pytorch_model.bin", copy.deepcopy(OPEN_CLIP)
    state = torch.load(path, weights_only=True)["state_dict"]
    state["module.logit_bias"] = torch.tensor(-9.5)
    torch.save({"state_dict": state}, path)
    settings["model_cfg"] |= {"init_logit_scale": 2.3, "init_logit_bias": -10}
    (open_clip / "open_clip_config.json").write_text(json.dumps(settings))
    loaded = read_open_clip(open_clip)
    assert loaded.config.loss.image_caption == "sigmoid"
    assert float(loaded.params["logit_bias"]) == -9.5


def test_a_configuration_alone_takes_no_memory(siglip, tmp_path):
    """The width it claims is not believed before the tensors have been looked at."""
    shutil.copytree(siglip[1], tmp_path, dirs_exist_ok=True)
    given = json.loads((tmp_path / "config.json").read_text())
    given["vision_config"]["hidden_size"] = 4_000_000
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=r"shape \(96, 32\), expected \(12000000, 4000000\)"):
        read_model(tmp_path)


@pytest.mark.parametrize(("side", "new_side", "cls"), [(7, 9, 1), (24, 14, 1), (4, 16, 0)])
def test_positions_are_resized_as_in_torch(side, new_side, cls):
    table = np.random.default_rng(0).normal(size=(side**2 + cls, 6)).astype(np.float32)
    grid = torch.from_numpy(table[cls:]).reshape(1, side, side, 6).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        grid, (new_side, new_side), mode="bicubic", antialias=True, align_corners=False
    )
    expected = resized.permute(0, 2, 3, 1).reshape(new_side**2, 6).numpy()
    found = resize_positions(table, new_side**2 + cls)
    np.testing.assert_allclose(found[cls:], expected, atol=1e-5)
    np.testing.assert_array_equal(found[:cls], table[:cls])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_imported_model_is_exported_and_read_back(request, tmp_path, kind):
    """By the command, whose parity check fails where the PyTorch model differs."""
    folder = request.getfixturevalue(kind)[1]
    whole, run = tmp_path / "huggingface", tmp_path / "run"
    assert export.main([f"--checkpoint={folder}", "--to=huggingface", f"--out={whole}"]) == 0
    assert export.main([f"--checkpoint={whole}", "--to=run", f"--out={run}"]) == 0
    card = (whole / "README.md").read_text()
    assert f"read from `{folder.name}`, not trained here" in card
    loaded = read_model(folder)
    for again in (read_model(whole), read_model(run)):
        jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
        assert again.preprocessing == loaded.preprocessing
        assert again.config.model == loaded.config.model
        texts = ["a photo of a cat", "bird"]
        found, expected = again.tokenizer.encode(texts, 8), loaded.tokenizer.encode(texts, 8)
        np.testing.assert_array_equal(found[0], expected[0])
    processor = transformers.AutoProcessor.from_pretrained(whole, trust_remote_code=True)
    tokens = processor(text=["a photo of a cat", "bird"], return_tensors="np")["input_ids"]
    if kind == "siglip":  # padded as the tower needs it
        np.testing.assert_array_equal(tokens, expected[0])


B_32 = {"model_type": "clip", "projection_dim": 512}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
L_14 = {
    "model_type": "clip",
    "projection_dim": 768,
    "vision_config": LARGE | {"num_hidden_layers": 24, "patch_size": 14},
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}


@pytest.mark.parametrize(
    ("given", "parameters"),
    [
        (B_32, 151_277_313),
        (B_32 | {"vision_config": {"patch_size": 16}}, 149_620_737),
        (L_14, 427_616_513),
        # SigLIP B/16: without its logit bias, and with an image projection that is the identity.
        ({"model_type": "siglip"}, 203_155_970 - 1 + 768**2),
    ],
    ids=["ViT-B/32", "ViT-B/16", "ViT-L/14", "SigLIP-B/16"],
)
def test_published_models_have_their_published_size(given, parameters):
    """What their config.json says, the rest left out as there; counted without any weights."""
    shapes = abstract_params(huggingface_model(given))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_a_checkpoint_of_open_clip_is_read_by_its_own_name(open_clip):
    expected = read_model(open_clip)
    file = (open_clip / "open_clip_pytorch_model.bin").rename(open_clip / "epoch_3.pt")
    jax.tree.map(np.testing.assert_array_equal, read_model(file).params, expected.params)
    (open_clip / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match=r"need its open_clip_config\.json beside them"):
        read_model(file)


def test_unsupported_settings_are_refused_by_name(clip, open_clip, tmp_path):
    config = json.loads(json.dumps(OPEN_CLIP))
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base_patch16_siglip"
    (open_clip / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"vision_cfg.timm_model_name = 'vit_base_patch16_siglip'"):
        read_open_clip(open_clip)
    folder = tmp_path / "other"
    shutil.copytree(clip[1], folder)
    given = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(given | {"model_type": "blip"}))
    with pytest.raises(
        ValueError, match=r"model_type 'blip'; expected one of clip, siglip or grain"
    ):
        read_model(folder)
    given["vision_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=r"missing backbone.visual.blocks.2"):
        read_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no weights; looked for model.safetensors"):
        read_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": "x"}, "vision_config is 'x', expected an object"),
        (
            {"vision_config": {"image_size": "224"}},
            "vision_config.image_size is '224', expected",
        ),
        ({"vision_config": {"image_size": [32, 32]}}, "vision_config.image_size is"),
        (
            {"text_config": {"hidden_size": 0}},
            "text_config.hidden_size is 0, expected a whole number",
        ),
        (
            {"text_config": {"hidden_act": ["gelu"]}},
            "text_config.hidden_act is .*, expected a string",
        ),
        ({"text_config": {"layer_norm_eps": True}}, "layer_norm_eps is True, expected a number"),
        ({"text_config": {"num_hidden_layers": 10**6}}, "text.depth=1000000, and there are"),
        ({"projection_dim": None}, "projection_dim is None"),
        ({"model_type": ["clip"]}, r"model_type \['clip'\]"),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(clip, tmp_path, changes, message):
    shutil.copytree(clip[1], tmp_path, dirs_exist_ok=True)
    given = json.loads((tmp_path / "config.json").read_text())
    for name, value in changes.items():
        given[name] = given[name] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=message):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg": 3}, "vision_cfg is 3, expected an object"),
        ({"text_cfg": {"heads": "8"}}, "text_cfg.heads is '8', expected a whole number"),
        ({"embed_dim": 0}, "model_cfg.embed_dim is 0"),
    ],
)
def test_settings_of_another_kind_of_open_clip_too(open_clip, changes, message):
    config = json.loads(json.dumps(OPEN_CLIP))
    for name, value in changes.items():
        whole = isinstance(value, dict)
        config["model_cfg"][name] = config["model_cfg"][name] | value if whole else value
    (open_clip / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_open_clip(open_clip)


def test_a_file_nested_without_end_is_refused(clip, tmp_path):
    shutil.copytree(clip[1], tmp_path, dirs_exist_ok=True)
    (tmp_path / "preprocessor_config.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is not JSON"):
        read_model(tmp_path)


def test_an_implausible_scale_is_refused(clip, tmp_path):
    model = copy.deepcopy(clip[0])
    torch.nn.init.constant_(model.logit_scale, 200.0)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="logit_scale is 200"):
        read_model(tmp_path)


def test_a_tensor_of_another_shape_is_refused_by_its_name(open_clip):
    path = open_clip / "open_clip_pytorch_model.bin"
    state = torch.load(path, weights_only=True)["state_dict"]
    state["module.logit_scale"] = torch.zeros(2)
    torch.save({"state_dict": state}, path)
    with pytest.raises(ValueError, match=r"logit_scale has shape \[2\]"):
        read_open_clip(open_clip)


def test_tensors_without_a_name_are_refused(open_clip):
    torch.save({3: torch.zeros(2)}, open_clip / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="a tensor called 3, expected a name"):
        read_open_clip(open_clip)


def test_a_file_of_weights_alone_names_its_folder(clip):
    with pytest.raises(ValueError, match="is a file of weights alone; give its folder"):
        read_model(clip[1] / "model.safetensors")


def test_code_in_a_torch_file_is_not_run(open_clip):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"state_dict": Evil()}, open_clip / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_model(open_clip)


def test_a_missing_model_is_refused_with_the_supported_kinds(tmp_path):
    with pytest.raises(
        ValueError, match=r"There is no .*nowhere; expected a run folder, an official "
    ):
        read_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no supported model in"):
        read_model(tmp_path)
    with pytest.raises(ValueError, match="no step to choose"):
        read_model(tmp_path, step=3)
