"""What the best labels say of themselves: their own texts, or the name where there are none."""

import pytest
from toy_encoder import make_image, toy_model

from grain_jax.inference.results import DESCRIPTION, NAME

IMAGE = make_image("red", "green", "red")
DESCRIBED = {"parrot": ["green wing", "blue tail"]}


def kinds(answer) -> dict:
    return {one.label: one.grounded_kind for one in answer.ranked}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_label_without_descriptions_says_that_its_text_is_the_name(alpha):
    (answer,) = toy_model().classify(IMAGE, ["parrot", "red"], DESCRIBED, alpha=alpha)
    assert kinds(answer) == {"parrot": DESCRIPTION, "red": NAME}
    (name,) = next(one.grounded for one in answer.ranked if one.label == "red")
    assert name.text == ("a red thing" if alpha == 1 else "red")
    assert name.cosine == pytest.approx(1)  # the whole image is red, and so is a region


def test_labels_that_show_no_text_have_no_kind():
    model = toy_model()
    (by_name,) = model.classify(IMAGE, ["red", "blue"])
    shade = make_image("blue")
    shade[0, 0, 0] = 60
    assert kinds(by_name) == {"red": None, "blue": None}
    (answer,) = model.classify(
        [IMAGE],
        ["parrot", "red", "odd"],
        DESCRIBED,
        examples={"odd": [make_image("blue"), shade]},
        examples_only=["odd"],
    )
    assert kinds(answer) == {"parrot": DESCRIPTION, "red": NAME, "odd": None}
