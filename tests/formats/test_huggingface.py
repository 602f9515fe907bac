"""The exported folder as its users have it: loaded by transformers alone, offline, in pipelines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_modes import make_image
from PIL import Image
from tiny_model import LABELS, TEMPLATES, tiny_model

from grain_jax.formats import huggingface as huggingface_folder
from grain_jax.formats import parity
from grain_jax.inference.predictor import Model
from grain_jax.models.image_text import normalize_images

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
torch.set_num_threads(1)  # of models so small, threads would only wait for each other

ALONE = """
import sys
sys.modules["jax"] = sys.modules["grain_jax"] = None  # the folder has to do without
import json, torch
from PIL import Image
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, pipeline

folder, path = sys.argv[1:]
image = Image.open(path)
labels = json.loads(sys.stdin.read())
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
own = classify(path, candidate_labels=labels)
plain = classify(image, candidate_labels=labels, hypothesis_template="{}")
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=image, text=labels, descriptions=labels, return_tensors="pt")
with torch.no_grad():
    output = model(**inputs)
found = {name: value.tolist() for name, value in output.items()} | {"own": own, "plain": plain}

model.save_pretrained("again")  # as after fine-tuning
processor.save_pretrained("again")
classify = pipeline("zero-shot-image-classification", model="again", trust_remote_code=True)
found["again"] = classify(path, candidate_labels=labels)
named = AutoModelForZeroShotImageClassification.from_pretrained("again", trust_remote_code=True)
assert type(named).__name__ == type(model).__name__
found["shapes"] = {name: list(value.shape) for name, value in inputs.items()}
print(json.dumps(found))
"""


def test_the_folder_is_complete(folder):
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "processor_config.json", "parity.json", "README.md"),
        *("grain_jax.json", "tokenizer.json", "tokenizer_config.json", *huggingface_folder.CODE),
    }
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_it_works_alone_and_offline(loaded, folder, tmp_path):
    """Pixels, tokens, prompts, embeddings, boxes and scores are those of the model in JAX."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 4), np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "image.png")  # partly transparent
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, str(folder), str(tmp_path / "image.png")],
        input=json.dumps(LABELS),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=settings,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["shapes"]["pixel_values"] == [1, 3, 32, 32]
    assert found["shapes"]["input_ids"] == [3, 10]
    assert found["shapes"]["description_ids"] == [3, 6]

    model, spec = loaded[0], loaded[0].preprocessing
    square = spec((tmp_path / "image.png").read_bytes())[None]
    images = np.asarray(normalize_images(jnp.asarray(square), spec.mean, spec.std))
    prompts = [template.replace("{}", label) for template in TEMPLATES for label in LABELS]
    tokens, _ = model.tokenizer.encode([*LABELS, *prompts], 10)
    short, _ = model.tokenizer.encode(LABELS, 6)
    tokens = np.concatenate([tokens, np.pad(short, ((0, 0), (0, 4)))])
    inputs = parity.Inputs("", images, tokens.astype(np.int32))
    ours = parity.jax_outputs(model.config.model)(model.params, inputs)
    names, by_template, descriptions = np.split(ours["text_embeds"], [3, 9])
    scale = ours["logit_scale"]
    for name, expected in {
        "logits_per_image": scale * ours["image_embeds"] @ names.T,
        "pred_boxes": ours["pred_boxes"],
        "region_embeds": ours["region_embeds"],
        "description_scores": ours["region_embeds"] @ descriptions.T,
    }.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)
    mean = by_template.reshape(2, 3, -1).mean(axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    for how, texts in (("own", mean), ("again", mean), ("plain", names)):
        probabilities = np.asarray(jax.nn.softmax(scale * ours["image_embeds"] @ texts.T))[0]
        scores = {entry["label"]: entry["score"] for entry in found[how]}
        np.testing.assert_allclose([scores[label] for label in LABELS], probabilities, atol=1e-5)


def test_the_card_is_filled_from_the_run(folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: zero-shot-image-cl")
    front = card.split("---\n")[1]
    assert not [line for line in front.splitlines() if line.startswith("license:")]
    for part in (
        "16 images of drawn birds",
        "for 7 steps of batch 16",
        "with contrast of images and captions by softmax (as CLIP)",
        "| val | model | 50.0 | 25.0 | 12.5 | 100.0 |",
        "to 10 tokens, descriptions of regions to 6",
        "Every image gets 3 boxes",
        "vocabulary has 12 English words",
        "on random and real inputs",
    ):
        assert part in card, part


def test_a_pipeline_keeps_the_template_it_was_made_with(auto):
    from grain_jax.formats.torch_grain.processing_grain import GrainZeroShotPipeline

    model, processor = auto
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    make_image = Image.new("RGB", (9, 9), "red")
    made = GrainZeroShotPipeline(model=model, **parts, hypothesis_template="the {} bird")
    plain = GrainZeroShotPipeline(model=model, **parts)
    scores = made(make_image, candidate_labels=LABELS)
    assert scores == plain(make_image, candidate_labels=LABELS, hypothesis_template="the {} bird")
    assert scores != plain(make_image, candidate_labels=LABELS)
    both = plain([make_image, make_image], candidate_labels=LABELS, batch_size=2)
    alone = plain(make_image, candidate_labels=LABELS)
    assert [entry["label"] for entry in both[0]] == [entry["label"] for entry in alone]
    assert [entry["score"] for entry in both[1]] == pytest.approx([e["score"] for e in alone])
    with pytest.raises(ValueError, match=r"one \{\} for the label; got 'a bird'"):
        plain(make_image, candidate_labels=LABELS, hypothesis_template="a bird")
    with pytest.raises(ValueError, match="must be a list of texts; got 'red'"):
        plain(make_image, candidate_labels="red")


LONG = "a long red tail with a blue crest and red"  # cut as a text, and sooner as a description
DESCRIBED = {"red": ["red crest", LONG], "blue": ["blue tail"], "bird": ["the bird"]}


@pytest.mark.parametrize(
    ("changes", "alpha"),
    [
        ({}, None),
        ({}, 0.0),
        ({}, 1.0),
        ({"region_aggregation": "max_over_descriptions"}, 0.25),
        ({"type": "clip"}, None),
    ],
)
def test_scores_by_description_are_those_of_jax(changes, alpha):
    from grain_jax.formats.torch_grain.processing_grain import GrainZeroShotPipeline

    loaded = tiny_model(**{k: v for k, v in changes.items() if k == "type"})
    loaded.config.evaluation.region_aggregation = changes.get(
        "region_aggregation", "max_over_queries"
    )
    processor = huggingface_folder.processor(loaded)
    pipeline = GrainZeroShotPipeline(
        model=huggingface_folder.torch_model(loaded),
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    make_images = [make_image("RGB"), make_image("L")]
    found = pipeline(make_images, descriptions=DESCRIBED, alpha=alpha, batch_size=2)
    arrays, labels = [np.asarray(one.convert("RGB")) for one in make_images], list(DESCRIBED)
    model = Model(loaded, note=lambda text: None)
    answers = model.classify(arrays, labels, DESCRIBED, alpha=alpha)
    for one, answer in zip(found, answers, strict=True):
        assert [entry["label"] for entry in one] == [ranked.label for ranked in answer.ranked]
        expected = [ranked.probability for ranked in answer.ranked]
        np.testing.assert_allclose([entry["score"] for entry in one], expected, atol=1e-5)
    single = pipeline(make_images[0], candidate_labels=labels, descriptions=DESCRIBED, alpha=alpha)
    assert [entry["label"] for entry in single] == [entry["label"] for entry in found[0]]


def made(auto, **arguments):
    from grain_jax.formats.torch_grain.processing_grain import GrainZeroShotPipeline

    model, processor = auto
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    return GrainZeroShotPipeline(model=model, **parts, **arguments)


@pytest.mark.parametrize(("alpha", "num_encoded"), [(0.0, 1), (0.5, 2), (1.0, 1)])
def test_a_pipeline_embeds_texts_once_for_all_images(auto, monkeypatch, alpha, num_encoded):
    classify, calls = made(auto), []
    encode = classify.model.get_text_features
    monkeypatch.setattr(
        classify.model, "get_text_features", lambda ids: calls.append(ids.shape) or encode(ids)
    )
    make_images = [make_image("RGB"), make_image("L"), make_image("RGBA")]
    classify(make_images, descriptions=DESCRIBED, alpha=alpha)
    assert len(calls) == num_encoded
    classify(make_images[0], descriptions=DESCRIBED, alpha=alpha)
    assert len(calls) == num_encoded


def test_arguments_of_the_pipeline_are_defaults_of_its_calls(auto):
    expected = made(auto)(make_image("RGB"), descriptions=DESCRIBED, alpha=0.25)
    assert made(auto, descriptions=DESCRIBED, alpha=0.25)(make_image("RGB")) == expected
    template = made(auto, hypothesis_template="the {} bird")
    assert template(make_image("RGB"), descriptions=DESCRIBED, alpha=0.25) == expected


@pytest.mark.parametrize("ensembling", ["embedding", "score"])
def test_scores_by_class_name_are_those_of_jax(ensembling):
    loaded = tiny_model(type="clip")
    loaded.config.evaluation.prompt_ensembling = ensembling
    parts = (huggingface_folder.torch_model(loaded), huggingface_folder.processor(loaded))
    found = made(parts)(make_image("RGB"), candidate_labels=LABELS)
    model = Model(loaded, note=lambda text: None)
    (answer,) = model.classify(np.asarray(make_image("RGB")), LABELS)
    scores = {entry["label"]: entry["score"] for entry in found}
    for one in answer.ranked:
        assert scores[one.label] == pytest.approx(one.probability, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"descriptions": DESCRIBED, "alpha": 2.0},
            ValueError,
            "alpha=2.0; expected a number from 0",
        ),
        ({"candidate_labels": ["red"], "alpha": 1.0}, ValueError, "descriptions"),
        (
            {"candidate_labels": ["red"], "descriptions": DESCRIBED},
            ValueError,
            "descriptions of exactly",
        ),
        ({"descriptions": {"red": "crest"}}, ValueError, "must be a list of texts"),
        ({"descriptions": DESCRIBED, "hypothesis_template": "{}"}, ValueError, "names only"),
        (
            {"candidate_labels": ["red"], "description": {}},
            TypeError,
            "'description' is not an arg",
        ),
    ],
)
def test_contradictory_pipeline_arguments_are_refused(auto, arguments, error, message):
    from grain_jax.formats.torch_grain.processing_grain import GrainZeroShotPipeline

    model, processor = auto
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    with pytest.raises(error, match=message):
        GrainZeroShotPipeline(model=model, **parts)(make_image("RGB"), **arguments)


def test_code_of_the_folder_is_the_packages(folder):
    package = Path(huggingface_folder.__file__).parent / "torch_grain"
    for name in huggingface_folder.CODE:
        assert (folder / name).read_text() == (package / name).read_text()
