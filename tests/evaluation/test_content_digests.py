"""What names the inputs of an evaluation: content, not paths."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image
from toy_encoder import ToyModel, toy_encoder

from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.records import Caption, Record, Region
from grain_jax.evaluation.content_digests import model_sha256, records_sha256, without_places
from grain_jax.evaluation.details import describe_set
from grain_jax.evaluation.results_file import inputs_sha256
from grain_jax.inference.encoder import Encoder

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
        digest(folder(tmp_path / "order", templates=("one {}", "a {}"))),
        digest(root, settings={"methods": ["name", "description"]}),
        digest(root, model_sha256="n"),
        digest(root, bank={"data": "/a", "sha256": "b"}),
    ]
    assert len(set(found)) == 6
    assert digest(root, bank={"data": "/elsewhere", "sha256": "b"}) == found[-1]


def test_places_are_left_out_at_any_depth():
    value = {"a": [{"file": "/x", "count": 3}], "data": "/y", "images": {"folder": None}}
    assert without_places(value) == {"a": [{"count": 3}], "images": {}}


class OtherModel(ToyModel):
    pass


def test_a_model_goes_by_all_that_decides_about_its_embeddings():
    encoder = toy_encoder()
    changed = {
        "weights": {"params": {"logit_scale": np.log(np.float32(11.0))}},
        "model": {"model": OtherModel()},
        "settings of the model": {"model": ToyModel(regions=False)},
        "pixels": {"preprocessing": dataclasses.replace(encoder.preprocessing, image_size=8)},
        "length": {"caption_length": 32},
    }
    given = {
        "model": encoder.model,
        "params": encoder.params,
        "tokenizer": encoder.tokenizer,
        "preprocessing": encoder.preprocessing,
        "caption_length": 8,
        "description_length": 8,
    }

    def found(**more) -> str:
        given_here = given | more
        model, params = given_here.pop("model"), given_here.pop("params")
        return model_sha256(Encoder(model, params, batch_size=2, **given_here))

    assert found() == found()
    assert len({found(), *(found(**one) for one in changed.values())}) == len(changed) + 1


class Records(list):
    """A source that counts what is read of it."""

    read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


def test_records_go_by_images_captions_and_regions_in_any_order():
    box = (0.0, 0.0, 0.5, 0.5)
    own = [
        Record("a", b"1", captions=(Caption("one"),), regions=(Region(box, "part"),)),
        Record("b", b"2"),
    ]
    one = Records(own)
    digest = records_sha256(one)
    assert records_sha256(one) == digest
    assert one.read == 2
    renamed = [dataclasses.replace(own[1], id="c"), own[0]]
    assert records_sha256(Records(renamed)) == digest
    others = [
        dataclasses.replace(own[0], image=b"3"),
        dataclasses.replace(own[0], captions=(Caption("two"),)),
        dataclasses.replace(own[0], regions=(Region((0.0, 0.0, 0.5, 0.6), "part"),)),
    ]
    found = {records_sha256(Records([other, own[1]])) for other in others}
    assert len(found | {digest}) == 4


def test_a_suite_goes_by_its_sets_and_not_by_its_name(tmp_path):
    root = folder(tmp_path / "birds")
    one, other = (
        {"methods": ["name"], "suite": {"name": name, "sha256": name, "missing": []}}
        for name in ("mine", "yours")
    )
    lacking = one | {"suite": one["suite"] | {"missing": ["trees"]}}
    assert digest(root, settings=one) == digest(root, settings=other)
    assert digest(root, settings=one) != digest(root, settings=lacking)
