"""The exported folder as its users have it: loaded by transformers alone, offline, trained on."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_model import TEMPLATES, model_config, tiny_model, torch_params, write_run

from grain_jax import export
from grain_jax.data import transforms
from grain_jax.data.transforms import Preprocessing
from grain_jax.formats import huggingface as huggingface_folder
from grain_jax.formats import parity
from grain_jax.formats.grain_reference import to_official
from grain_jax.inference.predictor import Model
from grain_jax.losses.contrastive import contrastive_loss
from grain_jax.models.image_text import build_model, normalize_images
from grain_jax.training import checkpoint

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
torch.set_num_threads(1)  # of models so small, threads would only wait for each other

LABELS = ["red", "blue", "a long tail of a bird and of a bird and of a bird"]  # one is cut
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


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(tiny_model(region_logit_scale="own"), folder)
    line = {
        "step": 7,
        "val/box_iou": 0.5,
        "val/box_recall": 0.25,
        "val/box_recall_upper_bound": 1.0,
    }
    line["val/phrase_accuracy"] = 0.125
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return checkpoint.load(folder), folder


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "model"
    arguments = [f"--checkpoint={loaded[1]}", "--to=huggingface", f"--out={out}"]
    assert export.main(arguments) == 0
    return out


@pytest.fixture(scope="module")
def auto(folder, tmp_path_factory):
    """(model, processor), by the Auto classes; the folder's code goes to a cache of the test's."""
    with pytest.MonkeyPatch.context() as patch:
        modules = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
        patch.syspath_prepend(modules)
        model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        yield model, processor


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


# Pixels


def make_image(mode: str) -> Image.Image:
    rng = np.random.default_rng(1)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (37, 61)).astype(np.uint16))
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "P": (3,)}[mode]
    image = Image.fromarray(rng.integers(0, 256, (37, 61, *channels), np.uint8))
    return image.convert("P") if mode == "P" else image


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "turned"])
def test_pixels_are_exactly_those_of_jax(resize, interpolation, mode):
    from grain_jax.formats.torch_grain.processing_grain import GrainImageProcessor

    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6 if mode == "turned" else 1
    make_image("RGB" if mode == "turned" else mode).save(data, "PNG", exif=exif)
    spec = Preprocessing(image_size=24, resize=resize, interpolation=interpolation)
    processor = GrainImageProcessor(24, resize, interpolation, spec.mean, spec.std)
    found = processor(Image.open(data), return_tensors="np")["pixel_values"]
    assert found.dtype == np.float32
    pixels = (found[0].transpose(1, 2, 0) * spec.std + spec.mean) * 255
    np.testing.assert_allclose(pixels, spec(data.getvalue()), atol=1e-3)
    square = jnp.asarray(spec(data.getvalue()))[None]
    normalised = normalize_images(square, spec.mean, spec.std)
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), normalised, atol=1e-6)


def test_a_palette_may_be_transparent():
    """As `Image.quantize` leaves it; no file is like that, so an image of the caller's alone."""
    from grain_jax.formats.torch_grain.processing_grain import upright_rgb

    image = make_image("RGBA").quantize(16)
    assert image.has_transparency_data
    assert "transparency" not in image.info
    whites = np.asarray(transforms.upright_rgb(image))
    np.testing.assert_array_equal(whites, np.asarray(upright_rgb(image)))
    opaque = np.asarray(image.convert("RGBA"))[..., 3] == 255
    assert not opaque.all()
    assert (whites[~opaque] > np.asarray(image.convert("RGB"))[~opaque]).any()


def test_arrays_and_batches_are_images_too(auto):
    process = auto[1].image_processor
    arrays = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    one = process([Image.fromarray(array) for array in arrays])["pixel_values"]
    np.testing.assert_array_equal(process(arrays)["pixel_values"], one)
    np.testing.assert_array_equal(process(list(arrays))["pixel_values"], one)
    np.testing.assert_array_equal(process(arrays[0])["pixel_values"], one[:1])
    with pytest.raises(ValueError, match=r"uint8.*got float64"):
        process(arrays[0] / 255)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_boxes_come_back_to_the_image(auto, resize):
    """The inverse of what evaluation does to a box."""
    processor = auto[1]
    spec = Preprocessing(image_size=24, resize=resize)
    window = spec.window(np.zeros((40, 100, 3), np.uint8))
    inside = window.box((0.4, 0.25, 0.5, 0.75))
    assert inside is not None
    left, top, right, bottom = inside
    boxes = torch.tensor([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]])
    kept, processor.image_processor.resize = processor.image_processor.resize, resize
    found = processor.boxes_in_pixels(boxes[None], [(40, 100)])
    processor.image_processor.resize = kept
    np.testing.assert_allclose(found[0], [[40, 10, 50, 30]], atol=1e-4)


def test_boxes_of_a_turned_image_are_those_of_the_upright_one(auto, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image("RGB").save(tmp_path / "turned.png", exif=exif)
    turned, boxes = Image.open(tmp_path / "turned.png"), torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])
    turned.load()
    height, width = make_image("RGB").width, make_image("RGB").height
    expected = auto[1].boxes_in_pixels(boxes, [(height, width)])[0]
    array = np.zeros((height, width, 3), np.uint8)
    sizes = [height, width], torch.tensor([height, width]), np.array([height, width])
    for given in (turned, tmp_path / "turned.png", array, *sizes):
        np.testing.assert_array_equal(auto[1].boxes_in_pixels(boxes, [given])[0], expected)
    with pytest.raises(ValueError, match="Boxes of 1 images, and 2 images"):
        auto[1].boxes_in_pixels(boxes, [turned, turned])


def test_a_processor_call_without_inputs_is_refused(auto):
    with pytest.raises(ValueError, match="no images; give at least one"):
        auto[1](images=[])
    with pytest.raises(ValueError, match="no text; give at least one"):
        auto[1](text=[])
    with pytest.raises(ValueError, match="pixel_values, input_ids or"):
        auto[0]()
    with pytest.raises(ValueError, match="images, text or descriptions"):
        auto[1]()


def test_usual_arguments_of_processors_work(auto):
    """What model cards of CLIP write: padding=True; and what would not fit the model is said."""
    processor, texts = auto[1], ["red", "a long tail of a bird"]
    plain = processor(text=texts, return_tensors="pt")
    same = processor(text=texts, return_tensors="pt", padding=True, truncation=True)
    assert torch.equal(plain["input_ids"], same["input_ids"])
    cut = processor(text=texts, descriptions="red", max_length=4, padding="max_length")
    assert [len(row) for row in (*cut["input_ids"], *cut["description_ids"])] == [4, 4, 4]
    with pytest.raises(ValueError, match="max_length=77; this model takes at most 10"):
        processor(text=texts, padding="max_length", max_length=77)


def test_the_embeddings_of_words_are_found(auto):
    model = auto[0]
    assert model.get_input_embeddings() is model.backbone.token_embedding


# The model in PyTorch


def batch(count: int = 4) -> dict:
    generator = torch.Generator().manual_seed(0)
    config = model_config()
    tokens = torch.randint(1, 10, (count, 8), generator=generator)
    tokens[:, -1] = config.text.vocab_size - 1
    pixels = torch.randn(count, 3, config.image_size, config.image_size, generator=generator)
    return {"pixel_values": pixels, "input_ids": tokens}


def fresh(**changes):
    """A model with fresh weights."""
    torch.manual_seed(0)
    model = huggingface_folder.torch_model(tiny_model(**changes))
    return type(model)(model.config)


def test_initialization_is_that_of_jax():
    """Each tensor has the spread of its parameter in JAX, biases and norms too."""
    wide = {"vision__width": 96, "text__width": 96, "decoder__width": 96, "embed_dim": 96}
    wide |= {"decoder__mlp_dim": 192, "region_logit_scale": "own"}
    wide |= {"vision__depth": 1, "decoder__depth": 1}  # the text tower draws by its depth
    config = model_config(**wide)
    images, texts = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 4), np.int32)
    variables = jax.jit(build_model(config).init)(jax.random.key(0), images, texts)
    params = jax.tree.map(np.asarray, nn.unbox(variables["params"]))
    ours = to_official(params, config, unused=False)
    theirs = torch_params(fresh(**wide))
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        few = 0.5 if value.size < 500 else 0.1
        np.testing.assert_allclose(theirs[name].std(), value.std(), rtol=few, err_msg=name)
        np.testing.assert_allclose(
            theirs[name].mean(), value.mean(), atol=5 * value.std() / value.size**0.5, err_msg=name
        )


@pytest.mark.parametrize("kind", ["grain", "clip"])
def test_training_lowers_the_loss(kind):
    model = fresh(type=kind).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        output = model(**batch(), return_loss=True)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output["loss"].item())
    assert losses[-1] < losses[0] - 0.5
    untrained = {name for name, p in model.named_parameters() if p.grad is None}
    assert all("bbox_embed" in name or name == "decoder.obj_proj" for name in untrained)
    assert bool(untrained) == (kind == "grain")


def test_the_loss_is_that_of_jax():
    model = fresh()
    output = model(**batch(), return_loss=True)
    arrays = (output.image_embeds, output.text_embeds, model.logit_factor())
    arrays = [jnp.asarray(tensor.detach().numpy()) for tensor in arrays]
    expected, _ = contrastive_loss(*arrays, key=None)
    np.testing.assert_allclose(output.loss.item(), expected, rtol=1e-5)


def test_dropout_is_on_in_training_alone():
    model = fresh().eval()
    inputs = batch()
    first, second = (model(**inputs).region_embeds for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    first, second = (model(**inputs).region_embeds for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)


def test_compile_has_no_graph_break(auto):
    model, inputs = auto[0].eval(), batch()
    inputs["description_ids"] = inputs["input_ids"]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, found = model(**inputs), compiled(**inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
    found.logits_per_image.sum().backward()
    model.zero_grad()


def test_gradient_checkpointing_changes_no_gradient():
    model = fresh(decoder__dropout=0.0).train()
    blocks = [
        (block := model.backbone.visual.blocks[0], block.norm1),
        (block := model.backbone.transformer.resblocks[0], block.ln_1),
        (block := model.decoder.transformer.decoder.layers[0], block.norm1),
    ]
    calls = []
    for kind, (_, first) in enumerate(blocks):
        first.register_forward_hook(lambda *_, kind=kind: calls.append(kind))
    gradients = []
    for times in (1, 2):  # the second time each block is computed again on the way back
        model.zero_grad()
        calls.clear()
        model(**batch(), return_loss=True).loss.backward()
        assert [calls.count(kind) for kind in range(3)] == [times] * 3
        gradients.append([next(block.parameters()).grad.clone() for block, _ in blocks])
        enable = getattr(model, "activation_checkpointing_enable", None)  # its later name
        (enable or model.gradient_checkpointing_enable)()
    torch.testing.assert_close(*gradients)


def test_unsupported_arguments_of_clip_are_refused_unless_off():
    model, inputs = fresh().eval(), batch()
    off = {"output_hidden_states": False, "output_attentions": None}
    output = model(**inputs, **off, interpolate_pos_encoding=False)
    features = model.get_image_features(inputs["pixel_values"], **off).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(features), output.image_embeds)
    for call in (model, model.get_image_features, model.get_text_features):
        given = inputs if call is model else {}
        first = () if call is model else (next(iter(inputs.values())),)
        with pytest.raises(ValueError, match="output_attentions=True: attention weights"):
            call(*first, **given, output_attentions=True)
        with pytest.raises(TypeError, match="'pixels' is not an argument"):
            call(*first, **given, pixels=None)


def test_scores_are_exact_under_autocast():
    model, inputs = fresh().eval(), batch()
    inputs["description_ids"] = inputs["input_ids"]
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs, return_loss=True)
        assert (
            model.get_image_features(inputs["pixel_values"]).pooler_output.dtype == torch.bfloat16
        )
    assert output.loss.dtype == torch.float32
    for scores, rows in (
        (output.logits_per_image, output.image_embeds),
        (output.description_scores, output.region_embeds),
    ):
        assert scores.dtype == torch.float32
        cosines = rows @ output.text_embeds.T
        scale = model.logit_factor() if scores is output.logits_per_image else 1.0
        torch.testing.assert_close(scores, scale * cosines)


def test_it_runs_on_meta_tensors_and_as_a_replica():
    """Offloaded, and split over GPUs by DataParallel, whose replicas list no parameters."""
    model = fresh().to("meta")
    inputs = {name: value.to("meta") for name, value in batch().items()}
    assert model(**inputs).logits_per_image.shape == (4, 4)
    replica = fresh()
    replica.parameters = lambda *_, **__: iter(())
    assert replica(**batch()).logits_per_image.shape == (4, 4)
    assert not model.accepts_loss_kwargs


def test_other_attention_is_refused(folder):
    auto = transformers.AutoModel.from_pretrained
    with pytest.raises(ValueError, match="attn_implementation='eager'; expected 'sdpa'"):
        auto(folder, trust_remote_code=True, attn_implementation="eager")


@pytest.mark.parametrize("kind", ["grain", "clip"])
def test_features_come_as_those_of_a_clip_of_transformers(kind):
    model, inputs = fresh(type=kind).eval(), batch()
    output = model(**inputs)
    image = model.get_image_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"])
    for found, embed in ((image, output.image_embeds), (text, output.text_embeds)):
        unit = torch.nn.functional.normalize(found.pooler_output, dim=-1)
        torch.testing.assert_close(unit, embed)
    assert (
        image.last_hidden_state.shape[1] - 1
        == (model.config.image_size // model.config.vision["patch_size"]) ** 2
    )
    assert text.last_hidden_state.shape[:2] == inputs["input_ids"].shape
    if kind == "clip":
        projected = image.last_hidden_state[:, 0] @ model.backbone.image_projection
        torch.testing.assert_close(image.pooler_output, projected)
    tokens, pooled = model.get_text_features(inputs["input_ids"], return_dict=False)
    assert torch.equal(tokens, text.last_hidden_state)
    assert torch.equal(pooled, text.pooler_output)
    assert model.logit_scale is model.backbone.logit_scale  # whose exponent scales the logits
    cosines = output.image_embeds @ output.text_embeds.T
    torch.testing.assert_close(output.logits_per_image, model.logit_scale.exp() * cosines)
    model.config.return_dict = False
    assert torch.equal(model(**inputs)[0], output.logits_per_image)


def test_a_scale_beyond_its_bound_can_come_back():
    model = fresh()
    torch.nn.init.constant_(model.backbone.logit_scale, 9.0)
    assert model.logit_factor().item() == pytest.approx(100)
    model.logit_factor().backward()
    assert model.backbone.logit_scale.grad.item() == pytest.approx(100)


@pytest.mark.parametrize(
    "changes",
    [{"type": "clip"}, {"decoder__share_projection": True, "region_logit_scale": "own"}],
    ids=["clip", "shared projection"],
)
def test_saved_and_loaded_it_is_the_same(changes, tmp_path):
    model = fresh(**changes).eval()
    model.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    where = {"_name_or_path": str(tmp_path)}
    assert again.config.to_dict() == model.config.to_dict() | where
    before, after = torch_params(model), torch_params(again)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert ("decoder.obj_proj" in before) == (changes.get("type") == "grain")
    outputs = [m(**batch(), return_dict=False) for m in (model, again)]
    assert len(outputs[0]) == (4 if "type" in changes else 6)
    for left, right in zip(*outputs, strict=True):
        assert torch.equal(left, right)


def test_missing_weights_are_initialized(tmp_path):
    """From weights without a decoder, as one that starts from CLIP has it."""
    whole = fresh()
    rest = {name: p for name, p in whole.state_dict().items() if not name.startswith("decoder.")}
    torch.manual_seed(0)
    model = type(whole).from_pretrained(None, config=whole.config, state_dict=rest)
    for name, value in torch_params(model).items():
        if name in rest:
            np.testing.assert_array_equal(value, rest[name].numpy())
        assert np.isfinite(value).all()
    assert model.decoder.query_embed.weight.std() > 0.5


def test_bfloat16_weights(loaded, auto, tmp_path):
    out = tmp_path / "half"
    arguments = [f"--checkpoint={loaded[1]}", "--to=huggingface", f"--out={out}"]
    assert export.main([*arguments, "--dtype=bfloat16"]) == 0
    size = (out / "model.safetensors").stat().st_size
    model = transformers.AutoModel.from_pretrained(out, trust_remote_code=True)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert size < 0.7 * sum(p.numel() for p in model.parameters()) * 4
    inputs = auto[1](images=Image.new("RGB", (30, 20), "red"), text=LABELS, return_tensors="pt")
    with torch.no_grad():
        half, whole = model(**inputs), auto[0](**inputs)
    for name in ("image_embeds", "text_embeds", "region_embeds", "pred_boxes"):
        torch.testing.assert_close(half[name], whole[name], atol=0.05, rtol=0)
    report = json.loads((out / "parity.json").read_text())
    changed = {entry["output"]: entry["absolute"] for entry in report["rounding"]}
    assert max(entry["absolute"] for entry in report["differences"]) < 1e-4
    assert 1e-4 < changed["image_embeds"] < 0.05
    assert "rounded to bfloat16" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"pixel_values": torch.zeros(1, 3, 16, 16)}, "use the image processor"),
        ({"input_ids": torch.zeros(1, 20, dtype=torch.long)}, "20 tokens do not fit the 12"),
        ({"return_loss": True}, "as many images as texts, pair by pair; got None and None"),
        ({**batch(2), "input_ids": batch(3)["input_ids"], "return_loss": True}, "got 2 and 3"),
    ],
)
def test_inputs_that_do_not_fit_are_explained(inputs, named):
    with pytest.raises(ValueError, match=named):
        fresh()(**inputs)


def test_settings_that_do_not_exist_are_refused():
    config = type(fresh().config)
    with pytest.raises(ValueError, match="vision has no 'layers'; it has patch_size"):
        config(vision={"layers": 3})
    with pytest.raises(ValueError, match="type='siglip'"):
        config(type="siglip")


def test_code_of_the_folder_is_the_packages(folder):
    package = Path(huggingface_folder.__file__).parent / "torch_grain"
    for name in huggingface_folder.CODE:
        assert (folder / name).read_text() == (package / name).read_text()
