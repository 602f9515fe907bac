"""SugarCrepe, Winoground, ARO and captioned images as they are published, or refused by name."""

import json

import numpy as np
import pytest
from PIL import Image

from grain_jax.data.compositional.readers import (
    aro_left_out,
    read_aro,
    read_captioned,
    read_sugarcrepe,
    read_winoground,
)
from grain_jax.data.loader import evaluation_batches
from grain_jax.data.transforms import Preprocessing


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for number, name in enumerate(("a.png", "b.png", "ex_0_img_0.png", "ex_0_img_1.jpg")):
        pixels = np.zeros((10, 20, 3), np.uint8)
        pixels[..., 0] = np.arange(20) * 10
        pixels[..., 1] = np.arange(10)[:, None] * 20
        pixels[..., 2] = number
        Image.fromarray(pixels).save(root / name)
    return root


def written(path, content) -> object:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content) if not isinstance(content, str) else content)
    return path


CREPE = {"filename": "a.png", "caption": "a dog", "negative_caption": "a cat"}


def test_sugarcrepe_has_a_category_a_file_and_reads_an_image_once(tmp_path, images):
    second = CREPE | {"filename": "b.png"}
    written(tmp_path / "crepe" / "add_att.json", {"0": CREPE, "1": second})
    written(tmp_path / "crepe" / "swap_obj.json", {"7": CREPE | {"caption": "two dogs"}})
    (test,) = read_sugarcrepe(tmp_path / "crepe", images)
    assert [q.group for q in test.questions] == ["add_att", "add_att", "swap_obj"]
    assert [q.image for q in test.questions] == [0, 1, 0]
    assert [q.caption for q in test.questions] == ["a dog", "a dog", "two dogs"]
    assert test.images.files == ("a.png", "b.png")
    assert test.images[0].image == (images / "a.png").read_bytes()
    (single,) = read_sugarcrepe(tmp_path / "crepe" / "swap_obj.json", images)
    assert len(single.questions) == 1


def test_winoground_names_images_without_a_suffix(tmp_path, images):
    line = {
        "id": 0,
        "image_0": "ex_0_img_0",
        "image_1": "ex_0_img_1",
        "caption_0": "a dog bites a man",
        "caption_1": "a man bites a dog",
    }
    file = written(tmp_path / "w" / "examples.jsonl", json.dumps(line) + "\n\n")
    for data in (file, file.parent):
        (test,) = read_winoground(data, images)
        assert test.images.files == ("ex_0_img_0.png", "ex_0_img_1.jpg")
        assert test.questions[0].images == (0, 1)
        assert test.questions[0].captions[1] == "a man bites a dog"


def aro(relation: str, box, **change) -> dict:
    question = dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), box, strict=True))
    question |= {"image_path": "a.png", "true_caption": "x on y", "false_caption": "y on x"}
    return question | {"relation_name": relation} | change


def test_aro_crops_to_the_box_and_averages_as_published(tmp_path, images):
    boxes = [(2, 1, 5, 4), (15, 5, 10, 10), (2, 1, 5, 4)]
    file = written(tmp_path / "r.json", [aro("on", box) for box in boxes])
    (test,) = read_aro(file, images)
    assert test.name == "aro_relation"
    assert [q.image for q in test.questions] == [0, 1, 0]
    whole = np.asarray(Image.open(images / "a.png"))
    assert np.array_equal(test.images[0].image, whole[1:5, 2:7])
    beyond = test.images[1].image
    assert beyond.shape == (10, 10, 3)
    assert np.array_equal(beyond[:5, :5], whole[5:, 15:])
    assert not beyond[5:].any()
    assert not beyond[:, 5:].any()
    decoded = next(evaluation_batches(test.images, Preprocessing(8), 2))[0]
    assert decoded.shape == (2, 8, 8, 3)
    assert test.left_out == aro_left_out()
    assert len(aro_left_out()) == 157
    assert {"next to", "near"} <= aro_left_out()
    assert not {"to the left of", "on", "under"} & aro_left_out()


def test_attributes_of_aro_are_pairs_with_25_questions(tmp_path, images):
    question = aro("", (0, 0, 4, 4), attributes=["white", "open"])
    del question["relation_name"]
    written(tmp_path / "both" / "visual_genome_attribution.json", [question])
    written(tmp_path / "both" / "visual_genome_relation.json", [aro("on", (0, 0, 4, 4))])
    relation, attribution = read_aro(tmp_path / "both", images)
    assert (relation.name, attribution.name) == ("aro_relation", "aro_attribution")
    assert attribution.questions[0].group == "white_open"
    assert attribution.min_questions == 25
    assert not attribution.left_out


def test_captioned_images_may_have_several_texts(tmp_path, images):
    lines = [("a.png", "one"), ("b.png", "two"), ("a.png", "three")]
    file = written(
        tmp_path / "docci.jsonl",
        "\n".join(json.dumps({"image": image, "text": text}) for image, text in lines),
    )
    (test,) = read_captioned(file, images)
    assert test.name == "docci"
    assert test.captions == (("one", "three"), ("two",))


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_sugarcrepe, {"0": CREPE | {"filename": "none.png"}}, r"'0' of .*no image 'none.png'"),
        (read_sugarcrepe, {"0": CREPE | {"filename": "../x.png"}}, "leads out of the folder"),
        (read_sugarcrepe, {"0": CREPE | {"filename": "/etc/passwd"}}, "leads out of the folder"),
        (read_sugarcrepe, {"0": CREPE | {"caption": 3}}, "needs 'caption', a text, got 3"),
        (read_sugarcrepe, {"0": "text"}, "needs 'filename', a text, got None"),
        (read_sugarcrepe, {}, "should hold an object of SugarCrepe's"),
        (read_sugarcrepe, "{", "is not valid JSON"),
        (read_winoground, "{}", "Line 1 of .* needs 'image_0'"),
        (read_winoground, "\n", "is empty"),
        (read_aro, [], "should hold a list of ARO's"),
        (read_aro, [aro("on", (0, 0, 0, 5))], "an empty box, 0 x 5"),
        (read_aro, [aro("on", (0, 0, "1", 5))], "needs the numbers bbox_x"),
        (read_aro, [aro("on", (0, 0, 1e9, 5))], "a box that is not of pixels"),
        (read_aro, [{"image_path": "a.png"}], "needs the numbers"),
        (read_captioned, json.dumps({"image": "a.png", "text": "x"}), "one image only"),
    ],
)
def test_odd_questions_are_named(tmp_path, images, read, content, message):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path / "odd.json", content), images)


def test_a_box_of_another_image_is_refused_when_it_is_cropped(tmp_path, images):
    for box in ((30, 0, 5, 5), (0, 0, 400, 400)):
        (test,) = read_aro(written(tmp_path / "far.json", [aro("on", box)]), images)
        with pytest.raises(ValueError, match=r"is not of image 'a.png', which has 20 x 10 pixels"):
            test.images[0]
    with pytest.raises(ValueError, match=r"There is no folder .*--images"):
        read_aro(tmp_path / "far.json", tmp_path / "nowhere")
