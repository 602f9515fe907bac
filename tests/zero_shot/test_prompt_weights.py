"""ZPE against a plain loop over templates, classes and images."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from clustered_images import make_clusters, unit64

from grain_jax.zero_shot.method import CaptionBank, Images
from grain_jax.zero_shot.prompt_weights import template_weights, zpe
from grain_jax.zero_shot.scorers import TextBank


def plain_zpe(clusters, bank) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the templates, and scores of the images."""
    names, images = clusters.banks["names"], clusters.images.image.astype(np.float64)
    scale, scores = clusters.banks.logit_scale, []
    templates = range(len(names.members[0]))
    for p in templates:
        prompts = [names.embed[rows[p]].astype(np.float64) for rows in names.members]
        logits = np.array([[scale * (x @ t) for t in prompts] for x in images])
        expected = logits.mean(axis=0)
        if bank is not None:
            generic = np.array([[scale * (x @ t) for t in prompts] for x in bank.image])
            expected = (expected + generic.mean(axis=0)) / 2
        scores.append((logits - expected).max(axis=1).mean())
    weights = np.exp(scores) / np.exp(scores).sum()
    vectors = [
        sum(weights[p] * names.embed[rows[p]].astype(np.float64) for p in templates)
        for rows in names.members
    ]
    return weights, images @ unit64(np.array(vectors)).T


@pytest.mark.parametrize("with_bank", [False, True])
def test_weights_and_scores_are_those_of_a_plain_loop(with_bank):
    clusters = make_clusters(templates=4, per_class=5)
    generic = unit64(np.random.default_rng(5).normal(size=(11, 16))).astype(np.float32)
    bank = CaptionBank(("",) * 11, generic, lambda: generic, lambda texts: generic[: len(texts)])
    given = bank if with_bank else None
    weights, expected = plain_zpe(clusters, given)
    image = clusters.images.image
    mean = image.mean(axis=0)
    if with_bank:
        mean = (mean + generic.mean(axis=0)) / 2
    names = clusters.banks["names"]
    found = template_weights(image, names, mean, clusters.banks.logit_scale)
    np.testing.assert_allclose(found, weights, atol=1e-5)
    assert weights.max() > 1.05 * weights.min()
    scores = zpe(clusters.banks, bank=given, unlabeled=clusters.images)(clusters.images, None)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_template_that_tells_nothing_apart_gets_less_weight():
    clusters = make_clusters(templates=3)
    bank = clusters.banks["names"]
    embed = bank.embed.copy()
    embed[[rows[1] for rows in bank.members]] = embed[bank.members[0][1]]  # one text for all
    image = clusters.images.image
    weights = template_weights(image, TextBank(embed, bank.members), image.mean(axis=0), 100.0)
    assert weights[1] < 0.01 < min(weights[0], weights[2])


def test_texts_are_not_copied_for_all_templates_at_once():
    clusters = make_clusters(num_classes=40, templates=50, width=64, per_class=1)
    texts = clusters.banks["names"]
    assert texts.distinct[0]  # made before it is measured
    one = Images(clusters.images.image[:1])
    tracemalloc.start()
    try:
        zpe(clusters.banks, unlabeled=one)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < texts.embed.nbytes / 2


def test_classes_with_different_numbers_of_prompts_are_refused():
    clusters = make_clusters(templates=3)
    bank = clusters.banks["names"]
    ragged = TextBank(bank.embed, (bank.members[0][:2], *bank.members[1:]))
    banks = dataclasses.replace(clusters.banks, banks={"names": ragged})
    with pytest.raises(ValueError, match="these have from 2 to 3 prompts"):
        zpe(banks, unlabeled=clusters.images)
