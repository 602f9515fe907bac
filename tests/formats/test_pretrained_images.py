"""Images of pretrained towers: preprocessed as transformers and open_clip do, or refused."""

import copy
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pretrained_folders import (
    OPEN_CLIP,
    randomized,
)
from stored_results import stored_results

import grain_jax
from grain_jax import evaluate, export
from grain_jax.data.tokenizer import ClipTokenizer
from grain_jax.formats.fast_tokenizer import fast_tokenizer
from grain_jax.formats.pretrained import read_open_clip
from grain_jax.formats.pretrained_images import MEAN, STD, huggingface_preprocessing

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


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
