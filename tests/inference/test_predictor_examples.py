"""Labels that are defined by example images, by texts, or by both."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from toy_encoder import columns, make_image, toy_model

from grain_jax.data.transforms import ImageError
from grain_jax.inference import examples as examples_module
from grain_jax.inference.encoder import Encoder
from grain_jax.zero_shot.examples import fit_examples
from grain_jax.zero_shot.method import Images, Support
from grain_jax.zero_shot.methods import METHODS, encode_banks
from grain_jax.zero_shot.scorers import make_class_texts

LABELS = ("red", "green", "odd")  # the toy reads the first two, and not the third
DESCRIBED = {"red": ("red tail", "red"), "green": ("green",)}


def shade(red: int, green: int, blue: int, *parts: str) -> np.ndarray:
    image = make_image("red", *parts)
    image[0, 0] = red, green, blue
    return image


ODD = [shade(60, 0, 250, "blue", "red"), shade(0, 60, 250, "blue", "blue")]
GREEN = [shade(0, 240, 90, "green", "blue"), shade(90, 240, 0, "green", "green")]
ASKED = [shade(250, 30, 30, "red", "red"), shade(20, 250, 80, "green"), shade(50, 50, 240, "blue")]
GIVEN = {"odd": ODD, "green": GREEN}


def labels_of(answers) -> list[str]:
    return [answer.label for answer in answers]


def in_order(answers, labels=LABELS) -> np.ndarray:
    """Scores by image and label."""
    return np.array(
        [[{one.label: one.score for one in answer.ranked}[k] for k in labels] for answer in answers]
    )


def test_each_label_says_what_defines_it():
    model = toy_model()
    answers = model.classify(ASKED, LABELS, examples=GIVEN, examples_only=["odd"])
    assert labels_of(answers) == ["red", "green", "odd"]
    for answer in answers:
        found = {one.label: (one.defined_by, one.num_examples) for one in answer.ranked}
        assert found == {"red": ("texts", 0), "green": ("both", 2), "odd": ("examples", 2)}
        assert sum(one.probability for one in answer.ranked) == pytest.approx(1)
    (plain,) = model.classify(ASKED[0], LABELS)
    assert {(one.defined_by, one.num_examples) for one in plain.ranked} == {(None, None)}


@pytest.mark.parametrize(
    ("alpha", "descriptions"), [(None, None), (1.0, DESCRIBED), (0.3, DESCRIBED)]
)
def test_scores_are_those_of_the_parts(alpha, descriptions):
    """Texts by the method, regions of the examples too, then `fit_examples`."""
    model = toy_model()
    options = {"examples": GIVEN, "examples_only": ["odd"], "example_weight": 0.4}
    answers = model.classify(ASKED, LABELS, descriptions, alpha=alpha, top_k=None, **options)
    named = LABELS[:2]
    texts = make_class_texts(
        named, templates=model.loaded.templates, descriptions=descriptions or {}
    )
    method = "name" if descriptions is None else "description"
    banks = encode_banks(
        lambda some, kind: model.embed_texts(some, kind),
        texts,
        methods=(method,),
        has_regions=True,
        prompt_ensembling="embedding",
        region_aggregation="max_over_queries",
    )
    score = METHODS[method].fit(banks)

    def by_texts(images) -> np.ndarray:
        found = score(Images(images.image, images.regions), alpha)
        return np.concatenate([found, np.zeros((len(found), 1))], axis=1)

    given, asked = model.embed_images(GREEN + ODD), model.embed_images(ASKED)
    fitted = fit_examples(
        by_texts(given),
        Support(given.image, np.array([1, 1, 2, 2])),
        np.array([True, True, False]),
        weight=0.4,
        logit_scale=model.logit_scale,
    )
    expected = fitted(by_texts(asked), asked.image)
    np.testing.assert_allclose(in_order(answers), expected, atol=1e-5)
    if descriptions is not None:
        of = {one.label: [text.text for text in one.grounded] for one in answers[0].ranked}
        assert of["odd"] == []  # none of its texts was looked at
        assert sorted(of["red"]) == ["red", "red tail"]


def test_a_weight_of_0_changes_nothing():
    model = toy_model()
    plain = model.classify(ASKED, LABELS, DESCRIBED, alpha=0.5)
    found = model.classify(ASKED, LABELS, DESCRIBED, alpha=0.5, examples=GIVEN, example_weight=0.0)
    for one, other in zip(plain, found, strict=True):
        assert {label.defined_by for label in other.ranked} == {"texts"}
        known = [dataclasses.replace(k, defined_by=None, num_examples=None) for k in other.ranked]
        assert tuple(known) == one.ranked


def test_a_weight_of_1_looks_at_no_text_of_a_label_with_examples():
    (answer,) = toy_model().classify(
        ASKED[1], LABELS, DESCRIBED, examples=GIVEN, example_weight=1.0
    )
    found = {one.label: (one.defined_by, len(one.grounded)) for one in answer.ranked}
    assert found == {"red": ("texts", 2), "green": ("examples", 0), "odd": ("examples", 0)}


def test_the_order_of_labels_and_repeated_examples_do_not_matter():
    model = toy_model()
    expected = in_order(model.classify(ASKED, LABELS, examples=GIVEN))
    turned = {"green": [*GREEN[::-1], GREEN[0]], "odd": ODD + ODD}
    found = model.classify(ASKED, LABELS[::-1], examples=turned)
    np.testing.assert_allclose(in_order(found), expected, rtol=1e-6)
    assert {one.num_examples for one in found[0].ranked} == {0, 2}


def test_labels_may_come_from_examples():
    model = toy_model()
    answers = model.classify(ASKED[1:], examples=GIVEN, examples_only=["odd", "green"])
    assert labels_of(answers) == ["green", "odd"]
    assert [one.defined_by for one in answers[0].ranked] == ["examples", "examples"]
    first = model.classify(ASKED[0], descriptions={"red": ["red"]}, examples=GIVEN)[0]
    assert {one.label for one in first.ranked} == set(LABELS)
    assert first.label == "red"


def test_forms_of_examples_are_as_good_as_each_other(tmp_path):
    model, expected = toy_model(), None
    file = tmp_path / "green.png"
    Image.fromarray(columns("green", "green")).save(file)
    with Image.open(file) as opened:
        pixels = np.asarray(opened)
        for form in (file, str(file), file.read_bytes(), opened, pixels):
            found = in_order(model.classify(ASKED, LABELS, examples={"green": [form], "odd": ODD}))
            expected = found if expected is None else expected
            np.testing.assert_allclose(found, expected, rtol=1e-6)
    kept = {"green": model.embed_images([file]), "odd": ODD}
    np.testing.assert_allclose(in_order(model.classify(ASKED, LABELS, examples=kept)), expected)
    given = model.embed_examples(kept)
    np.testing.assert_allclose(in_order(model.classify(ASKED, LABELS, examples=given)), expected)
    assert given.counts() == {"green": 1, "odd": 2}


def test_equal_examples_are_embedded_once_and_kept(monkeypatch, tmp_path):
    asked = []
    embed = Encoder.images

    def noted(self, source, **options):
        asked.append(len(source))
        return embed(self, source, **options)

    monkeypatch.setattr(Encoder, "images", noted)
    model = toy_model()
    model.embed_examples({"green": [GREEN[0], GREEN[1], GREEN[0]], "odd": [ODD[0]]})
    assert asked == [3]
    model.embed_examples({"other": [GREEN[1]], "odd": ODD})
    assert asked == [3, 1]
    file = tmp_path / "a.png"
    Image.fromarray(columns("green")).save(file)
    model.embed_examples({"green": [file]})
    file.rename(tmp_path / "b.png")  # its content is what counts
    model.embed_examples({"green": [tmp_path / "b.png"]})
    assert asked == [3, 1, 1]
    Image.fromarray(columns("red")).save(file)
    model.embed_examples({"green": [file]})
    assert asked == [3, 1, 1, 1]


def test_examples_with_other_regions_are_others():
    """Texts are scored by regions, and the examples are fitted to these scores."""
    model = toy_model()
    given = model.embed_images(GREEN)
    assert given.regions is not None
    turned = dataclasses.replace(given, regions=given.regions[..., ::-1].copy())
    found = [model.embed_examples({"green": one}).sha256 for one in (given, turned, given)]
    assert found[0] == found[2] != found[1]


def test_the_oldest_examples_make_room(monkeypatch):
    monkeypatch.setattr(examples_module, "MAX_CACHED_EXAMPLES", 2)
    model = toy_model()
    model.embed_examples({"odd": ODD})
    model.embed_examples({"green": GREEN})
    monkeypatch.setattr(Encoder, "images", lambda *_, **__: pytest.fail("embedded again"))
    model.embed_examples({"green": GREEN})
    with pytest.raises(pytest.fail.Exception, match="embedded again"):
        model.embed_examples({"odd": ODD})


def test_a_clip_model_takes_examples_too():
    model = toy_model(regions=False)
    answers = model.classify(ASKED, LABELS, examples=GIVEN, examples_only=["odd"])
    assert labels_of(answers) == ["red", "green", "odd"]
    with pytest.raises(ValueError, match="by another model, without regions"):
        toy_model().classify(ASKED, LABELS, examples=model.embed_examples(GIVEN))
    with pytest.raises(ValueError, match="by another model, without regions"):
        toy_model().classify(ASKED, LABELS, examples={"odd": model.embed_images(ODD)})


def test_an_image_of_two_labels_is_noted():
    notes: list[str] = []
    toy_model(note=notes.append).classify(
        ASKED, ["red", "green"], examples={"red": [ODD[0]], "green": [GREEN[0], ODD[0]]}
    )
    assert notes == ["'red' and 'green' have an example in common."]


def test_one_example_in_all_does_not_count_and_is_noted():
    notes: list[str] = []
    model = toy_model(note=notes.append)
    plain = in_order(model.classify(ASKED, LABELS))
    answers = model.classify(ASKED, LABELS, examples={"green": GREEN[:1]})
    np.testing.assert_array_equal(in_order(answers), plain)
    found = {(one.defined_by, one.num_examples) for one in answers[0].ranked}
    assert found == {("texts", 0)}
    assert "One example in all is not used" in notes.pop()
    model.classify(ASKED, LABELS, examples={"green": GREEN[:1], "odd": ODD[:1]})
    assert notes == []


@pytest.mark.parametrize("options", [{"examples_only": ["odd"]}, {"example_weight": 1.0}])
def test_a_label_of_the_only_example_alone_is_refused(options):
    with pytest.raises(ValueError, match=r"'odd' has the only example.*Give it another"):
        toy_model().classify(ASKED, LABELS, examples={"odd": ODD[:1]}, **options)


def test_labels_of_examples_alone_are_not_read():
    notes: list[str] = []
    model = toy_model(note=notes.append)
    model.classify(ASKED, LABELS, DESCRIBED, examples=GIVEN, examples_only=["odd"])
    assert notes == []
    model.classify(ASKED, LABELS, DESCRIBED, examples=GIVEN)
    assert "1 of 3 classes have no description ('odd')" in notes.pop()


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ({}, {}, "examples holds no class"),
        (
            {"od": ODD},
            {},
            "examples has 1 of 1 names that are not among the 3 labels; .*'od': 'odd'",
        ),
        ({"odd": []}, {}, "The list of examples of 'odd' is empty"),
        ({"odd": [b"none"]}, {}, "'example 0 of odd': 4 bytes are not an image"),
        ({"odd": ["gone.png"]}, {}, r"'gone.png \(example of odd\)': there is no such file"),
        ({"odd": ODD}, {"example_weight": 1.5}, "given 1.5, expected 0 to 1"),
        ({"odd": ODD}, {"examples_only": "odd"}, r"not one: \['odd'\]"),
        ({"odd": ODD}, {"examples_only": ["red"]}, "'red', which has no examples"),
        (
            {"odd": ODD},
            {"examples_only": ["rod"]},
            "not among the 3 labels; nearest of these: 'rod'",
        ),
        (None, {"example_weight": 0.5}, "example_weight is about examples; give some"),
        (None, {"examples_only": ["odd"]}, "examples_only is about examples; give some"),
    ],
)
def test_examples_that_make_no_sense_are_refused(examples, options, message):
    with pytest.raises(ValueError, match=message):
        toy_model().classify(ASKED[0], LABELS, examples=examples, **options)


def test_descriptions_of_a_label_of_examples_alone_are_refused():
    with pytest.raises(ValueError, match="'green', which has descriptions; leave out one"):
        toy_model().classify(ASKED[0], LABELS, DESCRIBED, examples=GIVEN, examples_only=["green"])


def test_an_example_that_cannot_be_read_is_an_image_error(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken.png \(example of odd\)': 8 bytes are not"):
        toy_model().embed_examples({"green": GREEN, "odd": [ODD[0], broken]})
