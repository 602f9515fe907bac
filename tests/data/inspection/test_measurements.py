"""What is counted of records, and that parts add up to the whole."""

import dataclasses
import itertools
import random

import pytest
from prepared_records import noise_image

from grain_jax.data.inspection.measurements import Measurements, aspect_bin
from grain_jax.data.inspection.worst import KINDS, NUM_WORST, SMALLEST
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.tokenizer import ClipTokenizer

TOKENIZER = ClipTokenizer()
WHOLE = Region((0.0, 0.0, 1.0, 1.0), "the whole of it", 0.25)
SMALL = Region((0.5, 0.5, 0.55, 0.52), "a dot")


def records(count: int) -> list[Record]:
    rng = random.Random(1)
    return [
        Record(
            f"r{i}",
            noise_image(i, (20 + i, 20)),
            tuple(
                Caption(" ".join(["bird"] * rng.randint(1, 9))) for _ in range(rng.randint(1, 3))
            ),
            tuple(
                Region((0.0, 0.0, rng.random() + 0.01, 0.5), "a dog", rng.random())
                for _ in range(rng.randint(0, 4))
            ),
            label="x" if i % 2 else None,
        )
        for i in range(count)
    ]


def test_one_record() -> None:
    found = Measurements()
    captions = (Caption("a red bird"), Caption("bird", "synthetic"))
    data = noise_image(0, (60, 30))
    found.add([7], [Record("a", data, captions, (WHOLE, SMALL), "wren")], TOKENIZER)
    assert (found.images, found.captions, found.regions) == (1, 2, 2)
    assert (found.images_with_regions, found.labelled, found.image_bytes) == (1, 1, len(data))
    assert found.caption_sources == {"original": 1, "synthetic": 1}
    assert found.caption_tokens == {5: 1, 3: 1}  # with start and end
    assert found.description_tokens == {6: 1, 4: 1}
    assert found.boxes == {2: 1}
    assert (found.whole_boxes, found.tiny_boxes, found.scored_boxes) == (1, 1, 1)
    assert (found.short_sides, found.long_sides) == ({30: 1}, {60: 1})
    assert found.box_sides == {39: 1, 1: 1}  # of 40 bins; the square root of 0.001 is 0.03
    # Twice as wide as high; 3 by 0.6 pixels is between 4:1 and 8:1.
    assert found.image_aspects == {aspect_bin(2, 1): 1}
    assert found.box_aspects == {aspect_bin(2, 1): 1, aspect_bin(5, 1): 1}
    (smallest, other) = found.worst.records[SMALLEST], found.worst.records["most boxes"]
    assert [(each.index, each.id, each.text, each.region) for each in smallest] == [
        (7, "a", "a dot", 1)
    ]
    assert smallest[0].value == pytest.approx(0.001)
    assert other[0].value == 2


def test_aspects() -> None:
    assert aspect_bin(1, 1) == 0
    assert aspect_bin(3, 7) == -aspect_bin(7, 3)
    assert aspect_bin(10**6, 1) == aspect_bin(1, 0) == -aspect_bin(0, 1)


def test_an_image_that_cannot_be_read_is_counted() -> None:
    found = Measurements()
    found.add([0], [Record("a", b"nothing", (Caption("a"),), (WHOLE,))], TOKENIZER)
    assert (found.images, found.unreadable, found.short_sides.total()) == (1, 1, 0)
    assert found.regions == 1


@pytest.mark.parametrize("seed", range(5))
def test_parts_in_any_order_add_up(seed: int) -> None:
    given = records(30)
    whole = Measurements()
    whole.add(range(30), given, TOKENIZER)
    cuts = [0, 3, 4, 17, 30]
    parts = [*itertools.pairwise(cuts)]
    random.Random(seed).shuffle(parts)
    summed = Measurements()
    for start, stop in parts:
        part = Measurements()
        part.add(range(start, stop), given[start:stop], TOKENIZER)
        summed.merge(part)
    assert dataclasses.asdict(summed) == dataclasses.asdict(whole)


def test_the_worst_are_those_that_sorting_finds() -> None:
    given = records(30)
    found = Measurements()
    found.add(range(30), given, TOKENIZER)
    areas = sorted(
        (min((r.box_xyxy[2] - r.box_xyxy[0]) * 0.5 for r in record.regions), i)
        for i, record in enumerate(given)
        if record.regions
    )
    assert [each.index for each in found.worst.records[SMALLEST]] == [
        i for _, i in areas[:NUM_WORST]
    ]
    most = sorted((-len(record.regions), i) for i, record in enumerate(given) if record.regions)
    assert [each.index for each in found.worst.records["most boxes"]] == [
        i for _, i in most[:NUM_WORST]
    ]
    assert set(found.worst.records) == set(KINDS)
