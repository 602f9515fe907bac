"""Texts made of names, descriptions and files, and the methods that average over them."""

import numpy as np
import pytest
from random_banks import embedding, random_images, scores_of

from grain_jax.zero_shot.class_prompts import named_description
from grain_jax.zero_shot.class_text_methods import CLASS_TEXT_METHODS
from grain_jax.zero_shot.methods import METHODS, lacking
from grain_jax.zero_shot.scorers import make_class_texts
from grain_jax.zero_shot.text_kinds import FROM_FILES, TEXT_KINDS

NAMES = ("owl", "wren", "jay", "finch")
DESCRIPTIONS = {
    "owl": ["round face", "ears"],
    "wren": ["a short tail"],
    "jay": ["often blue", "loud", "blue"],
    "finch": ["a bill"],
}
FILES = {
    "further": {
        "cupl": {name: [f"The {name} sits.", f"See a {name}."] for name in NAMES},
        "subclasses": {"owl": ["barn"], "jay": ["blue", "green"]},
        "synonyms": {"owl": ["hooter", "owl"], "wren": ["jenny"]},
    },
    "shared": {
        "contexts": [["", "at night"], ["", "blurred"]],
        "reject": [["on land", "on water"]],
        "accept": [["a beak", "a snout"]],
    },
    "pairs": {
        one: {other: [f"{one} not {other}"] for other in NAMES if other != one} for one in NAMES
    },
}


@pytest.mark.parametrize(
    ("description", "text"),
    [
        ("round face", "which has round face"),
        ("A short tail", "which is A short tail"),
        ("used as a pet", "which is used as a pet"),
        ("typically lives in trees", "which typically lives in trees"),
        ("has ears", "which has ears"),
    ],
)
def test_a_description_follows_the_name(description, text):
    assert named_description("owl", description) == f"A photo of a owl, {text}"


def test_menon_and_vondrick_average_cosines():
    images = random_images()
    found = scores_of("named_description", NAMES, images, descriptions=DESCRIPTIONS)
    for k, name in enumerate(NAMES):
        texts = [embedding(named_description(name, one)) for one in DESCRIPTIONS[name]]
        expected = [np.mean([float(image @ text) for text in texts]) for image in images.image]
        np.testing.assert_allclose(found[:, k], expected, atol=1e-6)


def test_cupl_scales_the_mean_to_unit_length():
    images = random_images()
    sentences = {"owl": ["An owl sits.", "See an owl."], "wren": ["A wren."], "jay": []}
    found = scores_of("cupl", NAMES, images, further={"cupl": sentences}, templates=("a {}.",))
    for k, name in enumerate(NAMES):
        texts = sentences.get(name) or [f"a {name}."]
        mean = np.mean([embedding(text) for text in texts], axis=0, dtype=np.float64)
        np.testing.assert_allclose(
            found[:, k], images.image @ mean / np.linalg.norm(mean), atol=1e-6
        )


def test_a_class_goes_by_its_most_frequent_name():
    images = random_images()
    synonyms = {"owl": ["hooter", "owl"], "wren": ["jenny"], "jay": []}
    found = scores_of("synonyms", NAMES, images, further={"synonyms": synonyms})
    renamed = scores_of("name", ("hooter", "jenny", "jay", "finch"), images)
    np.testing.assert_array_equal(found, renamed)


ONE_TEXT = {
    "named_description": {"descriptions": {n: ["wings"] for n in NAMES}},
    "cupl": {"further": {"cupl": {n: [f"a {n}."] for n in NAMES}}},
    "synonyms": {"further": {"synonyms": {n: [n] for n in NAMES}}},
}


@pytest.mark.parametrize("method", ONE_TEXT)
def test_one_text_for_each_class_is_clip(method):
    images = random_images()
    found = scores_of(method, NAMES, images, templates=("a {}.",), **ONE_TEXT[method])
    pattern = "A photo of a {}, which has wings" if method == "named_description" else "a {}."
    texts = np.stack([embedding(pattern.format(name)) for name in NAMES])
    np.testing.assert_allclose(found, images.image @ texts.T, atol=1e-6)


def alpha_of(method: str) -> float | None:
    return next(iter(METHODS[method].alphas((0.5,), has_regions=True)))


@pytest.mark.parametrize("method", CLASS_TEXT_METHODS)
def test_the_order_of_the_classes_means_nothing(method):
    images, options = random_images(), {"descriptions": DESCRIPTIONS, **FILES}
    found = scores_of(method, NAMES, images, alpha_of(method), **options)
    turned = scores_of(method, NAMES[::-1], images, alpha_of(method), **options)
    np.testing.assert_allclose(found, turned[:, ::-1], atol=2e-6)


@pytest.mark.parametrize("method", sorted(set(CLASS_TEXT_METHODS) - {"fudd"}))
def test_classes_of_the_same_texts_tie(method):
    """FuDD has texts for the pair of them; swapped controls give them those of two classes."""
    names, images = (*NAMES, "owl (2)"), random_images(50)

    def twice(of_class):
        return {**of_class, "owl (2)": of_class["owl"]} if "owl" in of_class else of_class

    further = {kind: twice(of_class) for kind, of_class in FILES["further"].items()}
    found = scores_of(
        method,
        names,
        images,
        alpha_of(method),
        descriptions=twice(DESCRIPTIONS),
        further=further,
        shared=FILES["shared"],
        name_texts={"owl (2)": "owl"},
    )
    assert (found[:, 0] == found[:, 4]).all() == ("swapped" not in method)


def test_what_is_lacking_is_said_with_the_option_that_gives_it():
    texts = make_class_texts(NAMES, templates=("a {}",), descriptions={})
    for method, missing in {
        "cupl": "texts of the kind 'cupl' (--texts=cupl=FILE)",
        "fudd": "texts of the kind 'pairs' (--texts=pairs=FILE)",
        "name_and_regions": "descriptions of the classes (--descriptions)",
        "swapped_description": "descriptions of two classes or more (--descriptions)",
        "name_and_swapped_regions": "descriptions of two classes or more (--descriptions)",
    }.items():
        assert lacking(method, texts, has_regions=True) == [missing]
    given = make_class_texts(NAMES, templates=("a {}",), descriptions=DESCRIPTIONS, **FILES)
    for name, method in METHODS.items():
        assert not lacking(name, given, has_regions=True, given=method.needs)
    assert set(FROM_FILES) <= TEXT_KINDS.keys()
