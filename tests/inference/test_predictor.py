import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from typing import ClassVar

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from places import HELPERS, REPOSITORY
from stored_results import stored_results
from tiny_run import TinyRun, tiny_config
from toy_encoder import ToyModel, columns, make_image, toy_model

import grain_jax
from grain_jax import evaluate
from grain_jax.config import CheckpointConfig
from grain_jax.data.synthetic_birds.language import PROMPT_TEMPLATES
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.data.transforms import ImageError, Preprocessing, Window, center_window
from grain_jax.inference.encoder import Encoder
from grain_jax.models.bundle import make_metadata
from grain_jax.training.checkpoint import Checkpoints

COLOURS = ("red", "green", "blue", "white", "black", "grey")
PARTS = ("crest", "beak", "tail")
DESCRIPTIONS = {
    f"{colour} bird": [f"{colour} {part}" for part in PARTS[: 1 + i % 3]]
    for i, colour in enumerate(COLOURS)
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run whose weights are random, and so are its rankings."""
    config = tiny_config()
    config.data.resize = "crop"
    folder = tmp_path_factory.mktemp("run")
    metadata = make_metadata(
        config,
        tokenizer=WordTokenizer([*COLOURS, *PARTS, "a", "photo", "of", "the", "bird"]),
        preprocessing=Preprocessing.from_config(config.data, config.model.image_size),
        templates=PROMPT_TEMPLATES,
        num_images=16,
    )
    checkpoints = Checkpoints(folder, CheckpointConfig(), metadata=metadata)
    state = TinyRun(config).state
    # Weights large enough for images to differ in what they are most similar to.
    params = jax.tree.map(lambda leaf: 6 * leaf if leaf.ndim > 1 else leaf, state.params)
    checkpoints.save(dataclasses.replace(state, params=params), step=1)
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def model(run_folder):
    return grain_jax.load(run_folder, batch_size=8)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Random images in one folder a class, with descriptions."""
    root = tmp_path_factory.mktemp("birds")
    rng = np.random.default_rng(0)
    for label in DESCRIPTIONS:
        (root / label).mkdir()
        for number in range(4):
            pixels = rng.integers(0, 256, (5, 4 + number, 3)).astype(np.uint8)
            size = 20 + 4 * number, 24
            Image.fromarray(pixels).resize(size).save(root / label / f"{number}.png")
    (root / "descriptions.json").write_text(json.dumps(DESCRIPTIONS))
    return root


def test_a_step_is_chosen_by_its_number(run_folder):
    assert grain_jax.load(run_folder, step=1).loaded.step == 1
    with pytest.raises(ValueError, match=r"has no step 9; it has \[1\]"):
        grain_jax.load(run_folder, step=9)
    with pytest.raises(ValueError, match="held-out metric"):
        grain_jax.load(run_folder, best=True)


def test_it_agrees_with_the_evaluation_command(run_folder, model, labelled, tmp_path):
    output = tmp_path / "figures.json"
    arguments = [f"--checkpoint={run_folder}", f"--data={labelled}", f"--output={output}"]
    assert evaluate.main([*arguments, "--alphas=1,0.3,0"]) == 0
    figures = stored_results(output)
    files = sorted(labelled.glob("*/*.png"))
    embedded = model.embed_images(files)
    compared = []

    def check(way, *descriptions, **options):
        results = model.classify(embedded, list(DESCRIPTIONS), *descriptions, **options)
        ranks = [
            [one.label for one in result.ranked].index(file.parent.name)
            for file, result in zip(files, results, strict=True)
        ]
        top1 = sum(rank == 0 for rank in ranks) / len(ranks)
        assert figures[f"{labelled.name}/{way}"] == pytest.approx(top1), way
        top5 = sum(rank < 5 for rank in ranks) / len(ranks)
        assert figures[f"{labelled.name}/{way}/top5"] == pytest.approx(top5), way
        compared.append(tuple(ranks))
        assert len({result.label for result in results}) > 2  # of 6: not all images alike

    check("name", top_k=None)
    for alpha in (1.0, 0.3, 0.0):
        check(f"description/alpha{alpha:g}", DESCRIPTIONS, alpha=alpha, top_k=None)
    check(
        "name_and_regions/alpha0.3", DESCRIPTIONS, alpha=0.3, method="name_and_regions", top_k=None
    )
    assert len(set(compared)) == len(compared)  # no way is right by being another
    with_name = model.classify(
        embedded, list(DESCRIPTIONS), DESCRIPTIONS, alpha=1.0, method=WITH_NAME
    )
    by_name = model.classify(embedded, list(DESCRIPTIONS))
    assert [one.label for one in with_name] == [one.label for one in by_name]


WITH_NAME = "name_and_regions"


def test_one_form_of_an_image_is_as_good_as_another(model, tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (30, 20, 3)).astype(np.uint8)
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(pixels)).save(path, exif=exif)
    with Image.open(path) as opened:
        forms = [path, str(path), path.read_bytes(), opened, opened, pixels]
        embedded = model.embed_images(forms)
    for one in range(1, len(forms)):
        np.testing.assert_array_equal(embedded.image[one], embedded.image[0])
        np.testing.assert_array_equal(embedded.boxes_xyxy[one], embedded.boxes_xyxy[0])
    assert embedded.sizes.tolist() == [[30, 20]] * len(forms)
    assert embedded.names[1:4] == (str(path), "image 2", "image 3")
    gray = model.embed_images([pixels[..., 0], np.repeat(pixels[..., :1], 3, axis=2)])
    np.testing.assert_array_equal(gray.image[0], gray.image[1])


def test_an_image_means_the_same_alone_and_among_others(model, labelled):
    files = sorted(labelled.glob("*/*.png"))[:11]
    together = model.embed_images(files)
    for number in (0, 10):
        alone = model.embed_images(files[number])
        for name in ("image", "regions", "boxes_xyxy"):
            np.testing.assert_allclose(
                getattr(alone, name)[0], getattr(together, name)[number], rtol=1e-4, atol=1e-5
            )


class Counting(ToyModel):
    """Notes what is compiled: a call of the module is a trace."""

    traced: ClassVar[list[tuple[str, int]]] = []

    def encode_images(self, images, *, train=False):
        self.traced.append(("images", len(images)))
        return super().encode_images(images, train=train)

    def encode_texts(self, tokens):
        self.traced.append(("texts", len(tokens)))
        return super().encode_texts(tokens)


def test_each_power_of_two_is_compiled_once():
    Counting.traced.clear()
    model = toy_model(model=Counting(), batch_size=4)
    make_images = [make_image("red", "green", "blue")] * 11
    for count in (1, 3, 1, 4, 2, 11, 6):  # the last two: 4 + 4 + 3 and 4 + 2
        assert len(model.embed_images(make_images[:count])) == count
    assert Counting.traced == [("images", 1), ("images", 4), ("images", 2)]
    Counting.traced.clear()
    for texts in (["red"], ["blue"], ["a", "b"], [f"word {i}" for i in range(7)]):
        model.embed_texts(texts)
    assert Counting.traced == [("texts", 1), ("texts", 2), ("texts", 4)]


def test_a_batch_size_that_is_no_power_of_two_is_a_size_too():
    Counting.traced.clear()
    model = toy_model(model=Counting(), batch_size=6)
    for count in (5, 6, 3):
        model.embed_images([make_image("red")] * count)
    assert Counting.traced == [("images", 6), ("images", 4)]


def test_known_texts_are_not_embedded_again(monkeypatch):
    model = toy_model()
    model.classify(make_image("red"), ["red", "blue"])
    monkeypatch.setattr(Encoder, "texts", lambda *_, **__: pytest.fail("embedded again"))
    assert model.classify(make_image("blue"), ["red", "blue"])[0].label == "blue"


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.booleans(),
    st.lists(st.floats(0, 1), min_size=4, max_size=4, unique=True),
)
def test_boxes_of_a_window_go_back_to_where_they_came_from(height, width, flip, corners):
    whole = center_window(height, width)
    window = Window(whole.top, whole.left, whole.height, whole.width, flip)
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    inside = np.array([[x0, y0, x1, y1]])
    back = window.to_image(inside)
    seen = window.box(tuple(back[0]))
    if seen is not None:  # None: rounding made it empty
        np.testing.assert_allclose(seen, inside[0], atol=1e-9)
    low, high = window.left, window.left + window.width
    assert np.all((back[:, [0, 2]] > low - 1e-9) & (back[:, [0, 2]] < high + 1e-9))


@pytest.mark.parametrize(
    ("resize", "red", "blue", "view"),
    [
        ("squash", (0, 0, 40, 40), (40, 0, 80, 40), (0, 0, 80, 40)),
        ("crop", (20, 0, 40, 40), (40, 0, 60, 40), (20, 0, 60, 40)),
    ],
)
def test_boxes_are_in_pixels_of_the_image_given(resize, red, blue, view):
    """The toy's two queries look at the first two quarters of what it sees, and say the halves."""
    pixels = columns("red", "blue")
    if resize == "crop":  # the same in the centre, beside what is cut off
        pixels = columns("green", "green", "green", "green")
        pixels[:, 20:60] = columns("red", "blue", width=40)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by 90 degrees counter-clockwise
    Image.fromarray(np.rot90(pixels, -1)).save(turned, "PNG", exif=exif)
    model = toy_model(resize=resize)
    for grounding in model.ground([pixels, turned.getvalue()], ["blue part", "red part"]):
        assert (grounding.height, grounding.width) == (40, 80)
        first, second = grounding.phrases
        assert (first.query, second.query) == (1, 0)
        np.testing.assert_allclose(first.box_xyxy, blue, atol=1e-4)
        np.testing.assert_allclose(second.box_xyxy, red, atol=1e-4)
        np.testing.assert_allclose(grounding.boxes_xyxy, [red, blue], atol=1e-4)
        np.testing.assert_allclose(grounding.cosines, [[0, 1], [1, 0]], atol=0.15)  # bicubic
    np.testing.assert_allclose(model.embed_images(pixels).crop_xyxy, [view])


def test_a_label_says_which_of_its_descriptions_was_seen_where():
    model = toy_model()
    described = {"parrot": ["blue tail", "green wing"], "crow": ["red eye"]}
    (result,) = model.classify(make_image("red", "green", "red"), ["crow", "parrot"], described)
    assert result.label == "crow"  # red in the whole and in a region
    best, second = result.ranked
    assert [(one.text, one.query) for one in best.grounded] == [("red eye", 1)]
    assert best.grounded[0].box_xyxy == pytest.approx((2, 0, 4, 4))
    assert [one.text for one in second.grounded] == ["green wing", "blue tail"]
    assert [one.cosine for one in second.grounded] == pytest.approx([1, 0])
    assert best.score == pytest.approx(1.0)
    assert second.score == pytest.approx(0.25)  # half the regions of one of two descriptions
    odds = best.probability / second.probability
    assert odds == pytest.approx(np.exp(10 * (1.0 - 0.25)), rel=1e-5)
    assert best.probability + second.probability == pytest.approx(1)


def test_alpha_weighs_the_whole_against_the_regions():
    model = toy_model()
    described = {"a": ["red"], "b": ["blue"]}
    embedded = model.embed_images(make_image("red", "blue", "blue"))
    for alpha, label in ((1.0, "a"), (0.8, "a"), (0.2, "b"), (0.0, "b")):
        (result,) = model.classify(embedded, ["a", "b"], described, alpha=alpha)
        assert result.label == label
        assert result.ranked[0].score == pytest.approx(max(alpha, 1 - alpha))
    (result,) = model.classify(embedded, ["a", "b"], described)
    assert result.ranked[0].score == pytest.approx(0.5)


def test_what_decided_is_what_was_compared():
    model = toy_model()
    described = {"a": ["red", "green"], "b": ["blue"]}
    embedded = model.embed_images(make_image("red", "blue", "blue"))
    (whole,) = model.classify(embedded, ["a", "b"], described, alpha=1.0)
    assert [(one.text, one.query) for one in whole.ranked[0].grounded] == [
        ("red", None),
        ("green", None),
    ]
    (named,) = model.classify(embedded, ["a", "b"], described, alpha=1.0, method="name_and_regions")
    assert [ranked.grounded for ranked in named.ranked] == [(), ()]
    (regions,) = model.classify(embedded, ["a", "b"], described, alpha=0.0)
    assert all(one.query is not None for ranked in regions.ranked for one in ranked.grounded)


def test_the_logit_scale_is_held_within_its_bounds():
    model = toy_model()
    model.loaded.params["logit_scale"] = np.float32(20.0)
    assert model.logit_scale == 100.0


def test_a_clip_model_classifies_but_grounds_nothing():
    model = toy_model(regions=False)
    embedded = model.embed_images(make_image("red"))
    assert embedded.regions is None
    assert embedded.boxes_xyxy is None
    (result,) = model.classify(embedded, ["x", "y"], {"x": ["blue"], "y": ["red", "red one"]})
    seen = result.ranked[0].grounded  # in the whole image, as nothing else decides
    assert (result.label, [one.text for one in seen]) == ("y", ["red", "red one"])
    height, width = embedded.sizes[0]
    assert [(one.query, one.box_xyxy) for one in seen] == [(None, (0, 0, width, height))] * 2
    assert np.mean([one.cosine for one in seen]) == pytest.approx(result.ranked[0].score)
    assert model.classify(embedded, ["red", "blue"])[0].ranked[0].grounded == ()
    with pytest.raises(ValueError, match="CLIP model, which has no regions"):
        model.ground(embedded, ["red"])
    with pytest.raises(ValueError, match=r"alpha=0.5 needs regions"):
        model.classify(embedded, ["x"], {"x": ["blue"]}, alpha=0.5)
    with pytest.raises(ValueError, match="by another model, without regions"):
        toy_model().ground(embedded, ["red"])
    with pytest.raises(ValueError, match="by another model, without regions"):
        toy_model().classify(embedded, ["x"], {"x": ["blue"]}, method="name_and_regions")


WRONG_TYPES = """
from toy_encoder import toy_model

for arguments in (
    (None, ["red"]),
    (3, ["red"]),
    ({"a": "b.png"}, ["red"]),
    ([object()], ["red"]),
    ("a.png", {"red": ["red tail"]}),
    ("a.png", ["red"], [["red tail"]]),
    ("a.png",),
    ("a.png", 7),
):
    try:
        toy_model().classify(*arguments)
    except ValueError as error:
        print(error)
"""


def test_wrong_types_are_named():
    """As users have it, without the types that tests check."""
    paths = os.pathsep.join([str(HELPERS), str(REPOSITORY)])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", WRONG_TYPES]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 8
    for line, message in zip(
        lines,
        [
            "given as NoneType; expected a file's path",
            "given as int; expected a file's path",
            "given as dict; expected a file's path",
            "'image 0': a object is no image; expected a file's path",
            "not a dict; classify(images, descriptions=...)",
            "descriptions as {label: [text, ...]}, or both; got a list",
            "Give labels, or descriptions as {label: [text, ...]}, or both; got neither",
            "labels takes a list of texts, not a int",
        ],
        strict=True,
    ):
        assert message in line


def test_labels_may_come_from_their_descriptions():
    described = {"x": ["blue"], "y": ["red"]}
    model, image = toy_model(), make_image("red")
    assert model.classify(image, descriptions=described) == model.classify(
        image, ["x", "y"], described
    )


def test_what_may_spoil_an_answer_is_noted(model):
    notes = []
    toy = toy_model(note=notes.append)
    toy.classify(make_image("red"), ["x", "y"], {"x": ["blue"]})
    assert "1 of 2 classes have no description ('y' first)" in notes.pop()
    toy.classify(make_image("red"), ["x", "y"], {"x": ["blue"]})
    assert notes == []  # said once
    toy.embed_texts(["one two three four red"], "description")
    assert "1 of 1 texts are longer than the 4 tokens of a description" in notes.pop()
    with pytest.warns(UserWarning, match="same unknown word: purple, cow"):
        model.embed_texts(["a purple cow", "purple"])
    model.embed_texts(["a cow"])  # said once


def test_unreadable_images_are_named_and_can_be_left_out(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    model = toy_model()
    make_images = [make_image("red"), broken, make_image("blue"), b"nothing", make_image("green")]
    with pytest.raises(ImageError, match=r"Image '.*broken.jpg': 8 bytes are not an image"):
        model.embed_images(make_images)
    embedded = model.embed_images(make_images, on_error="skip")
    assert embedded.image.argmax(axis=1).tolist() == [0, 2, 1]
    assert embedded.names == ("image 0", "image 2", "image 4")
    assert [(one.position, one.name) for one in embedded.skipped] == [
        (1, str(broken)),
        (3, "image 3"),
    ]
    none = model.embed_images([broken], on_error="skip")
    assert len(none) == 0
    assert none.boxes_xyxy.shape == (0, 2, 4)
    assert model.classify(none, ["red"]) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nowhere.jpg", "'nowhere.jpg': there is no such file"),
        ("x" * 5000, "x': there is no such file"),
        (os.curdir, "it is a folder"),
        ("https://example.org/a.jpg", "download it first"),
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\] is no image; expected uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\] is no image"),
        (np.zeros((2, 4, 4, 3), np.uint8), "Give a list of images"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        ([], "There are no images"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        toy_model().embed_images(images)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, "There are no labels"),
        (("red",), {}, r"labels takes a list of texts, not one: \['red'\]"),
        ((["red", " "],), {}, r"labels\[1\] is ' '"),
        ((["red", "blue", "red"],), {}, "Label 'red' is given more than once"),
        ((["red"], {"redd": ["x"]}), {}, r"'redd', which is not among the 1 labels; is it 'red'\?"),
        ((["red"], {"red": "a crest"}), {}, "must be a list of texts"),
        ((["red"], {"red": [" "]}), {}, "holds no text"),
        ((["red"],), {"alpha": 0.5}, "give some, or leave alpha out"),
        ((["red"], {"red": ["x"]}), {"alpha": 1.5}, "given 1.5, expected 0 to 1"),
        ((["red"],), {"top_k": 0}, "at least 1"),
        ((["red"], {"red": ["x"]}), {"method": "guess"}, "Unknown method='guess'"),
        ((["red"],), {"method": WITH_NAME}, "needs a GRAIN model and descriptions"),
        ((["red"],), {"description_template": "a {}"}, "needs descriptions"),
        ((["red"],), {"templates": "a {}"}, "templates takes a list"),
        ((["red"],), {"templates": ["a photo"]}, r"exactly one '\{\}'"),
    ],
)
def test_questions_that_make_no_sense_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        toy_model().classify(make_image("red"), *arguments, **options)


def test_phrases_are_checked():
    model = toy_model()
    for phrases, message in (
        ([], "no phrases"),
        ("red", "takes a list"),
        ([""], "expected a text"),
    ):
        with pytest.raises(ValueError, match=message):
            model.ground(make_image("red"), phrases)
    with pytest.raises(ValueError, match="on_error"):
        model.embed_images(make_image("red"), on_error="ignore")
    with pytest.raises(ValueError, match="kind of text"):
        model.embed_texts(["red"], "title")


def test_progress_is_shown_when_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    model = toy_model()
    model.embed_images([make_image("red")] * 9)
    assert capsys.readouterr().err == ""
    model.embed_images([make_image("red")] * 9, progress=True)
    assert "9/9" in capsys.readouterr().err


def test_the_package_alone_imports_nothing_large():
    code = (
        "import sys, grain_jax; print(grain_jax.__version__);"
        "sys.exit(bool({'jax', 'flax', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, grain_jax.__version__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = grain_jax.lod


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    document = REPOSITORY / "docs" / "use.md"
    (code,) = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    for name in re.findall(r'"(sample/[^"]*)"', code):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(columns("red", "blue")).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("grain_jax.loading.predictor.load", lambda path: toy_model())
    exec(code, scope := {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("sample/unseen/images/00001.png (")
    assert scope["similarity"].shape == (2, 1)


def test_parameters_are_on_one_device(model):
    devices = {device for leaf in jax.tree.leaves(model.loaded.params) for device in leaf.devices()}
    assert len(devices) == 1
