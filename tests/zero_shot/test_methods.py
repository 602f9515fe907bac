"""What every zero-shot method keeps to, and what each of them is."""

import re
from pathlib import Path

import numpy as np
import pytest

from grain_jax.data.image_variants import VARIANTS
from grain_jax.results import STARTS
from grain_jax.zero_shot.method import CaptionBank, Images, Support
from grain_jax.zero_shot.methods import (
    DEFAULT_METHODS,
    METHODS,
    READ_BY,
    FittedMethods,
    check_methods,
    encode_banks,
    readers,
)
from grain_jax.zero_shot.scorers import global_scores, make_class_texts, region_scores
from grain_jax.zero_shot.text_kinds import TEXT_KINDS

NAMES = ("owl", "wren", "jay")
DESCRIPTIONS = {"owl": ["round face", "big eyes"], "wren": ["short tail"]}
ALPHAS = (1.0, 0.25, 0.0)
# Texts of files, of every kind that there is; "jay" has none.
FROM_FILES = {
    "further": {
        "cupl": {"owl": ["An owl sits."], "wren": ["A wren hops."]},
        "subclasses": {"owl": ["barn owl", "eagle"], "wren": ["house"]},
        "synonyms": {"owl": ["hooter", "owl"], "wren": ["jenny"]},
    },
    "shared": {
        "contexts": [["", "at night"], ["", "blurred"]],
        "reject": [["on land", "on water"], ["at night", "by day"]],
        "accept": [["a beak", "a snout"]],
    },
    "pairs": {"owl": {"wren": ["large"], "jay": ["brown"]}, "wren": {"owl": ["small"]}},
}


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def encode(texts: list[str], *, kind: str) -> np.ndarray:
    """A direction of its own for each text of each kind."""
    seeds = [[len(kind), *text.encode()] for text in texts]
    return unit(np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds]))


def some_images(count: int = 5, *, regions: bool = True) -> Images:
    rng = np.random.default_rng(0)
    image, queries = unit(rng.normal(size=(count, 8))), unit(rng.normal(size=(count, 4, 8)))
    counts = {kind: one.count(4) for kind, one in VARIANTS.items()}
    again = {kind: unit(rng.normal(size=(count, many, 8))) for kind, many in counts.items()}
    return Images(image, queries if regions else None, again)


def some_of(images: Images, rows: slice) -> Images:
    """Those images of a block."""
    regions = None if images.regions is None else images.regions[rows]
    variants = {kind: embed[rows] for kind, embed in images.variants.items()}
    return Images(images.image[rows], regions, variants)


def fitted_to(
    descriptions=DESCRIPTIONS,
    *,
    methods=METHODS,
    regions: bool = True,
    alphas=ALPHAS,
    description_template="{}",
    templates=("a {}", "the {}"),
    **scoring,
):
    """The methods with all that any of them needs, and the texts that they were fitted to."""
    texts = make_class_texts(
        NAMES,
        templates=templates,
        descriptions=descriptions,
        description_template=description_template,
        **FROM_FILES,
    )
    banks = encode_banks(encode, texts, methods=methods, has_regions=regions, **scoring)
    rng = np.random.default_rng(1)
    unseen = any("classes_without_images" in METHODS[name].needs for name in methods)
    labels = np.arange(12) % (2 if unseen and len(methods) == 1 else 3)
    support = Support(unit(rng.normal(size=(12, 8))), labels, unit(rng.normal(size=(12, 8))))
    captions = tuple(f"a caption of {i}" for i in range(20))
    shown_with = unit(rng.normal(size=(20, 8)))
    bank = CaptionBank(
        captions,
        encode(list(captions), kind="caption"),
        lambda: shown_with,
        lambda more: encode(list(more), kind="caption"),
    )
    return banks, FittedMethods(
        banks,
        methods=methods,
        alphas=alphas,
        has_regions=regions,
        bank=bank,
        support=support,
        unlabeled=some_images(regions=regions),
        variants=VARIANTS,
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("regions", [True, False])
@pytest.mark.parametrize("descriptions", [DESCRIPTIONS, {}])
def test_every_method_scores_every_class_or_leaves_itself_out(name, regions, descriptions):
    """Finite, of the right shape, for whatever the model and the texts have, asked for alone; the
    same for an image alone as among others.
    """
    assert name not in STARTS  # results of retrieval and grounding go by those
    method = METHODS[name]
    assert method.texts | method.optional_texts <= TEXT_KINDS.keys()
    banks, fitted = fitted_to(descriptions, methods=(name,), regions=regions)
    images = some_images(regions=regions)
    found = fitted(images)
    for (scored, alpha), values in found.items():
        assert scored == name
        assert values.shape == (5, len(NAMES))
        assert np.isfinite(values).all()
        part = some_of(images, slice(2, 4))
        np.testing.assert_allclose(fitted(part)[name, alpha], values[2:4], atol=2e-6)
        if method.unit == "probability":
            np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
        elif method.unit == "log_probability":
            np.testing.assert_allclose(np.exp(values).sum(axis=1), 1, atol=1e-5)
    has = method.texts <= banks.banks.keys() and (regions or not method.regions)
    assert bool(found) == has


@pytest.mark.parametrize("name", METHODS)
def test_alphas_are_some_of_those_given_or_the_whole_image(name):
    for regions in (True, False):
        found = METHODS[name].alphas(ALPHAS, has_regions=regions)
        assert set(found) <= {None, *ALPHAS} if regions else set(found) <= {None, 1.0}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_without_what_it_needs_is_left_out(name):
    banks, _ = fitted_to(methods=(name,))
    lacking = FittedMethods(banks, methods=(name,), alphas=ALPHAS, has_regions=True)
    assert bool(lacking.scores) == (
        not METHODS[name].needs and name in fitted_to(methods=(name,))[1].scores
    )


# Two values of each setting that only some methods read.
SETTINGS = {
    "alphas": (ALPHAS, (0.75,)),
    "region_aggregation": ("max_over_queries", "max_over_descriptions"),
    "prompt_ensembling": ("embedding", "score"),
    "description_template": ("{}", "which has {}"),
    "descriptions": (DESCRIPTIONS, {"owl": ["a disc of feathers"], "wren": ["a cocked tail"]}),
    "templates": (("a {}", "the {}"), ("one {}", "some {}")),
}


@pytest.mark.parametrize("setting", READ_BY)
@pytest.mark.parametrize("name", METHODS)
def test_a_setting_changes_the_scores_of_the_methods_that_read_it(name, setting):
    """Of `fudd` only templates here: others choose its candidates among more than 10 classes."""
    images = some_images()
    one, other = (fitted_to(methods=(name,), **{setting: v})[1](images) for v in SETTINGS[setting])
    assert one
    changed = one.keys() != other.keys() or any((other[key] != one[key]).any() for key in one)
    reads = name != "fudd" or setting == "templates"
    assert changed == (name in readers(setting, METHODS) and reads)


def test_prompt_ensembling_concerns_the_methods_that_the_page_lists():
    page = (Path(__file__).parents[2] / "docs" / "zero-shot.md").read_text()
    listed = page.split("`--prompt_ensembling=score` concerns")[1].split(" by it. All others")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(readers("prompt_ensembling", METHODS))


NEEDS_IMAGES = [name for name, one in METHODS.items() if one.needs & {"bank", "support"}]


@pytest.mark.parametrize("name", [*NEEDS_IMAGES, "icis"])
def test_a_method_that_is_fitted_without_what_it_needs_says_so(name):
    """As a library: `FittedMethods` would have left it out."""
    texts = make_class_texts(NAMES, templates=("a {}",), descriptions={})
    banks = encode_banks(encode, texts, methods=[name], has_regions=False)
    needs = r"labelled images of the classes and was given none; pass support="
    if "bank" in METHODS[name].needs:
        needs = r"images of a caption bank and was given none; pass bank="
    with pytest.raises(ValueError, match=needs):
        METHODS[name].fit(banks)


def test_caps_adapter_says_that_it_needs_captions():
    texts = make_class_texts(NAMES, templates=("a {}",), descriptions={})
    banks = encode_banks(encode, texts, methods=["caps_adapter"], has_regions=False)
    support = Support(some_images(6).image, np.arange(6) % 3)
    fit = METHODS["caps_adapter"].fit
    with pytest.raises(ValueError, match="captions of the labelled images and was given none"):
        fit(banks, support=support)


def test_alpha_weighs_the_image_against_its_regions():
    banks, fitted = fitted_to(methods=DEFAULT_METHODS)
    images = some_images()
    scores = fitted(images)
    assert list(scores) == [
        ("name", None),
        ("description", 1.0),
        ("description", 0.25),
        ("description", 0.0),
        ("name_and_regions", 0.25),
    ]
    by_name = global_scores(images.image, banks["names"], ensembling="embedding")
    by_description = global_scores(images.image, banks["descriptions"], ensembling="score")
    assert images.regions is not None
    by_region = region_scores(images.regions, banks["regions"], aggregation="max_over_queries")
    np.testing.assert_allclose(scores["description", 1.0], by_description, atol=1e-6)
    np.testing.assert_allclose(scores["description", 0.0], by_region, atol=1e-6)
    for method, whole in (("description", by_description), ("name_and_regions", by_name)):
        mixed = 0.25 * whole + 0.75 * by_region
        np.testing.assert_allclose(scores[method, 0.25], mixed, atol=1e-6)


def test_what_several_methods_make_of_images_is_made_once():
    images, made = some_images(), []
    for _ in range(2):
        assert images.once("key", lambda: made.append(1) or len(made)) == 1


def test_images_remember_nothing_of_texts_that_have_gone():
    images = some_images()
    for i in range(30):  # a bank that is freed leaves its address to the next
        texts = make_class_texts([f"a{i}", f"b{i}"], templates=("{}",), descriptions={})
        banks = encode_banks(encode, texts, methods=("name",), has_regions=False)
        expected = global_scores(images.image, banks["names"], ensembling="embedding")
        np.testing.assert_array_equal(METHODS["name"].fit(banks)(images, None), expected)


def test_every_text_is_encoded_once_in_one_call_for_each_encoding():
    calls = []

    def note(texts, *, kind):
        calls.append((kind, list(texts)))
        return encode(texts, kind=kind)

    same = {"owl": ["a owl", "big eyes"], "wren": ["big eyes"]}
    texts = make_class_texts(NAMES, templates=("a {}",), descriptions=same)
    banks = encode_banks(note, texts, methods=DEFAULT_METHODS, has_regions=True)
    assert calls == [
        ("caption", ["a owl", "a wren", "a jay", "big eyes"]),
        ("description", ["a owl", "big eyes", "jay"]),
    ]
    for kind, groups in (("names", texts.names), ("descriptions", texts.descriptions)):
        assert banks[kind].embed.shape[0] == len({text for group in groups for text in group})
        for k, group in enumerate(groups):
            expected = encode(list(group), kind="caption")
            np.testing.assert_array_equal(banks[kind].of_class(k), expected)


def test_only_what_the_methods_compare_with_is_encoded():
    kinds = []

    def note(texts, *, kind):
        kinds.append(kind)
        return encode(texts, kind=kind)

    texts = make_class_texts(NAMES, templates=("a {}",), descriptions={})
    encode_banks(note, texts, methods=("name", "description"), has_regions=True)
    assert kinds == ["caption"]  # the names: no class has a description


def test_an_unknown_method_is_refused():
    check_methods(METHODS)
    with pytest.raises(ValueError, match="Unknown method 'waffles'; choose among name"):
        check_methods(["name", "waffles"])
