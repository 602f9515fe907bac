"""Images of synthetic birds: deterministic, balanced, with exact boxes, at any size."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from grain_jax.config import SyntheticBirdsConfig
from grain_jax.data.records import Source
from grain_jax.data.synthetic_birds import SyntheticBirdSource, part_of_description
from grain_jax.data.synthetic_birds.scene import DIFFICULTIES, draw_scene
from grain_jax.data.synthetic_birds.species import COLOURS, PARTS, Species, Trait, population

SPLITS = ("train", "validation", "seen", "unseen")


def recoloured(species: Species, part: str) -> Species:
    """The same species but for the colour of one part."""
    traits = dict(zip(PARTS, species.traits, strict=True))
    shape, colour = traits[part]
    other = COLOURS[(COLOURS.index(colour) + 3) % len(COLOURS)]
    traits[part] = Trait(shape, other)
    return Species(species.name, species.genus, tuple(traits.values()))


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_a_record_is_a_function_of_seed_split_and_index(difficulty):
    source = SyntheticBirdSource(
        SyntheticBirdsConfig(difficulty=difficulty, num_train_images=64), "train", 64
    )
    again = pickle.loads(pickle.dumps(source))
    assert isinstance(source, Source)
    assert len(source) == 64
    for index in (0, 7, 63):
        first, second = source[index], again[index]
        assert first.image.dtype == np.uint8
        assert first.image.shape == (64, 64, 3)
        assert first.image.tobytes() == second.image.tobytes()
        assert (first.id, first.captions, first.regions) == (
            second.id,
            second.captions,
            second.regions,
        )
    records = [
        SyntheticBirdSource(SyntheticBirdsConfig(difficulty=difficulty), split, 64)[3]
        for split in SPLITS
    ]
    records.append(
        SyntheticBirdSource(SyntheticBirdsConfig(difficulty=difficulty, seed=1), "train", 64)[3]
    )
    records.append(source[4])
    assert len({record.image.tobytes() for record in records}) == len(records)
    assert len({record.id for record in records}) == len(records)


def test_every_species_comes_equally_often():
    for split, count in (("train", 200), ("validation", 25), ("seen", 200), ("unseen", 50)):
        source = SyntheticBirdSource(SyntheticBirdsConfig(), split, 64)
        names = [source.species_of(i).name for i in range(2 * count + count // 2)]
        uses = [names.count(species.name) for species in source.species]
        assert (min(uses), max(uses)) == (2, 3)
        assert names[:count] != names[count : 2 * count]


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_boxes_are_where_recolouring_a_part_changes_the_image(difficulty):
    train = population(0).train
    size, worst, checked = 64, [], 0
    for index in range(24):
        species = train[(7 * index) % len(train)]

        def scene(species, index=index):
            rng = np.random.default_rng([5, index])
            return draw_scene(
                species, rng, difficulty=DIFFICULTIES[difficulty], image_size=size, others=train[:3]
            )

        original = scene(species)
        assert list(original.parts) == [part for part in PARTS if part in original.parts]
        for part, box in original.parts.items():
            if species.trait(part).shape == "tipped":  # the tip has a colour of its own
                continue
            changed = np.any(scene(recoloured(species, part)).image != original.image, axis=-1)
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            extent = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            worst.append(np.abs(np.asarray(box) * size - extent).max())
            checked += 1
    assert checked > 24 * 5
    assert max(worst) <= 0.5  # of a pixel: the mask is twice as fine as the image


def test_a_hidden_part_has_no_box():
    train = population(0).train
    lost = 0
    for index in range(150):
        species = train[index]

        def scene(species, index=index):
            rng = np.random.default_rng([6, index])
            return draw_scene(species, rng, difficulty=DIFFICULTIES["hard"], image_size=64)

        original = scene(species)
        for part in set(PARTS) - set(original.parts):
            lost += 1
            changed = np.any(scene(recoloured(species, part)).image != original.image, axis=-1)
            assert changed.sum() < 60
    assert lost >= 3


def test_a_larger_image_shows_the_same_scene():
    small, large = (SyntheticBirdSource(SyntheticBirdsConfig(), "seen", size) for size in (64, 96))
    for index in range(8):
        first, second = small[index], large[index]
        assert second.image.shape == (96, 96, 3)
        assert first.captions == second.captions
        for a, b in zip(first.regions, second.regions, strict=True):
            assert a.description == b.description
            np.testing.assert_allclose(a.box_xyxy, b.box_xyxy, atol=1.5 / 64)


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
@pytest.mark.parametrize("split", SPLITS)
def test_boxes_lie_in_the_image(difficulty, split):
    source = SyntheticBirdSource(SyntheticBirdsConfig(difficulty=difficulty), split, 64)
    for index in range(60):
        for region in source[index].regions:
            left, top, right, bottom = region.box_xyxy
            assert 0 <= top < bottom <= 1
            assert 0 <= left < right <= 1
            assert 0 < region.score <= 1


def test_the_hard_difficulty_is_hard():
    train = population(0).train
    facing_left, other_birds, sizes = 0, 0, {"easy": [], "hard": []}
    for difficulty, found in sizes.items():
        for index in range(60):
            rng = np.random.default_rng([8, index])
            scene = draw_scene(
                train[index], rng, difficulty=DIFFICULTIES[difficulty], image_size=64, others=train
            )
            left, top, right, bottom = scene.parts.get("body", (0, 0, 0, 0))
            found.append((bottom - top) * (right - left))
            if {"beak", "tail"} <= set(scene.parts):
                mirrored = scene.parts["beak"][0] < scene.parts["tail"][0]
                assert difficulty == "hard" or not mirrored
                facing_left += mirrored
            other_birds += sum("another" in text for text, _ in scene.objects)
            assert all(part_of_description(text) is None for text, _ in scene.objects)
    assert 15 <= facing_left <= 45
    assert other_birds >= 20
    assert np.mean(sizes["hard"]) < 0.8 * np.mean(sizes["easy"])


@pytest.mark.parametrize(
    ("changes", "split", "size", "message"),
    [
        ({}, "test", 64, "Unknown split 'test'.*'unseen'"),
        ({"difficulty": "medium"}, "train", 64, "data.synthetic_birds.difficulty"),
        ({"seed": -1}, "train", 64, "data.synthetic_birds.seed"),
        ({}, "train", 16, "at least 32 pixels, given 16"),
    ],
)
def test_invalid_settings_are_refused(changes, split, size, message):
    config = SyntheticBirdsConfig()
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        SyntheticBirdSource(config, split, size)


def test_an_index_beyond_the_end_is_refused():
    source = SyntheticBirdSource(SyntheticBirdsConfig(num_eval_images=5), "seen", 64)
    for index in (5, -1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    ("difficulty", "expected"), [("easy", "dd6cf93049aa8d12"), ("hard", "b6b5207a41f6cba2")]
)
def test_images_texts_and_boxes_are_those_that_results_rest_on(difficulty, expected):
    """A word changed in a caption is another data set, and its results are not to be compared."""
    found = hashlib.sha256()
    for split in ("train", "validation", "seen", "unseen"):
        source = SyntheticBirdSource(SyntheticBirdsConfig(difficulty=difficulty), split, 64)
        for index in range(40):
            record = source[index]
            captions = [[caption.text, caption.source] for caption in record.captions]
            regions = [
                [region.description, [round(value, 6) for value in region.box_xyxy]]
                for region in record.regions
            ]
            found.update(json.dumps([record.id, captions, regions]).encode())
            found.update(record.image.tobytes())
    assert found.hexdigest()[:16] == expected
