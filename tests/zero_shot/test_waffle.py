"""WaffleCLIP's texts and the four controls: what they say, and scores by them."""

from collections import Counter

import numpy as np
import pytest
from random_banks import banks_of, embedding, random_images, scores_of

from grain_jax.zero_shot.methods import METHODS
from grain_jax.zero_shot.random_words import WORDS
from grain_jax.zero_shot.scorers import make_class_texts
from grain_jax.zero_shot.text_kinds import TEXT_KINDS, controls_of
from grain_jax.zero_shot.waffle import CONTROLS, swapped_with, waffle_descriptions, waffle_texts

NAMES = ("owl", "great tit", "jay", "finch", "crow")
DESCRIPTIONS = {
    "owl": ["a round face", "big yellow eyes", "ear tufts"],
    "great tit": ["a black cap", "white cheeks"],
    "jay": ["blue wing feathers"],
    "finch": ["a thick short bill", "a forked tail"],
}


def texts_of(**options):
    return make_class_texts(
        NAMES, **({"templates": ("a {}.",), "descriptions": DESCRIPTIONS} | options)
    )


def made(kind: str, **options):
    return TEXT_KINDS[kind].make(texts_of(**options))


def test_waffle_texts_are_the_same_for_all_classes_and_each_time():
    groups = waffle_texts(texts_of())
    assert groups == waffle_texts(texts_of())
    assert groups is not None
    endings = [
        tuple(text.removeprefix(f"A photo of a {name}, which has ") for text in group)
        for name, group in zip(NAMES, groups, strict=True)
    ]
    assert len(set(endings)) == 1
    assert len(set(endings[0])) == 30


def test_waffle_is_as_long_as_names_and_does_not_depend_on_their_order():
    names = ["red kite", "barn owl", "tree creeper"]  # words of 5 letters on average, rounded
    found = waffle_descriptions(names)
    assert found == waffle_descriptions(names[::-1])
    words, characters = found[::2], found[1::2]
    assert {len(text.split()) for text in found} == {2}
    assert {word for text in words for word in text.split()} <= set(WORDS)
    mean = np.mean([len(word) for name in names for word in name.split()])
    assert {len(word) for text in characters for word in text.split()} == {round(mean)}
    assert not {word for text in characters for word in text.split()} & set(WORDS)


def test_waffle_is_the_mean_cosine():
    images = random_images()
    found = scores_of("waffle", NAMES, images)
    shared = waffle_descriptions(NAMES)
    for k, name in enumerate(NAMES):
        texts = [embedding(f"A photo of a {name}, which has {one}.") for one in shared]
        expected = [np.mean([float(image @ text) for text in texts]) for image in images.image]
        np.testing.assert_allclose(found[:, k], expected, atol=1e-5)


def test_swapped_is_a_derangement_of_the_described_classes():
    for count in (2, 3, 7, 50):
        names = [f"bird {k}" for k in range(count)]
        described = [k % 5 != 4 for k in range(count)]
        source = swapped_with(described, names)
        assert sorted(source) == list(range(count))
        assert [k == other for k, other in enumerate(source)] == [not one for one in described]
    _, whole, regions = controls_of("swapped")
    for kind in (whole, regions):
        groups = made(kind)
        assert Counter(map(tuple, groups[:4])) == Counter(map(tuple, DESCRIPTIONS.values()))
        assert all(
            group != tuple(own) for own, group in zip(DESCRIPTIONS.values(), groups, strict=False)
        )


def test_image_and_regions_get_the_texts_of_the_same_class():
    _, whole, regions = controls_of("swapped")
    assert made(whole)[:4] == list(made(regions))[:4]
    assert (made(whole)[4], made(regions)[4]) == (("a crow.",), ("crow",))


def test_shared_texts_are_the_same_for_all_described_classes():
    _, whole, regions = controls_of("shared")
    for kind in (whole, regions):
        groups = made(kind)[:4]
        assert len(set(groups)) == 1
        assert len(groups[0]) == 2  # as many as classes have on average
        assert set(groups[0]) <= {text for one in DESCRIPTIONS.values() for text in one}


def test_scrambled_texts_have_the_words_of_the_class():
    groups = made(controls_of("scrambled")[2])
    for name, group in zip(DESCRIPTIONS, groups, strict=False):
        words = Counter(word for text in DESCRIPTIONS[name] for word in text.split())
        assert Counter(word for text in group for word in text.split()) == words
    assert [list(one) for one in groups[:4]] != list(DESCRIPTIONS.values())


def test_random_texts_are_as_many_as_those_of_the_class_and_from_all():
    groups = made(controls_of("random")[2])
    pool = {text for one in DESCRIPTIONS.values() for text in one}
    for name, group in zip(DESCRIPTIONS, groups, strict=False):
        assert len(set(group)) == len(DESCRIPTIONS[name])
        assert set(group) <= pool
    assert len({tuple(sorted(group)) for group in groups[:4]}) > 1


def test_the_name_stays_that_of_the_class_where_the_template_has_it():
    kind = controls_of("swapped")[1]
    swapped = made(kind, description_template="{name} with {}")
    plain = made(kind)
    for name, with_name, without in zip(NAMES[:4], swapped, plain, strict=False):
        assert list(with_name) == [f"{name} with {one}" for one in without]


def test_texts_about_the_whole_image_are_swapped_as_they_are():
    whole = {name: [f"photo with {one}" for one in DESCRIPTIONS[name]] for name in DESCRIPTIONS}
    groups = made(controls_of("swapped")[1], global_texts=whole)
    regions = made(controls_of("swapped")[2], global_texts=whole)
    assert [list(group) for group in groups[:4]] == [
        [f"photo with {one}" for one in group] for group in regions[:4]
    ]


def test_there_is_no_wrong_description_where_one_class_has_any():
    for control in CONTROLS:
        for kind in controls_of(control):
            assert made(kind, descriptions={"owl": ["a round face"]}) is None
            assert made(kind, descriptions={}) is None


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_are_scored_as_what_they_control_for(control):
    """With their texts given as descriptions, the methods that they control for score the same."""
    images = random_images()
    options = {"descriptions": DESCRIPTIONS}
    named, whole, regions = controls_of(control)
    chosen = dict(zip(NAMES, made(regions), strict=True))
    del chosen["crow"]  # which has none
    for alpha in (1.0, 0.5, 0.0):
        np.testing.assert_array_equal(
            scores_of(f"{control}_description", NAMES, images, alpha, **options),
            scores_of("description", NAMES, images, alpha, descriptions=chosen),
        )
    np.testing.assert_array_equal(
        scores_of(f"{control}_named_description", NAMES, images, **options),
        scores_of("named_description", NAMES, images, descriptions=chosen),
    )
    if control == "swapped":
        np.testing.assert_array_equal(
            scores_of("name_and_swapped_regions", NAMES, images, 0.5, **options),
            scores_of("name_and_regions", NAMES, images, 0.5, descriptions=chosen),
        )
    assert METHODS[f"{control}_description"].texts == {whole}
    assert METHODS[f"{control}_named_description"].texts == {named}


def test_shared_descriptions_alone_tell_no_described_classes_apart():
    images = random_images()
    found = scores_of("shared_description", NAMES, images, 0.5, descriptions=DESCRIPTIONS)
    assert (found[:, :4] == found[:, :1]).all()


def test_swapping_moves_scores_between_classes():
    images = random_images()
    right = scores_of("description", NAMES, images, 0.5, descriptions=DESCRIPTIONS)
    wrong = scores_of("swapped_description", NAMES, images, 0.5, descriptions=DESCRIPTIONS)
    source = swapped_with([name in DESCRIPTIONS for name in NAMES], NAMES)
    np.testing.assert_allclose(wrong, right[:, source], atol=1e-6)


def test_every_control_needs_the_texts_that_it_is_of():
    banks = banks_of("swapped_description", NAMES, descriptions=DESCRIPTIONS)
    assert set(banks.banks) == set(controls_of("swapped")[1:])
