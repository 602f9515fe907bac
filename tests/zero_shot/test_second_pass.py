"""WCA on crops, GC-CLIP and FGVP against plain loops over their formulas, in float64."""

import math

import numpy as np
import pytest
from random_banks import banks_of, embedding, random_images, scores_of

from grain_jax.data.image_variants import VARIANTS
from grain_jax.zero_shot.method import Images
from grain_jax.zero_shot.methods import METHODS, NEEDS, ONE_PASS, USES, titled
from grain_jax.zero_shot.second_pass import detected_regions

NAMES = ("owl", "wren", "jay", "finch", "crow", "tit", "kite")
TEMPLATES = ("a {}.", "the {}")
DESCRIPTIONS = {
    "owl": ("round face", "is large", "big eyes"),
    "wren": ("a short tail",),
    "jay": ("blue wings", "a crest"),
}
MARGINS = 3


def length_one(vector: np.ndarray) -> np.ndarray:
    vector = np.asarray(vector, np.float64)
    return vector / math.sqrt(sum(value * value for value in vector))


def looked_at(count: int = 6, *, seed: int = 3) -> Images:
    """Images with 4 regions, 7 random crops, crops of 4 boxes at 3 margins, and 4 blurs."""
    whole, rng = random_images(count, seed=seed), np.random.default_rng(seed)
    shapes = {"random_crops": 7, "box_crops": 4 * MARGINS, "box_blurs": 4}
    variants = {}
    for kind, number in shapes.items():
        made = rng.normal(size=(count, number, whole.image.shape[1]))
        variants[kind] = (made / np.linalg.norm(made, axis=2, keepdims=True)).astype(np.float32)
    return Images(whole.image, whole.regions, variants)


def name_of(name: str) -> np.ndarray:
    return length_one(sum(embedding(one.format(name)).astype(np.float64) for one in TEMPLATES))


def wca(image: np.ndarray, crops: np.ndarray, texts: dict[str, list[str]]) -> list[float]:
    """Both sides as published: each part weighs exp(scale * cosine), and the sums are cosines."""
    weights = [math.exp(math.exp(4) * float(crop @ image)) for crop in crops.astype(np.float64)]
    seen = length_one(sum(w * crop for w, crop in zip(weights, crops, strict=True)))
    found = []
    for name in NAMES:
        own = [embedding(text).astype(np.float64) for text in texts[name]]
        weights = [math.exp(math.exp(2) * float(one @ name_of(name))) for one in own]
        said = length_one(sum(w * one for w, one in zip(weights, own, strict=True)))
        found.append(float(seen @ said))
    return found


def test_wca_weighs_crops_by_the_image_and_texts_by_the_name():
    images = looked_at()
    texts = {name: [one.format(name) for one in TEMPLATES] for name in NAMES}
    verbs = {"owl": ("has ", "", "has "), "wren": ("is ",), "jay": ("has ", "is ")}
    for name, described in DESCRIPTIONS.items():
        joined = [verb + one for verb, one in zip(verbs[name], described, strict=True)]
        texts[name] = [f"A photo of a {name}, which {one}" for one in joined]
    found = scores_of("wca", NAMES, images, templates=TEMPLATES, descriptions=DESCRIPTIONS)
    crops = images.variants["random_crops"]
    expected = [wca(image, own, texts) for image, own in zip(images.image, crops, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_wca_on_cupl_sentences_compares_them_as_they_stand():
    images = looked_at()
    sentences = {"owl": ["An owl sits.", "Owls fly."], "wren": ["A wren hops."]}
    texts = {name: [one.format(name) for one in TEMPLATES] for name in NAMES} | sentences
    further = {"cupl": sentences}
    found = scores_of("wca_cupl", NAMES, images, templates=TEMPLATES, further=further)
    crops = images.variants["random_crops"]
    expected = [wca(image, own, texts) for image, own in zip(images.image, crops, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def gc_clip(image: np.ndarray, regions: np.ndarray, crops: np.ndarray) -> tuple[int, list[float]]:
    """The chosen box, and mean cosines over its crops and the whole image."""
    by_name = [float(image.astype(np.float64) @ name_of(name)) for name in NAMES]
    candidates = sorted(range(len(NAMES)), key=lambda k: -by_name[k])[:5]
    best, chosen = -2.0, -1
    for query, region in enumerate(regions):
        for k in candidates:
            cosine = float(region @ embedding(NAMES[k], "description"))
            if cosine > best:
                best, chosen = cosine, query
    scores = []
    for k, name in enumerate(NAMES):
        own = [float(crops[chosen * MARGINS + m] @ name_of(name)) for m in range(MARGINS)]
        scores.append((sum(own) + by_name[k]) / (MARGINS + 1))
    return chosen, scores


def test_gc_clip_averages_the_crops_at_the_box_of_the_likeliest_object():
    images = looked_at(12)
    crops, regions = images.variants["box_crops"], images.regions
    assert regions is not None
    expected = [gc_clip(*one) for one in zip(images.image, regions, crops, strict=True)]
    found = scores_of("gc_clip", NAMES, images, templates=TEMPLATES)
    np.testing.assert_allclose(found, [scores for _, scores in expected], atol=1e-6)
    assert len({query for query, _ in expected}) > 1


def test_the_object_is_looked_for_among_five_classes_only():
    """A region that names the sixth best class exactly is not its box."""
    names = np.eye(8, dtype=np.float32)
    by_name = np.array([[8, 7, 6, 5, 4, 3, 2, 1]], np.float32)
    assert detected_regions(names[None, [7, 5, 4]], by_name, names) == 2
    assert detected_regions(names[None, [7, 5, 4]], by_name[:, ::-1], names) == 0


def test_fgvp_takes_the_image_that_shows_the_class_best():
    images = looked_at()
    found = scores_of("fgvp", NAMES, images, templates=TEMPLATES)
    expected = [
        [max(float(one @ name_of(name)) for one in own) for name in NAMES]
        for own in images.variants["box_blurs"]
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_of_classes_that_tie_for_the_fifth_place_the_first_is_looked_for():
    names = np.eye(8, dtype=np.float32)
    by_name = np.array([[4, 4, 4, 4, 1, 1, 1, 1]], np.float32)
    assert detected_regions(names[None, [7, 5, 4]], by_name, names) == 2


SECOND_PASS = [name for name, method in METHODS.items() if method.variants]


@pytest.mark.parametrize("name", SECOND_PASS)
def test_a_method_without_its_variants_says_which_it_lacks(name):
    (kind,) = METHODS[name].variants
    texts = {"descriptions": DESCRIPTIONS, "further": {"cupl": {"owl": ["An owl."]}}}
    score = METHODS[name].fit(banks_of(name, NAMES, **texts))
    with pytest.raises(ValueError, match=f"variants, '{kind}' and was given none; pass Images"):
        score(random_images(), None)


def test_methods_that_encode_images_again_say_so_and_are_not_among_all():
    assert set(SECOND_PASS) == {"wca", "wca_cupl", "gc_clip", "fgvp"}
    assert set(ONE_PASS) == METHODS.keys() - set(SECOND_PASS)
    assert VARIANTS.keys() <= NEEDS.keys() & USES.keys()
    assert titled("wca") == "wca (random crops)"
