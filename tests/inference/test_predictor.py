"""A run as it is loaded: against the evaluation command, and in the forms that images have."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from places import REPOSITORY
from stored_results import stored_results
from tiny_run import TinyRun, tiny_config
from toy_encoder import columns, make_image, toy_model

import grain_jax
from grain_jax import evaluate
from grain_jax.config import CheckpointConfig
from grain_jax.data.synthetic_birds.language import PROMPT_TEMPLATES
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.data.transforms import Preprocessing
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


def test_an_example_is_most_similar_to_itself(model, labelled):
    """Of random weights, which agree with no text."""
    first = {label: [labelled / label / "0.png"] for label in DESCRIPTIONS}
    asked = [file for (file,) in first.values()]
    answers = model.classify(asked, examples=first, examples_only=list(first), top_k=None)
    assert [answer.label for answer in answers] == list(first)
    assert [answer.ranked[0].score for answer in answers] == pytest.approx([1] * 6, abs=1e-5)
    mixed = model.classify(asked, list(first), DESCRIPTIONS, examples=first, alpha=0.5)
    assert {(one.defined_by, one.num_examples) for one in mixed[0].ranked} == {("both", 1)}
    assert all(np.isfinite(one.score) for answer in mixed for one in answer.ranked)


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


def test_what_may_spoil_an_answer_is_noted(model):
    notes = []
    toy = toy_model(note=notes.append)
    toy.classify(make_image("red"), ["x", "y"], {"x": ["blue"]})
    assert "1 of 2 classes have no description ('y')" in notes.pop()
    toy.classify(make_image("red"), ["x", "y"], {"x": ["blue"]})
    assert notes == []  # said once
    toy.embed_texts(["one two three four red"], "description")
    assert "1 of 1 texts are longer than the 4 tokens of a description" in notes.pop()
    with pytest.warns(UserWarning, match="same unknown word: purple, cow"):
        model.embed_texts(["a purple cow", "purple"])
    model.embed_texts(["a cow"])  # said once


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
