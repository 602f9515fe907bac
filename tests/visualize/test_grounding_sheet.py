import dataclasses

import numpy as np
import pytest
from figures import texts_of
from matplotlib.figure import Figure
from toy_encoder import ToySource, half, make_image, record, toy_encoder

from grain_jax.data.records import Record, Region
from grain_jax.data.transforms import decode_image
from grain_jax.evaluation.grounding_examples import grounding_examples
from grain_jax.visualize.grounding_sheet import (
    EXAMPLES_PER_PAGE,
    MAX_ROWS,
    MAX_TEXTS,
    Example,
    NamedBox,
    draw_grounding,
    example_rows,
)


def box(*xyxy: float) -> np.ndarray:
    return np.array(xyxy, np.float32)


def test_each_query_gets_the_best_description_of_the_whole_split():
    source = ToySource(
        record("0", "red", "green", "blue"),
        record("1", "green", "red", "green"),
        Record(
            id="2", image=make_image("blue", "blue", "red"), regions=(Region(half(0), "a sky"),)
        ),
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
        image=make_image("red", "red", "red"),
        regions=(Region(half(0), "a red part"), Region(half(0), "red thing")),
    )
    (example,) = grounding_examples(toy_encoder(), ToySource(same), 1)
    assert [true.texts for true in example.true] == [("a red part", "red thing")]


def test_a_model_without_regions_has_no_examples():
    source = ToySource(record("0", "red", "green", "blue"))
    assert grounding_examples(toy_encoder(regions=False), source, 1) == []


def example(true: int, predicted: int) -> Example:
    return Example(
        image=make_image("red"),
        title="two things",
        true=tuple(NamedBox(box(0.1 * i, 0.0, 0.1 * i + 0.1, 1.0), (f"{i}",)) for i in range(true)),
        predicted=tuple(
            NamedBox(box(0.1 * i, 0.0, 0.1 * i + 0.1, 0.9), (f"{i}",), 0.5)
            for i in reversed(range(predicted))
        ),
    )


def test_lines_pair_true_and_predicted_boxes():
    rows = example_rows(example(3, 2))
    pairs = [(row.true.texts[0], row.predicted and row.predicted.texts[0]) for row in rows]
    assert pairs == [("0", "0"), ("1", "1"), ("2", None)]
    assert rows[0].overlap == pytest.approx(0.9, abs=1e-4)
    extra = example_rows(example(1, 3))
    assert [row.true is None for row in extra] == [False, True, True]
    assert len(example_rows(example(10, 2))) == MAX_ROWS
    crowded = example_rows(example(0, 3))
    assert [row.true for row in crowded] == [None, None, None]


@pytest.fixture
def drawn(monkeypatch):
    """Figures instead of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    return figures


def crowded(number: int = 0) -> Example:
    """Texts longer than a line, one of them not to be taken for a formula."""
    wide, price = "which has a WOOLLY WHITE MOHAWK " * 9, r"from $5 to $\frac"
    texts = ((wide, price, "a third"), (price,))
    return dataclasses.replace(
        example(2, 2),
        title=f"{number} " + "M" * 300,
        true=tuple(
            dataclasses.replace(box, texts=said)
            for box, said in zip(example(2, 2).true, texts, strict=True)
        ),
        predicted=tuple(
            dataclasses.replace(box, texts=(text,))
            for box, text in zip(example(2, 2).predicted, (wide, price), strict=True)
        ),
    )


def test_every_text_has_its_place(drawn, tmp_path):
    draw_grounding([crowded(i) for i in range(3)], tmp_path / "sheet.png")
    (figure,) = drawn
    assert figure.get_size_inches()[0] * figure.dpi == 1_000
    places = texts_of(figure)
    for text, place in places:
        assert figure.bbox.x0 <= place.x0 <= place.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= place.y0 <= place.y1 <= figure.bbox.y1, text
    for i, (text, place) in enumerate(places):
        for other, beside in places[:i]:
            apart = place.x0 >= beside.x1 or beside.x0 >= place.x1
            # Glyph boxes of neighbouring lines may touch; side by side, nothing may.
            assert apart or abs(place.y0 - beside.y0) > 8, (text, other)


def test_every_text_of_a_box_is_shown(drawn, tmp_path):
    paraphrases = tuple(f"text {i}" for i in range(MAX_TEXTS + 2))
    one = example(1, 1)
    one = dataclasses.replace(one, true=(dataclasses.replace(one.true[0], texts=paraphrases),))
    draw_grounding([one], tmp_path / "sheet.png")
    shown = [text for text, _ in texts_of(drawn[0])]
    assert [f"{chr(97 + i)}) text {i}" for i in range(MAX_TEXTS)] == [
        text for text in shown if ") text" in text
    ]
    assert "and 2 more" in shown


def test_a_number_ties_a_pair_and_the_key(drawn, tmp_path):
    draw_grounding([example(2, 3)], tmp_path / "sheet.png")
    (figure,) = drawn
    true, predicted = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    assert (true, predicted) == (["1", "2"], ["1", "2", "3"])
    bold = [text.get_text() for text in figure.texts if text.get_weight() == "bold"]
    assert bold == ["two things", "1", "2", "3"]


def test_a_sheet_has_a_few_large_examples_a_page(tmp_path):
    path = tmp_path / "grounding.png"
    written = draw_grounding([example(2, 2)] * (2 * EXAMPLES_PER_PAGE + 1), path)
    names = ["grounding.png", "grounding-2.png", "grounding-3.png"]
    assert [file.name for file in written] == names
    full, last = (decode_image(file.read_bytes()) for file in (written[0], written[2]))
    assert full.shape[0] > 2 * last.shape[0]
    assert full.shape[1] == last.shape[1] == 1_000
    (tmp_path / "grounding-mine.png").write_bytes(b"")
    assert draw_grounding([example(2, 2)], path) == [path]
    assert {file.name for file in tmp_path.iterdir()} == {"grounding.png", "grounding-mine.png"}


@pytest.mark.parametrize(("shape", "ratio"), [((30, 60), 2.0), ((60, 30), 0.5), ((9, 9), 1.0)])
def test_an_image_keeps_its_aspect(drawn, tmp_path, shape, ratio):
    image = np.zeros((*shape, 3), np.uint8)
    draw_grounding([dataclasses.replace(example(2, 3), image=image)], tmp_path / "sheet.png")
    (figure,) = drawn
    figure.canvas.draw()
    for axes in figure.axes:
        place = axes.get_window_extent()
        assert place.width / place.height == pytest.approx(ratio, rel=0.01)
