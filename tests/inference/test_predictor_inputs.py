"""What is no image or no text is refused and named."""

import os
import subprocess
import sys

import numpy as np
import pytest
from places import HELPERS, REPOSITORY
from toy_encoder import make_image, toy_model

from grain_jax.data.transforms import ImageError

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
