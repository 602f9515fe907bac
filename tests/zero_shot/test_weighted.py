"""AutoCLIP, PerceptionCLIP and WCA against loops over the published formulas, in float64."""

import numpy as np
import pytest
from random_banks import banks_of, embedding, log_softmax, random_images, scores_of

from grain_jax.zero_shot.class_prompts import context_suffixes
from grain_jax.zero_shot.methods import METHODS

NAMES = ("owl", "wren", "jay", "finch")
TEMPLATES = ("a {}.", "the {}", "one {}", "no {}", "{}?")


def autoclip(image: np.ndarray, texts: np.ndarray, beta: float) -> np.ndarray:
    """Scores of one image [E] for texts [K, P, E]: the gradient at equal weights by differences."""
    cosines = np.einsum("kpe,e->kp", texts.astype(np.float64), image.astype(np.float64))
    num_templates = cosines.shape[1]

    def objective(rho):
        weights = np.exp(rho) / np.exp(rho).sum()
        return np.log(np.exp(cosines @ weights).sum())

    step = 1e-5
    steps = step * np.eye(num_templates)
    gradient = np.array([(objective(one) - objective(-one)) / (2 * step) for one in steps])

    def weights_at(size):
        logits = size * gradient
        exponent = np.exp(logits - logits.max())
        return exponent / exponent.sum()

    def entropy(size):
        weights = weights_at(size)
        return -sum(w * np.log2(w) for w in weights if w > 0)

    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        if entropy(middle) > beta * np.log2(num_templates):
            low = middle
        else:
            high = middle
    return cosines @ weights_at(low)


def test_autoclip_weighs_templates_by_one_step_of_the_given_entropy():
    images = random_images()
    texts = np.array([[embedding(t.format(name)) for t in TEMPLATES] for name in NAMES])
    found = scores_of("autoclip", NAMES, images, templates=TEMPLATES)
    expected = [autoclip(image, texts, 0.85) for image in images.image]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    equal = np.einsum("ne,kpe->nkp", images.image, texts).mean(axis=2)
    assert np.abs(found - equal).max() > 0.01  # the weights are not equal ones


def test_autoclip_with_one_template_is_clip():
    images = random_images()
    found = scores_of("autoclip", NAMES, images, templates=("a {}.",))
    by_name = images.image @ np.stack([embedding(f"a {name}.") for name in NAMES]).T
    np.testing.assert_allclose(found, by_name, atol=1e-6)


def test_autoclip_with_templates_that_say_the_same_is_clip():
    """No step makes weights of equal gradients uneven."""
    images = random_images()
    found = scores_of("autoclip", NAMES, images, templates=("a {}.", "a {}."))
    by_name = images.image @ np.stack([embedding(f"a {name}.") for name in NAMES]).T
    np.testing.assert_allclose(found, by_name, atol=1e-6)


def test_autoclip_counts_classes_of_the_same_name_each():
    images = random_images()
    names, called = ("owl", "wren", "wren (2)"), {"wren (2)": "wren"}
    texts = np.array(
        [[embedding(t.format(name)) for t in TEMPLATES] for name in ("owl", "wren", "wren")]
    )
    found = scores_of("autoclip", names, images, templates=TEMPLATES, name_texts=called)
    expected = [autoclip(image, texts, 0.85) for image in images.image]
    np.testing.assert_allclose(found, expected, atol=2e-5)


CONTEXTS = {"contexts": [["", "at night", "at dawn"], ["", "blurred"]]}


def perceptionclip(image: np.ndarray, texts: np.ndarray, scale: float) -> np.ndarray:
    """log P(y | x) of one image for texts [K, Z, E]."""
    logits = scale * np.einsum("kze,e->kz", texts.astype(np.float64), image.astype(np.float64))
    weight = np.array([sum(np.exp(logits[:, z])) for z in range(logits.shape[1])])
    weight /= weight.sum()
    total = np.zeros(len(logits))
    for z in range(logits.shape[1]):
        total += weight[z] * np.exp(log_softmax(logits[:, z]))
    return np.log(total)


@pytest.mark.parametrize("repeated", [False, True])
def test_perceptionclip_infers_the_context_first(repeated):
    names = (*NAMES, "owl (2)") if repeated else NAMES
    called = {"owl (2)": "owl"} if repeated else {}
    images = random_images()
    suffixes = ["", ", blurred", ", at night", ", at night, blurred", ", at dawn"]
    suffixes.append(", at dawn, blurred")
    texts = np.array([[embedding(f"a {called.get(n, n)}{s}.") for s in suffixes] for n in names])
    found = scores_of("perceptionclip", names, images, shared=CONTEXTS, name_texts=called)
    expected = [perceptionclip(image, texts, 5.0) for image in images.image]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, atol=1e-5)


def test_perceptionclip_without_a_context_ranks_as_clip():
    images = random_images()
    found = scores_of("perceptionclip", NAMES, images, shared={"contexts": [[""]]})
    by_name = images.image @ np.stack([embedding(f"a {name}.") for name in NAMES]).T
    np.testing.assert_allclose(found, [log_softmax(5.0 * row) for row in by_name], atol=1e-5)


def test_contexts_of_its_own_are_there_and_too_many_are_refused():
    assert "" in context_suffixes(banks_of("perceptionclip", NAMES).texts)
    many = {"contexts": [[str(i) for i in range(20)], [str(i) for i in range(20)]]}
    with pytest.raises(ValueError, match="400 combinations"):
        banks_of("perceptionclip", NAMES, shared=many)


def test_wca_weighs_regions_by_the_image_and_descriptions_by_the_name():
    images = random_images()
    described = {"owl": ["round face", "big eyes", "ears"], "wren": ["short tail"], "jay": ["blue"]}
    found = scores_of("wca_regions", NAMES, images, descriptions=described)
    expected = np.zeros((len(images), len(NAMES)))
    assert images.regions is not None
    for i, (image, regions) in enumerate(zip(images.image, images.regions, strict=True)):
        weights = np.array([np.exp(np.e**4 * float(r @ image)) for r in regions], np.float64)
        seen = sum(w * r.astype(np.float64) for w, r in zip(weights, regions, strict=True))
        for k, name in enumerate(NAMES):
            prompts = [embedding(t.format(name)) for t in ("a {}.", "the {}", "one {}")]
            called = np.mean(prompts, axis=0, dtype=np.float64)
            called /= np.linalg.norm(called)
            texts = [embedding(text, "description") for text in described.get(name, [name])]
            weighted = sum(
                np.exp(np.e**2 * float(t @ called)) * t.astype(np.float64) for t in texts
            )
            expected[i, k] = seen @ weighted / np.linalg.norm(seen) / np.linalg.norm(weighted)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_wca_on_one_region_is_that_region():
    images = random_images()
    assert images.regions is not None
    one = type(images)(images.image, images.regions[:, :1])
    described = {name: [f"{name} colour"] for name in NAMES}
    banks = banks_of("wca_regions", NAMES, descriptions=described)
    found = METHODS["wca_regions"].fit(banks)(one, None)
    texts = np.stack([embedding(f"{name} colour", "description") for name in NAMES])
    np.testing.assert_allclose(found, images.regions[:, 0] @ texts.T, atol=1e-6)
