"""Real OWL-ViT, OWLv2 and Grounding DINO with random weights, against what `transformers` says."""

import json
import re
import threading

import numpy as np
import pytest
from tiny_detectors import MAX_TOKENS, OWL_SIDE, SHORTEST, image_processor, write_detector

from grain_jax.annotation.backends.detector import Detector, ImageGuidedDetector
from grain_jax.annotation.backends.detectors import DETECTORS, open_detector

pytestmark = pytest.mark.torch
OWLS = ("owlv2", "owlvit")
DINOS = ("grounding-dino", "mm-grounding-dino")
SIZES = ((SHORTEST, SHORTEST), (60, 100), (150, 50), (60, 100))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("detectors")
    return {kind: write_detector(root / kind, kind) for kind in DETECTORS}


@pytest.fixture(scope="module")
def detectors(folders):
    return {kind: open_detector(str(folder), device="cpu") for kind, folder in folders.items()}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


IMAGES = [noise(*size, seed) for seed, size in enumerate(SIZES)]
TEXTS = [["a red bird", "dog"], [], ["bus stop", "bus", "bus stop"], ["st. bernard, 2"]]


@pytest.mark.parametrize("kind", DETECTORS)
def test_the_contract(detectors, kind):
    detector = detectors[kind]
    assert isinstance(detector, Detector)
    assert isinstance(detector, ImageGuidedDetector) == (kind in OWLS)
    assert (detector.dtype, detector.revision) == ("float32", "")
    assert 0 < detector.default_threshold < 1
    prepared = [detector.prepare(image) for image in IMAGES]
    found = detector.detect(prepared, TEXTS)
    assert len(found) == len(IMAGES)
    for each, texts in zip(found, TEXTS, strict=True):
        assert each.boxes_xyxy.dtype == each.scores.dtype == np.float32
        assert each.scores.shape == (len(each.boxes_xyxy), len(texts))
        assert np.isfinite(each.boxes_xyxy).all()
        assert ((each.scores >= 0) & (each.scores <= 1)).all()
        assert (each.boxes_xyxy[:, 2:] >= each.boxes_xyxy[:, :2]).all()
    np.testing.assert_array_equal(found[2].scores[:, 0], found[2].scores[:, 2])  # the same text
    assert np.ptp(found[0].scores) > 0.01
    assert np.ptp(found[0].boxes_xyxy, axis=0).min() > 0.01
    assert detector.detect([], []) == []
    with pytest.raises(ValueError, match="4 images and 1 lists"):
        detector.detect(prepared, [["dog"]])
    with pytest.raises(ValueError, match="'dog' is one text"):
        detector.detect(prepared[:1], ["dog"])
    assert detector.reads_whole("a dog")
    assert not detector.reads_whole("a dog " * MAX_TOKENS)


@pytest.mark.parametrize("kind", DETECTORS)
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(detectors, kind):
    detector = detectors[kind]
    prepared = [detector.prepare(image) for image in IMAGES]
    together = detector.detect(prepared, TEXTS)
    for image, texts, expected in zip(prepared, TEXTS, together, strict=True):
        (alone,) = detector.detect([image], [texts])
        np.testing.assert_allclose(alone.boxes_xyxy, expected.boxes_xyxy, atol=1e-4)
        np.testing.assert_allclose(alone.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize("kind", ["owlv2", "grounding-dino"])
def test_lengths_can_be_asked_for_while_it_detects(folders, kind):
    """The tokenizers of `transformers` keep the padding of a call for the next one."""
    detector = open_detector(str(folders[kind]), device="cpu")
    image = detector.prepare(IMAGES[0])
    over, answers = threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            answers.append(detector.reads_whole("a dog"))
            answers.append(not detector.reads_whole("a dog " * MAX_TOKENS))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for number in range(30):
            found = detector.detect([image] * 2, [[f"a {number}", "a red bird with wings"]] * 2)
            assert all(np.isfinite(each.scores).all() for each in found)
    finally:
        over.set()
        asking.join()
    assert answers
    assert all(answers)


def real_model(folder):
    import transformers

    return transformers.AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", OWLS)
@pytest.mark.parametrize("size", [(OWL_SIDE, OWL_SIDE), (48, OWL_SIDE), (OWL_SIDE, 48)])
def test_owl_finds_what_transformers_finds(detectors, folders, kind, size):
    """Sizes at which nothing has to be resized in OWLv2: pixels are the same."""
    import torch
    import transformers

    if kind == "owlvit" and size[0] != size[1]:
        size = (OWL_SIDE, OWL_SIDE)
    height, width = size
    image, texts = noise(height, width), ["a red bird", "dog", "a small bird with black wings"]
    processor = image_processor(kind).from_pretrained(folders[kind])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    tokens = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = real_model(folders[kind])(**tokens, **processor(image, return_tensors="pt"))
    expected = processor.post_process_object_detection(
        output, threshold=0.0, target_sizes=[(height, width)]
    )[0]
    detector = detectors[kind]
    (found,) = detector.detect([detector.prepare(image)], [texts])
    pixels = found.boxes_xyxy * np.array([width, height] * 2)
    np.testing.assert_allclose(pixels, expected["boxes"].numpy(), atol=1e-2)
    np.testing.assert_allclose(found.scores.max(axis=1), expected["scores"].numpy(), atol=1e-4)
    np.testing.assert_array_equal(found.scores.argmax(axis=1), expected["labels"].numpy())


@pytest.mark.parametrize("kind", DINOS)
def test_grounding_dino_gives_each_phrase_its_own_tokens(detectors, folders, kind):
    import torch
    import transformers

    image = noise(SHORTEST, 130)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    processor = image_processor(kind).from_pretrained(folders[kind])
    tokens = tokenizer("a bus stop. bus. red dog.", return_tensors="pt", return_token_type_ids=True)
    #     0     1   2   3    4  5   6  7   8   9  10
    # [CLS]     a bus stop   . bus  . red dog  . [SEP]
    assert tokenizer.convert_ids_to_tokens(tokens.input_ids[0])[1:10] == (
        ["a", "bus", "stop", ".", "bus", ".", "red", "dog", "."]
    )
    with torch.no_grad():
        output = real_model(folders[kind])(**tokens, **processor(image, return_tensors="pt"))
    scores = output.logits[0].sigmoid().numpy()
    expected = [scores[:, 1:4], scores[:, 5:6], scores[:, 7:9]]
    detector = detectors[kind]
    (found,) = detector.detect([detector.prepare(image)], [["a BUS stop", "bus", "Red dog?"]])
    for column, each in zip(found.scores.T, expected, strict=True):
        np.testing.assert_allclose(column, each.mean(axis=1), atol=1e-4)
    boxes = processor.post_process_object_detection(
        output, threshold=0.0, target_sizes=[(SHORTEST, 130)]
    )[0]["boxes"]
    np.testing.assert_allclose(
        found.boxes_xyxy * np.array([130, SHORTEST] * 2), boxes.numpy(), atol=1e-2
    )


def test_a_long_list_of_phrases_takes_several_passes(detectors):
    detector = detectors["grounding-dino"]
    image = detector.prepare(IMAGES[0])
    texts = ["a red bird", "a small dog", "ball", "bus stop", "bird of black wings", "standing dog"]
    texts += ["dog with ball", "the ball", "the bird", "", "the dog"]
    (found,) = detector.detect([image], [texts])
    (first,) = detector.detect([image], [["ball", "bus stop"]])
    passes = len(found.boxes_xyxy) // len(first.boxes_xyxy)
    assert passes == 2
    asked = found.scores.reshape(passes, -1, len(texts)) > 0
    assert (asked.any(axis=1).sum(axis=0) == [1] * 9 + [0, 1]).all()  # "" is in no pass
    half = asked[0].any(axis=0)
    (alone,) = detector.detect([image], [[t for t, own in zip(texts, half, strict=True) if own]])
    np.testing.assert_allclose(alone.scores, found.scores[: len(alone.scores), half], atol=1e-4)
    with pytest.raises(ValueError, match="official annotation code uses OWLv2"):
        open_detector(detector.name, official_images=True)


@pytest.mark.parametrize("kind", OWLS)
def test_examples_are_looked_for_as_in_transformers(detectors, folders, kind):
    import torch

    detector = detectors[kind]
    example, target = (detector.prepare(image) for image in IMAGES[:2])
    (embedding,) = detector.embed_examples([example])
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    # The box that covers most of the example, found again one by one.
    model = real_model(folders[kind])
    mean, std = (
        np.array(json.loads((folders[kind] / "preprocessor_config.json").read_text()).get(k, v))
        for k, v in (
            ("image_mean", (0.48145466, 0.4578275, 0.40821073)),
            ("image_std", (0.26862954, 0.26130258, 0.27577711)),
        )
    )
    pixels = torch.tensor((example.pixels / 255 - mean) / std).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        grid = model.image_embedder(pixels)[0]
        features = grid.flatten(1, 2)
        boxes = model.box_predictor(features, grid)[0].numpy()
        classes = model.class_predictor(features)[1][0].numpy()

    def cover(box):  # of the example, which is square and fills the canvas
        x, y, w, h = box
        inside = [min(c + s / 2, 1) - max(c - s / 2, 0) for c, s in ((x, w), (y, h))]
        return inside[0] * inside[1] / (1 + w * h - inside[0] * inside[1])

    best = classes[max(range(len(boxes)), key=lambda number: cover(boxes[number]))]
    np.testing.assert_allclose(embedding, best / np.linalg.norm(best), atol=1e-4)
    # The score of a query is what the class head makes of its embedding.
    asked = np.stack([embedding, -embedding])
    (found,) = detector.detect_embeddings([target], asked)
    pixels = torch.tensor((target.pixels / 255 - mean) / std).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        grid = model.image_embedder(pixels)[0]
        features = grid.flatten(1, 2)
        logits = model.class_predictor(features, torch.tensor(asked[None]))[0][0]
    np.testing.assert_allclose(found.scores, logits.sigmoid().numpy(), atol=1e-4)
    assert detector.detect_embeddings([], asked) == []


def test_the_official_image_is_squashed_without_padding(folders):
    detector = open_detector(str(folders["owlv2"]), device="cpu", official_images=True)
    prepared = detector.prepare(noise(50, 150))
    assert prepared.extent == (1.0, 1.0)
    assert prepared.pixels.shape == (OWL_SIDE, OWL_SIDE, 3)
    assert prepared.pixels[-1].any()


@pytest.mark.parametrize("kind", DETECTORS)
def test_bfloat16_finds_nearly_the_same(detectors, folders, kind):
    small = open_detector(str(folders[kind]), device="cpu", dtype="bfloat16")
    assert small.dtype == "bfloat16"
    image = small.prepare(IMAGES[0])
    (found,) = small.detect([image], [["a red bird", "dog"]])
    (expected,) = detectors[kind].detect([image], [["a red bird", "dog"]])
    if kind in OWLS:  # the queries of Grounding DINO are the best of many, in another order
        np.testing.assert_allclose(found.scores, expected.scores, atol=0.1)
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=0.05)
    assert found.boxes_xyxy.dtype == np.float32


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: None, "cannot be opened as a detector"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'), "'vit'"),
    ],
    ids=["no_folder", "no_weights", "no_preprocessor", "another_model"],
)
def test_a_folder_that_is_no_detector_is_an_error_that_says_why(tmp_path, folders, damage, said):
    import shutil

    place = tmp_path / "owl"
    if said != "cannot be opened as a detector":
        shutil.copytree(folders["owlv2"], place)
        damage(place)
    with pytest.raises(ValueError, match=re.escape(said)):
        open_detector(str(place), device="cpu")


@pytest.mark.parametrize(("option", "value"), [("device", "cuda:99"), ("dtype", "int8")])
def test_an_unknown_device_or_dtype_is_named(folders, option, value):
    with pytest.raises(ValueError, match=value):
        open_detector(str(folders["owlv2"]), **{option: value})
