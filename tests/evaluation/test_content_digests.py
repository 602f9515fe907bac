"""What names the inputs of an evaluation: content, not paths and not order."""

import csv

import numpy as np
import pytest
from PIL import Image
from toy_encoder import toy_encoder

from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.evaluation.content_digests import model_sha256, without_places
from grain_jax.evaluation.details import describe_set
from grain_jax.evaluation.results_file import inputs_sha256

IMAGES = [("a", "owl", 10), ("b", "owl", 20), ("c", "jay", 30)]


def folder(root, images=IMAGES, *, templates=("a {}", "one {}")):
    """Images of one colour each, listed in a table."""
    (root / "images").mkdir(parents=True)
    for name, _, colour in images:
        pixels = np.full((6, 6, 3), colour, np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    with (root / "labels.csv").open("w", newline="") as file:
        rows = [(f"images/{name}.png", label) for name, label, _ in images]
        csv.writer(file).writerows([("file", "label"), *rows])
    (root / "templates.txt").write_text("\n".join(templates))
    return root


def digest(root, **more):
    dataset = load_zero_shot(root, note=lambda text: None)
    report = {
        "checkpoint": str(root),
        "step": 7,
        "model_sha256": "m",
        "data": str(root),
        "split": None,
        "settings": {"methods": ["name"]},
        "zero_shot_sets": {dataset.name: describe_set(dataset)},
        "splits": {},
    }
    return inputs_sha256(report | more)


def test_order_and_path_do_not_count(tmp_path):
    one = digest(folder(tmp_path / "x" / "birds"))
    assert digest(folder(tmp_path / "y" / "birds")) == one
    assert digest(folder(tmp_path / "other", IMAGES[::-1])) == one
    assert digest(folder(tmp_path / "texts", templates=("one {}", "a {}"))) == one
    renamed = [(f"{name}{name}", label, colour) for name, label, colour in IMAGES]
    assert digest(folder(tmp_path / "files", renamed)) == one
    assert digest(tmp_path / "x" / "birds", step=8) == one


@pytest.mark.parametrize(
    "images",
    [
        [*IMAGES[:2], ("c", "jay", 31)],  # other bytes
        [("a", "jay", 10), ("b", "owl", 20), ("c", "owl", 30)],  # labels of others
        [*IMAGES, ("d", "jay", 30)],
        [("a", "owl", 10), ("b", "owl", 20), ("c", "wren", 30)],
    ],
)
def test_other_images_labels_or_names_count(tmp_path, images):
    assert digest(folder(tmp_path / "birds")) != digest(folder(tmp_path / "others", images))


def test_other_texts_settings_or_weights_count(tmp_path):
    root = folder(tmp_path / "birds")
    found = [
        digest(root),
        digest(folder(tmp_path / "texts", templates=("a {}", "two {}"))),
        digest(root, settings={"methods": ["name", "description"]}),
        digest(root, model_sha256="n"),
        digest(root, bank={"data": "/a", "sha256": "b"}),
    ]
    assert len(set(found)) == 5
    assert digest(root, bank={"data": "/elsewhere", "sha256": "b"}) == found[-1]


def test_places_are_left_out_at_any_depth():
    value = {"a": [{"file": "/x", "count": 3}], "data": "/y", "images": {"folder": None}}
    assert without_places(value) == {"a": [{"count": 3}], "images": {}}


def test_a_model_goes_by_its_weights():
    encoder = toy_encoder()
    assert model_sha256(encoder) == model_sha256(toy_encoder())
    assert len(model_sha256(encoder)) == 64
