"""Mixtures: which record comes when, and that nothing but (seed, step, weights) decides on it."""

import dataclasses
import itertools
import logging
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered_images import CONFIG, NumberedImages, assert_equal, batches
from prepared_records import noise_image, write_prepared

from grain_jax.config import DataConfig, TrainConfig
from grain_jax.data import text_lengths
from grain_jax.data.mixture import Mixture, sample_indices, source_sizes, training_order, turn
from grain_jax.data.records import Caption, Record, Region, Selection
from grain_jax.data.region_coverage import region_coverage
from grain_jax.data.source import open_source, open_training_source
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.trainer.inputs import mixture_in_words

SEVEN, THREE = Fraction("0.7"), Fraction("0.3")


def mixture(weights=(SEVEN, THREE), sizes=(40, 16), **options) -> Mixture:
    sources = [NumberedImages(size, **options) for size in sizes]
    return Mixture(sources, weights, [f"set {i}" for i in range(len(sizes))])


shares = st.lists(st.integers(1, 50), min_size=1, max_size=5)


@given(shares, st.integers(0, 10**12))
def test_turns_are_as_many_as_the_weights_say(shares, start):
    """Counted one by one from `start` on, in whole numbers."""
    total, number = sum(shares), len(shares)
    first = [next(k for k in itertools.count() if turn(k, shares)[0] == i) for i in range(number)]
    assert [turn(position, shares)[1] for position in first] == [0] * number
    counts: dict[int, int] = {}
    seen: Counter[int] = Counter()
    for position in range(start, start + 2 * total):
        source, before = turn(position, shares)
        assert counts.setdefault(source, before) == before  # one after the other, none left out
        counts[source] += 1
        seen[source] += 1
        for i, count in counts.items():
            exact = Fraction((position + 1) * shares[i], total)
            assert abs(count - exact) < number
    assert seen == Counter({i: 2 * share for i, share in enumerate(shares)})


def test_seven_to_three_is_exact():
    numbers = [turn(position, (7, 3))[0] for position in range(100_000)]
    assert numbers.count(0) == 70_000
    assert [numbers[k : k + 10].count(1) for k in range(0, 100_000, 10)] == [3] * 10_000
    assert [turn(10**15 + k, (7, 3))[0] for k in range(10)] == numbers[:10]


@pytest.mark.parametrize("weights", [(SEVEN, THREE), (Fraction(1, 9), Fraction(2))])
def test_each_set_is_read_in_epochs_of_its_own_in_new_orders(weights):
    mixed = mixture(weights)
    order = training_order(mixed, seed=3)
    drawn = [order[position] for position in range(1_700)]
    for number, size in enumerate((40, 16)):
        own = [index - mixed.records_of(number).start for index in drawn]
        own = [index for index in own if 0 <= index < size]
        assert abs(len(own) - 1_700 * mixed.fraction(number)) <= 1
        epochs = [own[k : k + size] for k in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 1
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)  # none lost, none twice
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_sets_of_one_size_are_shuffled_apart():
    order = training_order(mixture((Fraction(1), Fraction(1)), (40, 40)), seed=0)
    drawn = np.array([order[position] for position in range(80)])
    assert (drawn[::2] != drawn[1::2] - 40).any()


def test_one_set_alone_has_the_batches_of_that_set():
    assert_equal(batches(mixture([Fraction(2)], [40]), 12), batches(NumberedImages(40), 12))


def test_weights_are_those_of_batches_and_records_those_of_the_sets():
    mixed = mixture()
    made = batches(mixed, 20, dataclasses.replace(CONFIG, resize="squash", flip_probability=0.0))
    index = np.concatenate([batch.index for batch in made])
    assert abs((index < 40).sum() - 0.7 * 160) <= 1
    pixels = np.concatenate([batch.images[:, 0, 0, 0] for batch in made])
    np.testing.assert_array_equal(pixels, np.where(index < 40, index, index - 40))


@pytest.mark.parametrize("rows", [[2, 3], [0, 3, 5]])
def test_the_global_batch_does_not_depend_on_the_split_of_rows(rows):
    mixed = mixture(bad=(3,))
    whole = batches(mixed, 6)
    for made, expected in zip(batches(mixed, 6, rows=rows), whole, strict=True):
        np.testing.assert_array_equal(made.index, expected.index[rows])
        np.testing.assert_array_equal(made.images, expected.images[rows])
        np.testing.assert_array_equal(made.captions, expected.captions[rows])


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "changes",
    [
        {"num_workers": 2},
        {"num_threads": 4, "prefetch_batches": 8},
        {"cache": "memory"},
    ],
)
def test_who_makes_the_batches_changes_nothing(changes):
    config = dataclasses.replace(CONFIG, **changes)
    expected = batches(mixture(bad=(3,)), 5, image_size=32)
    assert_equal(batches(mixture(bad=(3,)), 5, config, image_size=32), expected)


def test_with_other_weights_a_resumed_run_has_the_batches_of_one_that_always_had_them():
    equal = batches(mixture((Fraction(1), Fraction(1))), 12)
    resumed = batches(mixture((Fraction(1), Fraction(1))), 7, start_step=5)
    assert_equal(resumed, equal[5:])
    before = batches(mixture(), 12)
    assert any((a.index != b.index).any() for a, b in zip(before[5:], resumed, strict=True))


def test_a_bad_image_is_replaced_by_one_of_its_own_set(caplog):
    with caplog.at_level(logging.WARNING):
        made = batches(mixture(bad=(3, 12)), 20)
    good = np.concatenate([batch.index for batch in batches(mixture(), 20)])
    index = np.concatenate([batch.index for batch in made])
    replaced = np.concatenate([batch.replaced for batch in made])
    np.testing.assert_array_equal(replaced, np.isin(good, (3, 12, 43, 52)))
    np.testing.assert_array_equal(index < 40, good < 40)
    for bad in (3, 12, 43, 52):
        assert len(set(index[good == bad])) == 1


def test_records_are_those_of_the_sources_one_by_one_and_together():
    mixed = mixture((Fraction(1),) * 3, (3, 1, 5))
    own = [source[i].id for source in mixed.sources for i in range(len(source))]
    assert [mixed[i].id for i in range(len(mixed))] == own
    order = [8, 0, 3, 3, 5, 2]
    assert [record.id for record in mixed.__getitems__(order)] == [own[i] for i in order]
    assert [record.id for record in Selection(mixed, order).__getitems__([1, 0])] == own[0:9:8]
    assert [mixed.source_of(i) for i in range(9)] == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert source_sizes(mixed) == [3, 1, 5]
    assert source_sizes(NumberedImages(4)) == [4]
    for outside in (-1, 9):
        with pytest.raises(IndexError):
            mixed[outside]


class Texts:
    """Records with one caption of `words` words, every `step`-th with a region."""

    def __init__(self, count: int, words: int, step: int):
        self.count, self.words, self.step = count, words, step

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Record:
        region = Region((0.0, 0.0, 1.0, 1.0), "part")
        regions = () if index % self.step else (region,)
        return Record(str(index), b"", (Caption(" ".join(["w"] * self.words)),), regions)


def test_what_is_said_of_the_images_goes_by_weight():
    mixed = Mixture([Texts(1_000, 3, 2), Texts(10, 6, 1)], [Fraction(1), Fraction(3)], ["a", "b"])
    coverage = region_coverage(mixed)
    assert coverage.fraction == pytest.approx(0.25 * 0.5 + 0.75 * 1.0)
    assert coverage.any_regions
    assert coverage.sentence().startswith("88 % of images as they are drawn")
    config = TrainConfig(data=DataConfig(synthetic_caption_probability=0.0))
    lengths = text_lengths.text_lengths(mixed, config, WordTokenizer(["w"]))
    assert lengths.captions[3 + 2] * 3 == pytest.approx(lengths.captions[6 + 2], rel=0.02)
    assert sorted(set(sample_indices(mixed, 100) >= 1_000)) == [False, True]
    assert mixture_in_words(mixed, samples=4_000).splitlines() == [
        "a: 1,000 images, weight 1 (25 % of the samples), 1 epochs",
        "b: 10 images, weight 3 (75 % of the samples), 300 epochs",
    ]


def record(name: str) -> Record:
    return Record(name, noise_image(0), (Caption(name),))


def test_prepared_folders_are_mixed_and_another_is_held_out(tmp_path):
    a = write_prepared(tmp_path / "a=1", {"train": [record("a0"), record("a1")]})
    b = write_prepared(tmp_path / "b", {"train": [record("b0")], "dev": [record("held")]})
    config = DataConfig(
        dataset="tfds", mixture=(f"{a}=0.7", f"{b}=0.3"), data_dir=str(b), eval_split="dev"
    )
    mixed = open_training_source(config, image_size=8)
    assert isinstance(mixed, Mixture)
    assert [mixed[i].id for i in range(3)] == ["a0", "a1", "b0"]
    assert mixed.weights == (SEVEN, THREE)
    assert mixed.names == (str(a), str(b))
    assert open_source(config, "dev", image_size=8)[0].id == "held"


@pytest.mark.parametrize(
    ("split", "message"), [("train[:0]", "has no record"), ("dev", "no split")]
)
def test_a_set_without_images_is_refused_by_its_folder(tmp_path, split, message):
    folders = [
        write_prepared(tmp_path / name, {"train": [record("0")]} | more)
        for name, more in (("full", {"dev": [record("1")]}), ("lacking", {}))
    ]
    entries = tuple(f"{folder}=1" for folder in folders)
    config = DataConfig(dataset="tfds", mixture=entries, train_split=split, eval_split="")
    with pytest.raises(ValueError, match=message) as raised:
        open_training_source(config, image_size=8)
    assert ("full" if split == "train[:0]" else "lacking") in str(raised.value)


def test_a_missing_folder_is_refused_by_its_name(tmp_path):
    a = write_prepared(tmp_path / "a", {"train": [record("a0")]})
    config = DataConfig(dataset="tfds", mixture=(f"{a}=1", f"{tmp_path / 'gone'}=1"), eval_split="")
    with pytest.raises(ValueError, match=r"gone.* holds no prepared data set"):
        open_training_source(config, image_size=8)
