"""What decides on a label, read off the toy."""

import numpy as np
import pytest
from toy_encoder import make_image, toy_model

WITH_NAME = "name_and_regions"


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


def test_labels_may_come_from_their_descriptions():
    described = {"x": ["blue"], "y": ["red"]}
    model, image = toy_model(), make_image("red")
    assert model.classify(image, descriptions=described) == model.classify(
        image, ["x", "y"], described
    )


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, "There are no labels"),
        (("red",), {}, r"labels takes a list of texts, not one: \['red'\]"),
        ((["red", " "],), {}, r"labels\[1\] is ' '"),
        ((["red", "blue", "red"],), {}, "Label 'red' is given more than once"),
        (
            (["red"], {"redd": ["x"]}),
            {},
            "1 of 1 names that are not among the 1 labels; nearest of these: 'redd': 'red'",
        ),
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
