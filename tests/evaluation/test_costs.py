"""Texts and passes of every method, against what the model was really given."""

import dataclasses

import numpy as np
import pytest
from random_banks import encode, unit
from toy_encoder import bird_set, toy_encoder

from grain_jax.config import TrainConfig
from grain_jax.data.image_variants import with_crops
from grain_jax.evaluation.costs import Cost
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.suite import score_zero_shot
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.zero_shot.method import CaptionBank, Support
from grain_jax.zero_shot.methods import METHODS


def birds():
    """Three classes, of which one has no descriptions and two share one."""
    return bird_set(
        class_names=("wren", "robin", "jay"),
        templates=("a {}", "the {}", "one {}"),
        descriptions={"wren": ("red part", "blue part"), "robin": ("red part",)},
        further={"cupl": {"wren": ("a red wren",), "robin": ("a robin",), "jay": ("a jay",)}},
    )


def measured(*methods: str, encoder=None, **options) -> dict[str, Cost]:
    found: dict[str, Cost] = {}
    evaluate_zero_shot(
        encoder or toy_encoder(batch_size=64),
        birds(),
        alphas=(1.0, 0.5),
        methods=methods,
        on_costs=found.update,
        **options,
    )
    return found


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("regions", [True, False])
def test_texts_are_those_that_the_encoder_is_given(regions, draws, monkeypatch):
    """Each method alone, so that every text is encoded for it."""
    encoder, given = toy_encoder(regions=regions, batch_size=64), set()

    def noted(texts, *, kind):
        given.update((text, kind) for text in texts)
        return unit(encode(list(texts), kind=kind)[:, :3])  # the toy has no embedding of most words

    monkeypatch.setattr(encoder, "texts", noted)
    every = measured(*METHODS, encoder=encoder, text_draws=draws)
    assert set(every) > {"name", "description", "waffle", "cupl", "wca"}
    for name in set(every) - {"wca", "gc_clip", "fgvp", "wca_cupl"}:  # slow for images
        given.clear()
        alone = measured(name, encoder=encoder, text_draws=draws)
        assert alone[name] == every[name], name
        assert every[name].texts == len(given), name


def test_texts_of_several_kinds_and_classes_count_once():
    found = measured("name", "description", "name_and_regions")
    # Jay's prompts again; of regions red, blue and the bare name of jay.
    assert {name: cost.texts for name, cost in found.items()} == {
        "name": 9,
        "description": 2 + 3 + 3,
        "name_and_regions": 9 + 3,
    }
    assert {cost.passes for cost in found.values()} == {1}


def test_passes_follow_the_crops_and_draws():
    found = measured(
        "name", "wca", "fgvp", kinds=with_crops({"number": 3}), text_draws=2, details=True
    )
    assert {name: cost.passes for name, cost in found.items()} == {
        "name": 1,
        "wca": 1 + 2 * 3,
        "fgvp": 3,
    }


def test_captions_count_for_the_methods_that_look_at_them():
    embed = np.eye(3, dtype=np.float32)
    captions = ("a red thing", "a blue thing", "a red thing")
    bank = CaptionBank(captions, embed, lambda: embed, lambda texts: embed[: len(texts)])
    support = Support(embed, np.arange(3), captions=np.stack([embed[0], embed[1], embed[0]]))
    found = measured("name", "x_more", "caps_adapter", "tip_x", bank=bank, support=support)
    assert {name: cost.texts for name, cost in found.items()} == {
        "name": 9,
        "x_more": 9 + 2,
        "caps_adapter": 9 + 2,
        "tip_x": 9,
    }


def test_details_have_the_costs_of_a_set_and_no_result_does():
    config, details = TrainConfig(), ResultDetails()
    results = score_zero_shot(
        toy_encoder(), birds(), config, final=True, details=details, methods=("name",)
    )
    assert {name: dict(found) for name, found in details.costs.items()} == {
        "birds": {"name": Cost(texts=9, passes=1)}
    }
    assert not {"texts", "passes"} & {result.metric for result in results}
    assert dataclasses.asdict(details.costs["birds"]["name"]) == {"texts": 9, "passes": 1}
