"""Properties of the species, texts and annotation noise of synthetic birds."""

import itertools
import re

import numpy as np
import pytest

from grain_jax.config import SyntheticBirdsConfig
from grain_jax.data.synthetic_birds import (
    SyntheticBirdSource,
    bird_vocabulary,
    bird_zero_shot_sets,
    part_of_description,
)
from grain_jax.data.synthetic_birds.language import GENERIC_CAPTION, PHRASINGS, describe
from grain_jax.data.synthetic_birds.scene import DIFFICULTIES, draw_scene
from grain_jax.data.synthetic_birds.species import (
    COLOURS,
    PARTS,
    SHAPES,
    SPECIES_PARTS,
    Trait,
    num_shared,
    population,
)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_held_out_species_are_new_and_their_parts_are_not(seed):
    groups = population(seed)
    assert [len(g) for g in (groups.train, groups.validation, groups.unseen)] == [200, 25, 50]
    everyone = [*groups.train, *groups.validation, *groups.unseen]
    assert len({frozenset(species.name.split("-")) for species in everyone}) == len(everyone)
    assert len({species.traits for species in everyone}) == len(everyone)

    genera = {}
    for species in everyone:
        genera.setdefault(species.genus, []).append(species)
    big_parts = {(s.trait("body"), s.trait("wing")) for s in everyone}
    assert len(genera) == len(big_parts) == 55  # so no genus and no pair is in two groups
    for siblings in genera.values():
        assert len(siblings) == 5
        assert len({(s.trait("body"), s.trait("wing")) for s in siblings}) == 1
        for first, second in itertools.combinations(siblings, 2):
            assert sum(first.trait(p) != second.trait(p) for p in SPECIES_PARTS) >= 2

    for part, shapes in SHAPES.items():
        shown = {species.trait(part) for species in groups.train}
        assert shown == {Trait(shape, colour) for shape in shapes for colour in COLOURS}
    for species in (*groups.validation, *groups.unseen):
        assert max(num_shared(species.traits, s.traits) for s in groups.train) <= 3
        assert all(species.trait(p).colour != species.trait("body").colour for p in SPECIES_PARTS)


def test_no_training_text_names_a_held_out_species():
    groups = population(0)
    held_out = {species.name for species in (*groups.validation, *groups.unseen)}
    source = SyntheticBirdSource(SyntheticBirdsConfig(), "train", 32)
    labels = set()
    for index in range(200):
        record = source[index]
        labels.add(record.label)
        for text in [c.text for c in record.captions] + [r.description for r in record.regions]:
            assert not any(name in text for name in held_out)
    assert labels == {species.name for species in groups.train}


def test_training_annotations_have_the_documented_error_rates():
    config, difficulty = SyntheticBirdsConfig(), DIFFICULTIES["easy"]
    source, train = SyntheticBirdSource(config, "train", 64), population(0).train
    parts = found = wrong = canonical = things = named_things = generic = 0
    moved, scores, mentioned = [], [], []
    for index in range(500):
        record, species = source[index], source.species_of(index)
        rng = np.random.default_rng([config.seed, 0, index])
        truth = draw_scene(species, rng, difficulty=difficulty, image_size=64, others=train)
        original, synthetic = record.captions
        assert (original.source, synthetic.source) == ("original", "synthetic")
        generic += original.text == GENERIC_CAPTION
        assert original.text == GENERIC_CAPTION or species.name in original.text
        mentioned.append(sum(part in words(synthetic.text) for part in PARTS))
        parts += len(truth.parts)
        things += len(truth.objects)
        for region in record.regions:
            scores.append(region.score)
            part = part_of_description(region.description)
            if part is None:
                named_things += 1
                assert region.description in {text for text, _ in truth.objects}
                continue
            found += 1
            trait = species.trait(part)
            wrong += trait.colour not in words(region.description)
            assert not trait.shape or trait.shape in words(region.description)
            canonical += "that" not in words(region.description)
            left, top, right, bottom = truth.parts[part]
            size = np.asarray([right - left, bottom - top] * 2)
            inside = (np.asarray(region.box_xyxy) > 0) & (np.asarray(region.box_xyxy) < 1)
            moved += list(((np.asarray(region.box_xyxy) - truth.parts[part]) / size)[inside])
    assert found / parts == pytest.approx(0.8, abs=0.03)
    assert wrong / found == pytest.approx(0.06, abs=0.02)
    assert canonical / found == pytest.approx(0.6, abs=0.04)
    assert np.std(moved) == pytest.approx(0.06, abs=0.005)
    assert abs(np.mean(moved)) < 0.005
    assert named_things / things == pytest.approx(0.3, abs=0.07)
    assert generic / 500 == pytest.approx(0.08, abs=0.04)
    assert set(mentioned) == {2, 3, 4}
    assert np.std(scores) > 0.15


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
@pytest.mark.parametrize("split", ["validation", "seen", "unseen"])
def test_evaluation_annotations_are_true(difficulty, split):
    source = SyntheticBirdSource(SyntheticBirdsConfig(difficulty=difficulty), split, 64)
    complete = 0
    for index in range(30):
        record, species = source[index], source.species_of(index)
        texts = {part: describe(part, species.trait(part)) for part in PARTS}
        assert record.label == species.name
        assert species.name in record.captions[0].text
        shown = [region.description for region in record.regions]
        assert shown == [text for text in texts.values() if text in shown]
        assert all(region.score == 1.0 for region in record.regions)
        complete += len(shown) == 6
        claims = record.captions[1].text.removeprefix("a bird with ").split(" and ")
        assert 2 <= len(claims) <= 4
        assert set(claims) <= set(shown)
    assert complete >= 20


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_vocabulary_knows_every_word_and_few_others(difficulty):
    config = SyntheticBirdsConfig(difficulty=difficulty)
    vocabulary = bird_vocabulary(config)
    assert vocabulary == sorted(set(vocabulary))
    assert len(vocabulary) < 200
    used = set()
    for split, count in (("train", 300), ("unseen", 50)):
        source = SyntheticBirdSource(config, split, 32)
        for index in range(count):
            record = source[index]
            for caption in record.captions:
                used.update(words(caption.text))
            for region in record.regions:
                used.update(words(region.description))
    for dataset in bird_zero_shot_sets(config, 32).values():
        for name in dataset.class_names:
            for template in dataset.templates:
                used.update(words(template.format(name)))
            for text in (*dataset.descriptions[name], *dataset.global_texts[name]):
                used.update(words(text))
    assert used <= set(vocabulary)
    assert len(set(vocabulary) - used) <= 3  # nothing is in it that is never said


def test_zero_shot_sets_describe_their_classes():
    sets = bird_zero_shot_sets(SyntheticBirdsConfig(num_eval_images=9), 64)
    assert {name: len(s.class_names) for name, s in sets.items()} == {
        "validation": 25,
        "seen": 200,
        "unseen": 50,
    }
    for name, dataset in sets.items():
        assert dataset.name == name
        assert len(dataset.source) == 9
        assert dataset.source[0].label in dataset.class_names
        for descriptions in dataset.descriptions.values():
            assert [part_of_description(text) for text in descriptions] == list(PARTS)
    unseen = sets["unseen"]
    species = population(0).unseen[0]
    first, second = (describe(part, species.trait(part)) for part in PARTS[:2])
    assert unseen.descriptions[species.name][:2] == (first, second)
    assert unseen.global_texts[species.name][0] == f"a bird with {first} and {second}"
    assert len(set(unseen.global_texts[species.name])) == 15


def test_descriptions_read_well_and_tell_their_part():
    assert describe("crest", Trait("spiky", "red")) == "a red spiky crest"
    assert describe("beak", Trait("open", "orange")) == "an orange open beak"
    assert describe("legs", Trait("", "green")) == "green legs"
    plain, relative = PHRASINGS["easy"]
    assert describe("tail", Trait("long", "blue"), plain) == "a blue long tail"
    assert describe("tail", Trait("long", "blue"), relative) == "a tail that is blue and long"
    assert describe("legs", Trait("", "red"), relative) == "legs that are red"
    for part, phrasing in itertools.product(PARTS, PHRASINGS["hard"]):
        text = describe(part, Trait(SHAPES[part][0], "orange"), phrasing)
        assert part_of_description(text) == part
        assert "  " not in text
    assert part_of_description("an orange leaf") is None
    assert part_of_description("another white bird") is None
