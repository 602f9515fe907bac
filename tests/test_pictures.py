import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure
from toy_encoder import ToySource, half, picture, record, toy_encoder

from grain_jax.data.records import Record, Region
from grain_jax.data.transforms import decode_image
from grain_jax.evaluation.pictures import (
    MAX_ROWS,
    Example,
    NamedBox,
    _rows,
    draw_grounding,
    grounding_examples,
)


def box(*xyxy: float) -> np.ndarray:
    return np.array(xyxy, np.float32)


def test_each_query_gets_the_best_description_of_the_whole_split():
    source = ToySource(
        record("0", "red", "green", "blue"),
        record("1", "green", "red", "green"),
        Record(id="2", image=picture("blue", "blue", "red"), regions=(Region(half(0), "a sky"),)),
    )
    examples = grounding_examples(toy_encoder(), source, 3)
    assert [example.title for example in examples] == ["a red thing", "a green thing", "2"]
    texts = [[found.texts[0] for found in example.predicted] for example in examples]
    assert texts == [
        ["green part", "blue part"],
        ["red part", "green part"],
        ["blue part", "red part"],
    ]
    assert all(p.score == pytest.approx(1.0) for e in examples for p in e.predicted)
    assert [len(example.true) for example in examples] == [2, 2, 1]
    np.testing.assert_allclose(examples[0].true[0].xyxy, [0.0, 0.0, 0.5, 1.0])


def test_paraphrases_share_one_true_box():
    same = Record(
        id="0",
        image=picture("red", "red", "red"),
        regions=(Region(half(0), "a red part"), Region(half(0), "red thing")),
    )
    (example,) = grounding_examples(toy_encoder(), ToySource(same), 1)
    assert [true.texts for true in example.true] == [("a red part", "red thing")]


def test_a_model_without_regions_has_no_examples():
    source = ToySource(record("0", "red", "green", "blue"))
    assert grounding_examples(toy_encoder(regions=False), source, 1) == []


def example(true: int, predicted: int) -> Example:
    return Example(
        image=picture("red"),
        title="two things",
        true=tuple(NamedBox(box(0.1 * i, 0.0, 0.1 * i + 0.1, 1.0), (f"{i}",)) for i in range(true)),
        predicted=tuple(
            NamedBox(box(0.1 * i, 0.0, 0.1 * i + 0.1, 0.9), (f"{i}",), 0.5)
            for i in reversed(range(predicted))
        ),
    )


def test_lines_pair_true_and_predicted_boxes():
    rows = _rows(example(3, 2))
    pairs = [(row.true.texts[0], row.predicted and row.predicted.texts[0]) for row in rows]
    assert pairs == [("0", "0"), ("1", "1"), ("2", None)]
    assert rows[0].overlap == pytest.approx(0.9, abs=1e-4)
    extra = _rows(example(1, 3))
    assert [row.true is None for row in extra] == [False, True, True]
    assert len(_rows(example(10, 2))) == MAX_ROWS
    crowded = _rows(example(0, 3))
    assert [row.true for row in crowded] == [None, None, None]


@pytest.mark.parametrize("count", [1, 4])
def test_every_text_has_its_place(count, tmp_path, monkeypatch):
    places = []

    def measure(figure, path):
        renderer = figure.canvas.get_renderer()
        places.extend((t.get_text(), t.get_window_extent(renderer)) for t in figure.texts)
        sheet = figure.bbox
        assert all(sheet.x0 < place.x0 and place.x1 < sheet.x1 for _, place in places)
        assert all(sheet.y0 < place.y0 and place.y1 < sheet.y1 for _, place in places)

    monkeypatch.setattr(Figure, "savefig", measure)
    wide, price = "which has a WOOLLY WHITE MOHAWK " * 9, r"from $5 to $\frac"
    long = [
        dataclasses.replace(found, texts=(text,))
        for found, text in zip(example(2, 2).predicted, (wide, price), strict=True)
    ]
    crowded = dataclasses.replace(
        example(2, 2), title="M" * 300, true=tuple(long), predicted=tuple(long)
    )
    draw_grounding([crowded] * count, tmp_path / "sheet.png")
    assert sum(text == price for text, _ in places) == 2 * count
    assert sum(text.endswith(" …") for text, _ in places) == 3 * count
    for i, (text, place) in enumerate(places):
        for other, beside in places[:i]:
            apart = place.x0 >= beside.x1 or beside.x0 >= place.x1
            below = place.y0 >= beside.y1 or beside.y0 >= place.y1
            # Glyph boxes of neighbouring lines may touch; side by side, nothing may.
            assert apart or below or abs(place.y0 - beside.y0) > 8, (text, other)


def red_pixels(image: np.ndarray) -> int:
    return int((np.abs(image.astype(int) - (0xE6, 0x19, 0x4B)).max(axis=-1) < 8).sum())


def test_the_sheet_grows_with_its_cards_and_shows_the_boxes(tmp_path):
    def drawn(*examples: Example) -> np.ndarray:
        draw_grounding(examples, tmp_path / "sheet.png")
        return decode_image((tmp_path / "sheet.png").read_bytes())

    one, four = drawn(example(2, 2)), drawn(*[example(2, 2)] * 4)
    assert four.shape[1] > 2.5 * one.shape[1]
    assert four.shape[0] > 1.5 * one.shape[0]
    blank = dataclasses.replace(example(2, 2), true=(), predicted=())
    assert red_pixels(one) > 200 > red_pixels(drawn(blank))
