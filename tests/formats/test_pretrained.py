"""Pretrained towers: parity with models of transformers with random weights."""

import copy
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pretrained_folders import (
    OPEN_CLIP,
    TOWER,
    randomized,
    save_clip,
    save_open_clip,
    save_siglip,
)
from stored_results import stored_results

import grain_jax
from grain_jax import evaluate, export
from grain_jax.data.tokenizer import ClipTokenizer, PaddedTokenizer, token_keys
from grain_jax.formats.fast_tokenizer import fast_tokenizer
from grain_jax.formats.pretrained import huggingface_model, read_huggingface_clip, read_open_clip
from grain_jax.formats.pretrained_images import MEAN, STD, huggingface_preprocessing
from grain_jax.loading.initialize import resize_positions
from grain_jax.loading.load import read_model
from grain_jax.models.image_text import abstract_params

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
PIXELS = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIPModel, and the folder it is in."""
    folder = tmp_path_factory.mktemp("weights") / "clip"
    return save_clip(folder), folder


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
    folder = tmp_path_factory.mktemp("weights") / "siglip"
    return save_siglip(folder), folder


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


def test_pixels_after_the_last_whole_patch_are_ignored(siglip, tmp_path):
    """Such as the last 6 of the 384 of SigLIP so400m/14, in every part of the way."""
    module = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    config = copy.deepcopy(siglip[0].config)
    config.vision_config.image_size = 20
    folder, whole, run = tmp_path / "model", tmp_path / "huggingface", tmp_path / "run"
    shutil.copytree(siglip[1], folder)
    model = randomized(transformers.SiglipModel(config), folder)
    images = module.SiglipImageProcessorPil(size={"height": 20, "width": 20})
    processor = transformers.SiglipProcessor(
        images, transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    )
    processor.save_pretrained(folder)
    seen = make_images(WHOLE_SIZES)
    theirs, _ = torch_cosines(model, processor, seen, ["a cat"])
    assert nearest_other(theirs).min() > 1e-3
    assert export.main([f"--checkpoint={folder}", "--to=huggingface", f"--out={whole}"]) == 0
    assert export.main([f"--checkpoint={whole}", "--to=run", f"--out={run}"]) == 0
    for path in (folder, whole, run):
        loaded = grain_jax.load(path)
        assert loaded.loaded.config.model.image_size == 20
        assert loaded.loaded.params["vision"]["position"].shape == (4, 32)
        np.testing.assert_allclose(loaded.embed_images(seen).image, theirs, atol=1e-4)


def test_texts_of_a_padded_tokenizer_have_keys_of_their_own(siglip):
    """Its end-of-text is not the highest id, so a key must not end at the highest."""
    tokenizer = read_model(siglip[1]).tokenizer
    tokens, _ = tokenizer.encode(["bird cat", "bird dog", "bird  CAT"], 8)
    keys = token_keys(tokens, pad_id=tokenizer.pad_id)
    assert keys[0] == keys[2] != keys[1]


@pytest.fixture
def open_clip(clip, tmp_path):
    save_open_clip(clip[0], tmp_path)
    return tmp_path


def test_open_clip_is_the_same_model(clip, open_clip):
    _, folder = clip
    expected, found = read_model(folder), read_model(open_clip)
    expected.config.model.vision.norm_eps = 1e-5
    assert found.config.model == expected.config.model
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert found.preprocessing.std == (0.4, 0.5, 0.6)


def make_images(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """A smooth image of each (height, width): a pixel more or less of it changes little."""
    rng = np.random.default_rng(1)
    small = [Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)) for _ in sizes]
    return [
        np.asarray(make_image.resize((width, height), Image.Resampling.BICUBIC))
        for make_image, (height, width) in zip(small, sizes, strict=True)
    ]


# The longer side of the first stays a whole number when the shorter one becomes 32.
WHOLE_SIZES = [(48, 72), (72, 48), (96, 64), (32, 32), (16, 40)]
ODD_SIZES = [(50, 71), (130, 57), (40, 33), (20, 27)]
CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SQUASH = {"size": {"height": 32, "width": 32}}
OTHERS = {"image_mean": [0.1, 0.3, 0.5], "image_std": [0.2, 0.4, 0.6]}
SETTINGS = {  # settings of transformers, and the expected preprocessing
    "clip": (CROP, ("crop", "bicubic", MEAN, STD)),
    "clip, other numbers": (
        CROP | OTHERS | {"resample": 2},
        ("crop", "bilinear", (0.1, 0.3, 0.5), (0.2, 0.4, 0.6)),
    ),
    "clip, not cropped": (
        SQUASH | OTHERS | {"do_center_crop": False},
        ("squash", "bicubic", (0.1, 0.3, 0.5), (0.2, 0.4, 0.6)),
    ),
    "clip, cut to what it is": (SQUASH | {"crop_size": 32}, ("squash", "bicubic", MEAN, STD)),
    "siglip": (SQUASH, ("squash", "bicubic", (0.5,) * 3, (0.5,) * 3)),
    "siglip, other numbers": (
        SQUASH | OTHERS | {"resample": 2},
        ("squash", "bilinear", (0.1, 0.3, 0.5), (0.2, 0.4, 0.6)),
    ),
}


@pytest.fixture(params=list(SETTINGS))
def with_processor(request, clip, siglip, tmp_path):
    """A model of transformers, its processor, the folder of both, and what we make of the latter.

    The processor works on Pillow, so torchvision is not needed.
    """
    kind = request.param.partition(",")[0]
    module = f"transformers.models.{kind}.image_processing_pil_{kind}"
    name = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    images = getattr(pytest.importorskip(module), f"{name}ImageProcessorPil")
    model, folder = {"clip": clip, "siglip": siglip}[kind]
    shutil.copytree(folder, tmp_path / "model")
    given, expected = SETTINGS[request.param]
    if kind == "clip":
        tokenizer = fast_tokenizer(ClipTokenizer(), max_length=12)
    else:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    processor = getattr(transformers, f"{name}Processor")(images(**given), tokenizer)
    processor.save_pretrained(tmp_path / "model")
    return model, processor, tmp_path / "model", expected


def torch_cosines(model, processor, images, texts):
    """Image embeddings of unit length and cosines with the texts, all of it by transformers."""
    length = model.config.text_config.max_position_embeddings
    inputs = processor(
        text=texts,
        images=[Image.fromarray(image) for image in images],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"])
    image, text = output.image_embeds.numpy(), output.text_embeds.numpy()
    return image, image @ text.T


def nearest_other(rows):
    """Distance of each row from the one that is most like it."""
    return np.sort(np.linalg.norm(rows[:, None] - rows[None], axis=-1), axis=1)[:, 1]


@pytest.mark.parametrize("file", ["processor_config.json", "preprocessor_config.json"])
def test_images_are_preprocessed_as_by_transformers(with_processor, file):
    model, processor, folder, expected = with_processor
    if file == "preprocessor_config.json":  # up to transformers 4
        (folder / "processor_config.json").unlink()
        processor.image_processor.save_pretrained(folder)
    assert (folder / file).is_file()
    loaded = grain_jax.load(folder)
    seen = loaded.loaded.preprocessing
    assert (seen.resize, seen.interpolation, seen.mean, seen.std) == expected
    labels = ["a photo of a cat", "Dog", "a red bird"]
    squashed = seen.resize == "squash"
    images = make_images(WHOLE_SIZES + ODD_SIZES if squashed else WHOLE_SIZES)
    inputs = processor(images=[Image.fromarray(image) for image in images], return_tensors="np")
    levels = inputs["pixel_values"].transpose(0, 2, 3, 1) * seen.std + seen.mean
    # Pillow rounds between width and height, and a part of an image may go through them in the
    # other order: a level of 255 apart, here or there.
    apart = np.stack(
        [np.abs(seen(image) - level) for image, level in zip(images, levels * 255, strict=True)]
    )
    assert apart.max() < 1.01
    assert np.mean(apart > 0.01, axis=(1, 2, 3)).max() < 0.15
    same = apart.max(axis=(1, 2, 3)) < 0.01
    assert same.sum() >= len(images) - 1
    found = loaded.embed_images(images)
    theirs, cosines = torch_cosines(model, processor, images, labels)
    assert nearest_other(theirs).min() > 5e-3  # ten times what is let pass below
    np.testing.assert_allclose(found.image[same], theirs[same], atol=1e-4)
    np.testing.assert_allclose(found.image, theirs, atol=5e-4)
    answers = loaded.classify(found, labels, templates=["{}"], top_k=None)
    scores = [{ranked.label: ranked.score for ranked in answer.ranked} for answer in answers]
    ours = [[score[label] for label in labels] for score in scores]
    np.testing.assert_allclose(np.array(ours)[same], cosines[same], atol=1e-4)
    np.testing.assert_allclose(ours, cosines, atol=5e-4)
    if not squashed:  # they cut to whole pixels, we to parts of one
        images = make_images(ODD_SIZES)
        theirs, _ = torch_cosines(model, processor, images, labels)
        ours = loaded.embed_images(images).image
        assert (np.linalg.norm(ours - theirs, axis=-1) < 0.5 * nearest_other(theirs)).all()


def test_an_imported_clip_is_evaluated_as_it_is(clip, tmp_path):
    """By the command, on a folder of images that holds each where transformers puts it."""
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    folder = tmp_path / "model"
    model = randomized(transformers.CLIPModel(clip[0].config), folder, seed=4)
    with torch.no_grad():  # only what an image holds counts, so that they get different names
        for name, parameter in model.vision_model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            elif name.endswith(("bias", "class_embedding", "position_embedding.weight")):
                parameter.zero_()
    model.save_pretrained(folder)
    tokenizer = fast_tokenizer(ClipTokenizer(), max_length=12)
    processor = transformers.CLIPProcessor(module.CLIPImageProcessorPil(**CROP), tokenizer)
    names = ["cat", "dog", "bird", "red", "the sea", "a house", "green", "no", "seven", "tree"]
    images, texts = make_images(WHOLE_SIZES * 8), [f"a photo of a {name}." for name in names]
    _, cosines = torch_cosines(model, processor, images, texts)
    second, first = np.sort(cosines, axis=1)[:, -2:].T
    sure = np.flatnonzero(first - second > 1e-3)
    best = cosines.argmax(axis=1)[sure]
    assert len(sure) > 10
    assert len(set(best)) > 1
    for i, place in zip(sure, best, strict=True):
        target = tmp_path / "images" / names[place] / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(target)
    output = tmp_path / "figures.json"
    arguments = [f"--checkpoint={folder}", f"--data={tmp_path / 'images'}", f"--output={output}"]
    assert evaluate.main(arguments) == 0
    assert stored_results(output)["images/name"] == 1


OPENAI = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "resample": 3,
    "size": 224,
}
SIGLIP = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
LATER = {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}}


@pytest.mark.parametrize(
    ("given", "resize", "interpolation", "mean"),
    [
        (OPENAI, "crop", "bicubic", MEAN),
        (OPENAI | LATER | {"do_rescale": True, "resample": 3}, "crop", "bicubic", MEAN),
        (SIGLIP, "squash", "bicubic", (0.5,) * 3),
        (SIGLIP | {"resample": 2}, "squash", "bilinear", (0.5,) * 3),  # SigLIP 2
        (SIGLIP | {"size": [224, 224]}, "squash", "bicubic", (0.5,) * 3),
        ({"image_processor_type": "CLIPImageProcessor"}, "crop", "bicubic", MEAN),
        ({"image_processor_type": "SiglipImageProcessor"}, "squash", "bicubic", (0.5,) * 3),
        ({}, "crop", "bicubic", MEAN),
    ],
)
def test_published_settings_of_images_are_read(tmp_path, given, resize, interpolation, mean):
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"size": 1}}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    found = huggingface_preprocessing(tmp_path, 224, siglip=False)
    assert (found.image_size, found.resize, found.interpolation) == (224, resize, interpolation)
    assert found.mean == mean


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 256}, r"size is 256 with a centre crop.* \{'shortest_edge': 224\}"),
        ({"size": {"shortest_edge": 256}}, r"size is \{'shortest_edge': 256\} with"),
        ({"size": {"height": 224, "width": 336}}, r"size is \{'height': 224, 'width': 336\}"),
        ({"size": {"shortest_edge": 224, "longest_edge": 448}}, "longest_edge"),
        ({"size": {"max_height": 224, "max_width": 224}}, "max_height"),
        ({"do_center_crop": False}, "size is 224 without a centre crop"),
        ({"crop_size": 200}, "crop_size is 200, expected 224"),
        ({"crop_size": {"height": 224, "width": 200}}, "crop_size is"),
        ({"do_resize": False}, "do_resize is False, expected True"),
        ({"do_rescale": False}, "do_rescale is False, expected True"),
        ({"do_normalize": False}, "do_normalize is False, expected True"),
        ({"do_pad": True}, "do_pad is True, expected False"),
        ({"rescale_factor": 1 / 127.5}, r"rescale_factor is 0\.0078.*, expected 1/255"),
        ({"resample": 1}, r"resample is 1, expected 2 \(bilinear\), 3"),
        ({"image_mean": 0.5}, r"image_mean is 0\.5, expected three numbers"),
        ({"image_std": [1, 1]}, r"image_std is \[1, 1\], expected three numbers"),
    ],
)
def test_unsupported_image_settings_are_refused(tmp_path, changed, message):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(OPENAI | changed))
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: .*{message}"):
        huggingface_preprocessing(tmp_path, 224, siglip=False)
    nested = {"image_processor": json.loads(path.read_text())}
    path.rename(tmp_path / "processor_config.json").write_text(json.dumps(nested))
    with pytest.raises(ValueError, match=rf"/processor_config\.json: .*{message}"):
        huggingface_preprocessing(tmp_path, 224, siglip=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"resize_mode": "longest"}, "resize_mode is 'longest', expected 'shortest'"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest', expected one of bicubic"),
        ({"mean": [1]}, r"mean is \[1\], expected three numbers"),
    ],
)
def test_image_settings_of_open_clip_are_read_or_refused(open_clip, changed, message):
    def write(changed):
        config = OPEN_CLIP | {"preprocess_cfg": OPEN_CLIP["preprocess_cfg"] | changed}
        (open_clip / "open_clip_config.json").write_text(json.dumps(config))

    write(changed)
    with pytest.raises(ValueError, match=rf"open_clip_config\.json: {message}"):
        read_open_clip(open_clip)
    for mode, resize in ((None, "crop"), ("shortest", "crop"), ("squash", "squash")):
        write({"resize_mode": mode, "interpolation": "bilinear"})
        found = read_open_clip(open_clip).preprocessing
        assert (found.resize, found.interpolation) == (resize, "bilinear")


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
