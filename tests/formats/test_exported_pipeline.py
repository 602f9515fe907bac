"""The exported pipeline: texts embedded once, wrong dictionaries and bad images named, texts
cleaned as in training.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import GOLDEN
from tiny_model import tiny_model

from grain_jax.data.tokenizer import ClipTokenizer
from grain_jax.formats import huggingface as huggingface_folder
from grain_jax.formats.fast_tokenizer import fast_tokenizer

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
processing = pytest.importorskip("grain_jax.formats.torch_grain.processing_grain")

TOKENS = GOLDEN / "openai_tokens.json"
DESCRIBED = {"red": ["red crest"], "blue": ["blue tail", "a blue bird"]}


def make_image(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8))


@pytest.fixture
def classify():
    loaded = tiny_model()
    processor = huggingface_folder.processor(loaded)
    return processing.GrainZeroShotPipeline(
        model=huggingface_folder.torch_model(loaded),
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )


@pytest.fixture
def encoded(classify, monkeypatch):
    """Shapes of the texts that were embedded so far."""
    calls = []
    encode = classify.model.get_text_features
    monkeypatch.setattr(
        classify.model, "get_text_features", lambda ids: calls.append(ids.shape) or encode(ids)
    )
    return calls


def test_texts_are_embedded_once_for_many_calls(classify, encoded):
    one = [classify(make_image(i), candidate_labels=["red", "blue"]) for i in range(3)]
    assert len(encoded) == 1
    assert classify([make_image(i) for i in range(3)], candidate_labels=["red", "blue"]) == one
    classify(make_image(), candidate_labels=["red", "a blue bird"])
    assert len(encoded) == 2


def changed_in_place(model):
    model.backbone.text_projection.mul_(-1.0)


def changed_through_data(model):
    model.backbone.text_projection.data.mul_(-1.0)  # which torch does not count


def replaced(model):
    model.backbone.text_projection = torch.nn.Parameter(-model.backbone.text_projection)


def loaded_again(model):
    name = "backbone.text_projection"
    model.load_state_dict({name: -model.state_dict()[name]}, strict=False)


@pytest.mark.parametrize("change", [changed_in_place, changed_through_data, replaced, loaded_again])
def test_texts_are_embedded_again_for_other_weights(classify, encoded, change):
    def scores():
        found = classify(make_image(), candidate_labels=["red", "blue"])
        return {entry["label"]: entry["score"] for entry in found}

    before = scores()
    with torch.no_grad():
        change(classify.model)
    after = scores()
    assert len(encoded) == 2
    assert before["red"] == pytest.approx(after["blue"], abs=1e-5)  # cosines changed their sign
    assert abs(before["red"] - 0.5) > 1e-3


def test_texts_are_embedded_again_in_another_type(classify, encoded):
    classify(make_image(), candidate_labels=["red", "blue"])
    classify.model.to(torch.bfloat16)
    classify(make_image(), candidate_labels=["red", "blue"])
    assert len(encoded) == 2


def test_only_the_last_texts_are_cached(classify, encoded):
    for i in (*range(6), *range(2, 6)):
        classify(make_image(), candidate_labels=["red", "blue " * (i + 1)])
    assert len(encoded) == 6
    classify(make_image(), candidate_labels=["red", "blue "])
    assert len(encoded) == 7


NESTED = {"red": {"coarse": "a bird", "description": "red crest"}}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (NESTED, r"\['red'\] must be a list of texts; got a dictionary with the keys 'coarse', 'd"),
        ({"red": None}, r"\['red'\] must be a list of texts; got None"),
        ({"red": 3}, r"\['red'\] must be a list of texts; got 3"),
        ({"red": {"crest"}}, r"\['red'\] must be a list of texts; got \{'crest'\}"),
        ({"red": []}, r"\['red'\] must be a list of texts, not empty"),
        ({"red": {}}, r"\['red'\] must be a list of texts; got a dictionary"),
        ({"red": "crest"}, r"\['red'\] must be a list of texts; got 'crest'"),
        ({"red": [["crest"]]}, r"\['red'\] must be a list of texts; number 1 is \['crest'\]"),
        ({"red": ["crest", None]}, r"\['red'\] must be a list of texts; number 2 is None"),
        ({"red": ["crest", " "]}, r"\['red'\] must be a list of texts; number 2 is ' '"),
        ({3: ["crest"]}, r"labels of descriptions must be a list of texts; number 1 is 3"),
        ({}, "descriptions has no labels"),
        ([["crest"]], "descriptions must be .* got a list"),
        ("crest", "descriptions must be .* got a str"),
    ],
)
def test_wrong_descriptions_are_named(classify, given, named):
    with pytest.raises(ValueError, match=named):
        classify(make_image(), descriptions=given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (NESTED, "got a dictionary. Give descriptions of labels as"),
        (DESCRIBED, "got a dictionary"),
        (["red", ["blue"]], r"number 2 is \['blue'\]"),
        (["red", ""], "number 2 is ''"),
        ({"red"}, "must be a list of texts; got {'red'}"),
        (["red", "blue", "red"], "candidate_labels has 'red' more than once"),
    ],
)
def test_wrong_labels_are_named(classify, given, named):
    with pytest.raises(ValueError, match=named):
        classify(make_image(), given)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"descriptions": DESCRIBED, "alpha": "0.5"}, "alpha='0.5'; expected a number from 0 to 1"),
        ({"descriptions": DESCRIBED, "alpha": True}, "alpha=True; expected a number"),
        (
            {"hypothesis_template": 3},
            "hypothesis_template must be a text or a list .* got 3",
        ),
        ({"hypothesis_template": ["{}", 3]}, "hypothesis_template must be .*; number 2 is 3"),
    ],
)
def test_wrong_options_are_named(classify, options, named):
    with pytest.raises(ValueError, match=named):
        classify(make_image(), ["red", "blue"], **options)


@pytest.fixture
def files(tmp_path):
    """Three images, the second of which is none."""
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i in (0, 2):
        make_image(i).save(paths[i])
    Path(paths[1]).write_bytes(b"<html>not found</html>")
    return paths


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_bad_image_is_named_or_skipped(classify, files, batch_size):
    options = {"descriptions": DESCRIBED, "batch_size": batch_size}
    with pytest.raises(ValueError, match=r"Image 2 of 3 \('.*1.png'\) cannot be read: "):
        classify(files, **options)
    with pytest.warns(UserWarning, match=r"Skipped: Image 2 of 3 \('.*1.png'\) cannot be read"):
        found = classify(files, **options, on_error="skip")
    assert found[1] == []
    for i in (0, 2):
        alone = classify(files[i], descriptions=DESCRIBED)
        assert [entry["label"] for entry in found[i]] == [entry["label"] for entry in alone]
        scores = [entry["score"] for entry in alone]
        assert [entry["score"] for entry in found[i]] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("nowhere.png", r"The image \('nowhere.png'\) cannot be read"),
        (["nowhere.png"], r"Image 1 of 1 \('nowhere.png'\) cannot be read"),
        (
            [make_image(), np.zeros((4, 4, 3))],
            "Image 2 of 2 cannot be read: An image array must be",
        ),
        ([3], "Image 1 of 1 cannot be read"),
    ],
)
def test_images_of_all_kinds_are_named(classify, given, named):
    with pytest.raises(ValueError, match=named):
        classify(given, candidate_labels=["red", "blue"])
    with pytest.raises(ValueError, match="on_error='ignore'; choose one of"):
        classify(given, candidate_labels=["red", "blue"], on_error="ignore")


def test_the_processor_names_a_bad_image_too(files):
    with pytest.raises(ValueError, match=r"Image 2 of 3 \('.*1.png'\) cannot be read"):
        processing.GrainImageProcessor(image_size=16)(files)


# --- Texts


@pytest.fixture(scope="module")
def clip_processor(tmp_path_factory):
    """Saved and read again, with the record of how texts are cleaned."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    fast_tokenizer(ClipTokenizer(), max_length=600).save_pretrained(folder)
    assert (
        json.loads((folder / "tokenizer_config.json").read_text())["text_normalization"] == "ftfy"
    )
    return processing.GrainProcessor(
        processing.GrainImageProcessor(), AutoTokenizer.from_pretrained(folder)
    )


def test_the_processor_gives_the_ids_of_the_tokenizer(clip_processor):
    """Of a thousand odd texts; the tokenizer's own are OpenAI's."""
    texts = [text for text, _ in json.loads(TOKENS.read_text())["texts"]]
    expected, _ = ClipTokenizer().encode(texts, 600)
    theirs = clip_processor(text=texts)["input_ids"]
    described = clip_processor(descriptions=texts)["description_ids"]
    for text, row, found, again in zip(texts, expected.tolist(), theirs, described, strict=True):
        end = row.index(49_407) + 1
        assert found[:end] == row[:end] == again[:end], ascii(text)


def test_the_tokenizer_alone_cleans_all_but_entities_and_encodings(clip_processor):
    for text in (
        "the \u201cvintage\u201d dog\u2019s",
        "cre\u0300me",
        "\ufb01ne \uff23\uff21\uff34",
    ):
        row = ClipTokenizer().encode([text], 77)[0][0].tolist()
        found = clip_processor.tokenizer(text)["input_ids"]
        assert found == row[: len(found)]


def test_a_pipeline_cleans_texts_as_in_training(classify):
    classify.tokenizer = fast_tokenizer(ClipTokenizer(), max_length=12)
    found = classify.token_ids(["caf\u00c3\u00a9 &amp;amp; bar"], 12)
    assert found.tolist() == classify.token_ids(["caf\u00e9 & bar"], 12).tolist()


def test_without_ftfy_only_texts_that_need_it_are_refused(clip_processor, monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    tokenizer = clip_processor.tokenizer
    assert processing.normalized(["a \u201cred\u201d bird"], tokenizer) == [
        "a \u201cred\u201d bird"
    ]
    with pytest.raises(ImportError, match="pip install ftfy"):
        processing.normalized("cr\u00e8me", tokenizer)
    tokenizer.init_kwargs.pop("text_normalization")  # an export of before
    assert processing.normalized("cr\u00e8me &amp;", tokenizer) == "cr\u00e8me &amp;"
    tokenizer.init_kwargs["text_normalization"] = "ftfy"
