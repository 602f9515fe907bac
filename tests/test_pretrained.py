"""Towers of other people, read as ours: parity with transformers, which builds them at random."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from grain_jax import evaluate, export
from grain_jax.data.tokenizer import ClipTokenizer, PaddedTokenizer, token_keys
from grain_jax.interop.pretrained import MEAN, STD, read_huggingface_clip, read_open_clip
from grain_jax.interop.read import read_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TOWER = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {"image_size": 32, "patch_size": 8}
PIXELS = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)


def save(model, folder):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.eval().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIPModel, and the folder it is in; vision and text differ in width, as they mostly do."""
    folder = tmp_path_factory.mktemp("weights") / "clip"
    text = {"hidden_size": 32, "vocab_size": 49_408, "max_position_embeddings": 12}
    vision = {"hidden_size": 48, **IMAGE, "layer_norm_eps": 1e-4}
    config = transformers.CLIPConfig(
        text_config=TOWER | text, vision_config=TOWER | vision, projection_dim=24
    )
    return save(transformers.CLIPModel(config), folder), folder


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


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("weights") / "siglip"
    text = {"hidden_size": 32, "vocab_size": 12, "max_position_embeddings": 8}
    vision = {"hidden_size": 32, **IMAGE}
    config = transformers.SiglipConfig(
        text_config=TOWER | text | {"projection_size": 32, "pad_token_id": 1},
        vision_config=TOWER | vision,
    )
    model = save(transformers.SiglipModel(config), folder)
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
    return model, folder


def test_siglip_embeds_as_in_transformers(siglip):
    model, folder = siglip
    loaded = read_model(folder)
    tokenizer = loaded.tokenizer
    assert isinstance(tokenizer, PaddedTokenizer)
    texts = ["A photo of a cat", "dog", "a red a green a blue bird x"]
    tokens, cut = tokenizer.encode(texts, 8)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=8, return_tensors="np"
    )["input_ids"]
    np.testing.assert_array_equal(tokens, theirs)
    assert cut.tolist() == [False, False, True]
    for ours, expected in zip(outputs(loaded, tokens), torch_outputs(model, tokens), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert loaded.preprocessing.resize == "squash"
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)


def test_texts_of_a_padded_tokenizer_have_keys_of_their_own(siglip):
    """Its end-of-text is not the highest id, so a key must not end at the highest."""
    tokenizer = read_model(siglip[1]).tokenizer
    tokens, _ = tokenizer.encode(["bird cat", "bird dog", "bird  CAT"], 8)
    keys = token_keys(tokens, pad_id=tokenizer.pad_id)
    assert keys[0] == keys[2] != keys[1]


def open_clip_state(model):
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


@pytest.fixture
def open_clip(clip, tmp_path):
    """The weights of `clip` as a training checkpoint of open_clip; its norms have eps 1e-5."""
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in open_clip_state(clip[0]).items()}},
        tmp_path / "open_clip_pytorch_model.bin",
    )
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    return tmp_path


def test_open_clip_is_the_same_model(clip, open_clip):
    _, folder = clip
    expected, found = read_model(folder), read_model(open_clip)
    expected.config.model.vision.norm_eps = 1e-5
    assert found.config.model == expected.config.model
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert found.preprocessing.std == (0.4, 0.5, 0.6)


def test_an_imported_clip_is_evaluated_as_it_is(clip, tmp_path, capsys):
    """By the command, on a folder of images; the scores are those of transformers."""
    model, folder = clip
    rng = np.random.default_rng(1)
    pixels = {name: rng.integers(0, 256, (2, 32, 32, 3), np.uint8) for name in ("cat", "dog")}
    for name, pictures in pixels.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / "images" / name / f"{i}.png")
    output = tmp_path / "figures.json"
    arguments = [f"--checkpoint={folder}", f"--data={tmp_path / 'images'}", f"--output={output}"]
    assert evaluate.main(arguments) == 0
    figures = json.loads(output.read_text())["results"]
    mean, std = np.float32(MEAN), np.float32(STD)
    squares = np.concatenate(list(pixels.values())).astype(np.float32) / 255
    tokens = ids([f"a photo of a {name}." for name in pixels], 12)
    with torch.no_grad():
        scores = model(
            pixel_values=torch.from_numpy(((squares - mean) / std).transpose(0, 3, 1, 2).copy()),
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
        ).logits_per_image.numpy()
    expected = (scores.argmax(axis=1) == np.repeat([0, 1], 2)).mean()
    assert figures["images/name"] == pytest.approx(expected)


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
    for copy in (read_model(whole), read_model(run)):
        jax.tree.map(np.testing.assert_array_equal, copy.params, loaded.params)
        assert copy.preprocessing == loaded.preprocessing
        assert copy.config.model == loaded.config.model
        texts = ["a photo of a cat", "bird"]
        found, expected = copy.tokenizer.encode(texts, 8), loaded.tokenizer.encode(texts, 8)
        np.testing.assert_array_equal(found[0], expected[0])
    processor = transformers.AutoProcessor.from_pretrained(whole, trust_remote_code=True)
    tokens = processor(text=["a photo of a cat", "bird"], return_tensors="np")["input_ids"]
    if kind == "siglip":  # padded as the tower needs it
        np.testing.assert_array_equal(tokens, expected[0])


def test_a_checkpoint_of_open_clip_is_read_by_its_own_name(open_clip):
    expected = read_model(open_clip)
    file = (open_clip / "open_clip_pytorch_model.bin").rename(open_clip / "epoch_3.pt")
    jax.tree.map(np.testing.assert_array_equal, read_model(file).params, expected.params)
    (open_clip / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match=r"need its open_clip_config\.json beside them"):
        read_model(file)


def test_what_is_not_supported_is_refused_by_name(clip, open_clip, tmp_path):
    config = json.loads(json.dumps(OPEN_CLIP))
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base_patch16_siglip"
    (open_clip / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"vision_cfg.timm_model_name = 'vit_base_patch16_siglip'"):
        read_open_clip(open_clip)
    folder = tmp_path / "other"
    shutil.copytree(clip[1], folder)
    given = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(given | {"model_type": "blip"}))
    with pytest.raises(ValueError, match=r"model_type 'blip'; needed one of clip, siglip or grain"):
        read_model(folder)
    given["vision_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=r"missing backbone.visual.blocks.2"):
        read_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no weights; looked for model.safetensors"):
        read_model(folder)


def test_code_in_a_torch_file_is_not_run(open_clip):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"state_dict": Evil()}, open_clip / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_model(open_clip)


def test_a_name_of_the_hub_is_downloaded(clip, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, "model.safetensors" in allow_patterns))
        return str(clip[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert read_model("openai/clip-tiny").config.model.embed_dim == 24
    assert asked == [("openai/clip-tiny", True)]


def test_what_is_not_there_is_said_with_what_there_could_be(tmp_path):
    with pytest.raises(ValueError, match=r"There is no .*nowhere; needed a run folder, an export"):
        read_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no model that is known in"):
        read_model(tmp_path)
    with pytest.raises(ValueError, match="no step to choose"):
        read_model(tmp_path, step=3)
