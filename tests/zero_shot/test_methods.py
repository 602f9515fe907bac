"""What every zero-shot method keeps to, and what each of them is."""

import numpy as np
import pytest

from grain_jax.results import STARTS
from grain_jax.zero_shot.methods import (
    METHODS,
    ComponentScores,
    ZeroShotMethod,
    check_methods,
    encode_banks,
    scores_by_method,
)
from grain_jax.zero_shot.scorers import make_class_texts

NAMES = ("owl", "wren", "jay")
DESCRIPTIONS = {"owl": ["round face", "big eyes"], "wren": ["short tail"]}
ALPHAS = (1.0, 0.25, 0.0)


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def encode(texts: list[str], *, kind: str) -> np.ndarray:
    """A direction of its own for each text of each kind."""
    seeds = [[len(kind), *text.encode()] for text in texts]
    return unit(np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds]))


def components(
    *, regions: bool = True, descriptions=DESCRIPTIONS, methods=METHODS
) -> ComponentScores:
    rng = np.random.default_rng(0)
    texts = make_class_texts(NAMES, templates=("a {}",), descriptions=descriptions)
    banks = encode_banks(encode, texts, methods=methods, has_regions=regions)
    image, queries = unit(rng.normal(size=(5, 8))), unit(rng.normal(size=(5, 4, 8)))
    return ComponentScores(
        image,
        queries if regions else None,
        banks,
        prompt_ensembling="embedding",
        region_aggregation="max_over_queries",
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("regions", [True, False])
@pytest.mark.parametrize("descriptions", [DESCRIPTIONS, {}])
def test_every_method_scores_every_class_or_leaves_itself_out(name, regions, descriptions):
    """Finite, of the right shape, for whatever the model and the texts have, asked for alone."""
    assert isinstance(METHODS[name], ZeroShotMethod)
    assert name not in STARTS  # results of retrieval and grounding go by those
    parts = components(regions=regions, descriptions=descriptions, methods=(name,))
    found = scores_by_method(parts, alphas=ALPHAS, methods=(name,))
    for (method, _), values in found.items():
        assert method == name
        assert values.shape == (5, len(NAMES))
        assert np.isfinite(values).all()
    needs = {"names": True, "descriptions": bool(descriptions)}
    needs["regions"] = bool(descriptions) and regions
    assert bool(found) == all(needs[kind] for kind in METHODS[name].texts)


@pytest.mark.parametrize("name", METHODS)
def test_alphas_are_some_of_those_given_or_the_whole_image(name):
    for regions in (True, False):
        found = METHODS[name].alphas(ALPHAS, has_regions=regions)
        assert set(found) <= {None, *ALPHAS} if regions else set(found) <= {None, 1.0}


def test_alpha_weighs_the_image_against_its_regions():
    parts = components()
    scores = scores_by_method(parts, alphas=ALPHAS, methods=METHODS)
    assert list(scores) == [
        ("name", None),
        ("name_and_regions", 0.25),
        ("description", 1.0),
        ("description", 0.25),
        ("description", 0.0),
    ]
    np.testing.assert_allclose(scores["description", 1.0], parts.by_description, atol=1e-6)
    np.testing.assert_allclose(scores["description", 0.0], parts.by_region, atol=1e-6)
    for method, whole in (
        ("description", parts.by_description),
        ("name_and_regions", parts.by_name),
    ):
        mixed = 0.25 * whole + 0.75 * parts.by_region
        np.testing.assert_allclose(scores[method, 0.25], mixed, atol=1e-6)


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
    with pytest.raises(ValueError, match="Unknown method 'waffle'; choose among name"):
        check_methods(["name", "waffle"])
