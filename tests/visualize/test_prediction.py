"""The visualization of an image, and what it shares with the sheet: colours, numbers, texts."""

import itertools

import numpy as np
import pytest
from figures import texts_of
from matplotlib import colors
from matplotlib.figure import Figure
from PIL import Image

from grain_jax.results import Result
from grain_jax.visualize import canvas, curves
from grain_jax.visualize.boxes import TAG, tag_places
from grain_jax.visualize.canvas import (
    FAINT,
    INK,
    MISSED,
    PALETTE,
    RIGHT,
    Measure,
    contrast,
    drawable,
    ink_on,
)
from grain_jax.visualize.prediction import (
    LONG_SIDE,
    NOT_FOUND,
    WHOLE,
    LabelRow,
    TextRow,
    TextSection,
    confidence,
    draw_prediction,
)

READABLE = 4.5  # least contrast of text with what it lies on (WCAG 2, level AA)

LONG = "a long-tailed bird with a narrow yellow ring around each of its eyes " * 4


def visualization(path, image=None, **given):
    settings = {
        "title": "bird.jpg",
        "labels": [],
        "num_labels": 0,
        "sections": [],
        "others_xyxy": np.zeros((0, 4), np.float32),
        "crop_xyxy": np.array([0, 0, 1, 1], np.float32),
    }
    image = np.zeros((80, 80, 3), np.uint8) if image is None else image
    draw_prediction(image, path=path, **settings | given)


@pytest.fixture
def drawn(monkeypatch):
    """Figures instead of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    return figures


def box(*xyxy: float) -> np.ndarray:
    return np.array(xyxy, np.float32)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert ink_on("#ffb000") == "#000000"


@pytest.mark.parametrize("colour", [*PALETTE, MISSED])
def test_a_number_is_readable_on_its_tag(colour):
    assert contrast(ink_on(colour), colour) >= READABLE


@pytest.mark.parametrize("colour", [INK, FAINT, RIGHT])
def test_text_is_readable_on_the_page(colour):
    assert contrast(colour, "#ffffff") >= READABLE


def seen_without(cones: str, colour: str) -> np.ndarray:
    """Linear RGB of a colour as dichromats see it (Vienot, Brettel and Mollon 1999)."""
    red, green, blue = (
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colors.to_rgb(colour)
    )
    mixed = {"red": 0.11238 * red + 0.88762 * green, "green": 0.29275 * red + 0.70725 * green}
    shift = {"red": 0.00401, "green": -0.02234}[cones] * (red - green)
    return np.array([mixed[cones], mixed[cones], blue + shift])


@pytest.mark.parametrize("cones", ["red", "green"])
def test_colours_differ_to_the_colour_blind(cones):
    seen = {colour: np.cbrt(seen_without(cones, colour)) for colour in PALETTE}
    for first, second in itertools.combinations(PALETTE, 2):
        assert np.linalg.norm(seen[first] - seen[second]) > 0.08, (first, second)
    red, green = (np.cbrt(seen_without(cones, colour)) for colour in ("#8d6e63", "#00805a"))
    assert np.linalg.norm(red - green) > 0  # the measure itself tells colours apart


def test_a_long_text_is_wrapped_and_whole(drawn, tmp_path):
    found = TextRow(LONG, 0.5, box(0.1, 0.1, 0.9, 0.9))
    labels = [LabelRow(LONG + "warbler", 0.4, 0.3, (LONG, 0.2)), LabelRow("wren", 0.3, 0.2)]
    sections = [TextSection("phrase", (found,))]
    visualization(tmp_path / "visualization.png", labels=labels, num_labels=3, sections=sections)
    texts = [text for text, _ in texts_of(drawn[0])]
    words = " ".join(text for text in texts if not set(text) <= set("0123456789. %"))
    assert words.count(" ".join(LONG.split())) == 2  # as a label and as a phrase
    assert not [text for text in texts if text.endswith("…") and "best-matching" in text]


def test_columns_have_names_and_the_number_of_labels_is_said(drawn, tmp_path):
    labels = [LabelRow("tern", 0.06, 0.281, ("a black cap", 0.31)), LabelRow("wren", 0.05, 0.28)]
    sections = [
        TextSection("phrase", (TextRow("a beak", 0.4, box(0, 0, 1, 1)),)),
        TextSection("description of 'tern'", (TextRow("a black cap", 0.31, why=WHOLE),)),
    ]
    visualization(tmp_path / "visualization.png", labels=labels, num_labels=81, sections=sections)
    texts = [text for text, _ in texts_of(drawn[0])]
    for text in (
        *("highest-scoring of 81 labels", "score", "probability", "phrase", "cosine"),
        *("best-matching description: a black cap (0.31)", "description of 'tern'"),
        *(
            "random guess: 1.2 % (the line across a bar)",
            "6.0 %",
            "0.281",
            "whole image: a black cap",
        ),
    ):
        assert text in texts, text


def test_a_label_is_as_bold_as_it_is_likely(drawn, tmp_path):
    def looks(probability: float, num_labels: int) -> tuple[str, str]:
        label = LabelRow("tern", probability, 0.28)
        visualization(tmp_path / "visualization.png", labels=[label], num_labels=num_labels)
        (text,) = [text for text in drawn.pop().texts if text.get_text() == "tern"]
        return text.get_weight(), text.get_color()

    assert looks(0.06, 81) == ("normal", FAINT)
    assert looks(0.3, 81) == ("normal", INK)
    assert looks(0.97, 81) == ("bold", INK)
    assert looks(0.55, 2) == ("normal", INK)
    assert looks(1.0, 1) == ("normal", FAINT)  # nothing else was offered
    assert confidence(0.01, 81) == 0
    assert confidence(1.0, 2) == 1


def test_texts_share_the_number_of_their_box(drawn, tmp_path):
    texts = (
        TextRow("a dog", 0.4, box(0.1, 0.1, 0.5, 0.5)),
        TextRow("an animal", 0.3, box(0.1, 0.1, 0.5, 0.5)),
        TextRow("a hat", 0.2, box(0.6, 0.1, 0.9, 0.5)),
        TextRow("a unicorn", 0.1, why=NOT_FOUND),
    )
    visualization(tmp_path / "visualization.png", sections=[TextSection("phrase", texts)])
    (figure,) = drawn
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2"]
    tags = [text.get_text() for text in figure.texts if text.get_text() in ("1", "2")]
    assert tags == ["1", "1", "2"]
    assert "not found: a unicorn" in [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (40, 4000), (3, 2)])
def test_texts_stay_on_the_card_and_apart(drawn, shape, tmp_path):
    many = tuple(TextRow(f"{LONG}{i}", 0.5, box(0, 0, 0.1 * (i % 5), 1)) for i in range(30))
    visualization(
        tmp_path / "visualization.png",
        np.zeros((*shape, 3), np.uint8),
        title="$TITLE$ " * 40,
        labels=[LabelRow("WIDE" * 60, 0.999, 0.5)],
        num_labels=2,
        sections=[TextSection("phrase", many), TextSection("description", many[:1])],
        others_xyxy=np.array([[0, 0, 1, 1]], np.float32),
        crop_xyxy=np.array([0.2, 0, 0.8, 1], np.float32),
    )
    (figure,) = drawn
    places = texts_of(figure)
    for text, place in places:
        assert figure.bbox.x0 <= place.x0 <= place.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= place.y0 <= place.y1 <= figure.bbox.y1, text
    assert "and 7 more" in [text for text, _ in places]
    for i, (text, place) in enumerate(places):
        for other, beside in places[:i]:
            side_by_side = abs(place.y0 - beside.y0) < 4
            assert not side_by_side or place.x0 >= beside.x1 or beside.x0 >= place.x1, (text, other)


def test_scripts_without_a_font_are_escaped_and_said(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "_family_of", lambda code: None)  # as where only matplotlib's is
    drawable.cache_clear()
    try:
        texts = (TextRow("红 bird", 0.5), TextRow("\U0001f469\u200d\U0001f680", 0.4))
        visualization(
            tmp_path / "visualization.png",
            title="a\udcff.png",
            sections=[TextSection("phrase", texts)],
        )
    finally:
        drawable.cache_clear()
    shown = [text for text, _ in texts_of(drawn[0])]
    assert "\\u7ea2 bird" in shown
    assert "\\U0001f469\\U0001f680" in [text.replace("\u200d", "") for text in shown]
    assert "a\\udcff.png" in shown
    assert canvas.ESCAPED in shown


def test_an_installed_font_is_found_for_a_script(monkeypatch):
    """matplotlib has a second font of its own, with letters that its first one lacks."""
    first, second = canvas.characters_of(canvas.FAMILY), canvas.characters_of("STIXGeneral")
    only = chr(min(second - first - set(range(0xE000, 0xF900))))
    made = drawable(f"a {only}")
    assert made.shown == f"a {only}"
    assert not made.escaped
    assert len(made.families) == 2


@pytest.mark.parametrize("text", ["a b  c", "W" * 200, "one " * 80, "", "قطة صغيرة"])
def test_wrapped_lines_fit_and_lose_nothing(text):
    measure = Measure(100)
    lines = measure.wrapped(text, 2.0, size=10.0, max_lines=100)
    assert all(measure.inches(line, size=10.0) <= 2.0 for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert len(measure.wrapped(text, 2.0, size=10.0, max_lines=2)) <= 2


def apart(places: list[tuple[float, float]], size: tuple[float, float]) -> bool:
    wide, tall = TAG[0] / size[0], TAG[1] / size[1]
    return all(
        abs(x - a) >= wide - 1e-6 or abs(y - b) >= tall - 1e-6
        for i, (x, y) in enumerate(places)
        for a, b in places[:i]
    )


@pytest.mark.parametrize("size", [(LONG_SIDE, LONG_SIDE), (LONG_SIDE, 0.8), (0.8, LONG_SIDE)])
def test_numbers_on_boxes_do_not_cover_each_other(size):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (6, 2, 2)), axis=1)
    scattered = [(low[0], low[1], high[0], high[1]) for low, high in corners]
    nested = [(0.01 * i, 0.01 * i, 0.9, 0.9) for i in range(6)]
    small = [(0.5, 0.5, 0.5 + 1e-4 * i, 0.5 + 1e-4 * i) for i in range(4)]
    at_edges = [(0.0, 0.0, 0.01, 0.01), (0.99, 0.99, 1.0, 1.0), (0.0, 0.99, 1.0, 1.0)]
    for boxes in (scattered, nested, small, at_edges):
        places = tag_places(boxes, size)
        assert apart(places, size), boxes
        wide, tall = TAG[0] / size[0], TAG[1] / size[1]
        assert all(0 <= x <= 1 - wide + 1e-9 and 0 <= y <= 1 - tall + 1e-9 for x, y in places)


def test_boxes_and_the_unseen_part_show_on_the_visualization(tmp_path):
    def pixels(**given) -> np.ndarray:
        path = tmp_path / "visualization.png"
        visualization(path, **given)
        return np.asarray(Image.open(path).convert("RGB")).astype(int)

    plain = pixels()
    found = TextRow("x", 0.5, box(0.2, 0.2, 0.8, 0.8))
    colour = np.array(colors.to_rgb(PALETTE[0])) * 255
    first = np.abs(pixels(sections=[TextSection("phrase", (found,))]) - colour).max(axis=-1) < 8
    assert first.sum() > 500
    assert not (np.abs(plain - colour).max(axis=-1) < 8).any()
    cropped = pixels(crop_xyxy=np.array([0.25, 0, 0.75, 1], np.float32))
    assert (plain == 0).all(axis=-1).mean() > 1.8 * (cropped == 0).all(axis=-1).mean()


def run_records() -> tuple[list[dict], dict[int, list[Result]]]:
    """Metrics of training and results of evaluation at three steps."""
    losses = {name: 2.0 for name in curves.LOSSES} | {curves.SPEED: 100.0}
    results = [
        Result("validation", "description", alpha, "top1", value)
        for alpha, value in ((1.0, 0.7), (0.0, 1.0), (0.5, 0.999), (0.25, 0.999))
    ]
    results += [
        Result("validation", method, None, metric, 0.85) for method, metric in curves.FOLLOWED
    ]
    steps = (100, 200, 300)
    return [{"step": step} | losses for step in steps], dict.fromkeys(steps, results)


def test_curves_near_the_top_are_drawn_apart(drawn, tmp_path):
    curves.draw_curves(*run_records(), tmp_path / "curves.png")
    (figure,) = drawn
    (panel,) = [axes for axes in figure.axes if axes.get_yscale() == "symlog"]
    ends = {line.get_ydata()[-1] for line in panel.get_lines() if len(line.get_xdata()) == 3}
    shown = sorted(panel.transData.transform((0, y))[1] for y in ends)
    assert min(np.diff(shown)) > 25  # pixels between 99.9 and 100 %
    assert shown[-1] == panel.transData.transform((0, 0))[1]  # 100 % on top


def test_equal_curves_show_under_each_other(drawn, tmp_path):
    curves.draw_curves(*run_records(), tmp_path / "curves.png")
    (panel,) = [axes for axes in drawn[0].axes if axes.get_yscale() == "symlog"]
    widths = [line.get_linewidth() for line in panel.get_lines() if len(line.get_xdata()) == 3]
    assert widths == [1.6, 1.6, 3.2, 1.6]  # alphas 1, 0, 0.5, and 0.25, which is equal to 0.5


def test_a_colour_means_one_thing_in_all_panels():
    lines = [line for _, lines in curves.curve_panels(*run_records()) for line in lines]
    colour = {line.name: line.colour for line in lines}
    assert colour["contrastive"] == colour["alpha = 1"] == colour["retrieval, mean R@1"]
    assert colour["region"] == colour["alpha = 0"] == colour["grounding Acc@0.5"]
    assert colour["box L1"] == colour["box recall"]
    different = {colour[name] for name in ("loss (sum)", "contrastive", "region", "box L1")}
    assert len(different) == 4
    looks = [(line.colour, line.style) for line in lines[: len(curves.LOSSES)]]
    assert len(set(looks)) == len(looks)


def test_names_of_lines_do_not_cover_each_other(drawn, tmp_path):
    curves.draw_curves(*run_records(), tmp_path / "curves.png")
    (figure,) = drawn
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        places = [text.get_window_extent(renderer) for text in axes.texts]
        assert all(place.x1 <= figure.bbox.x1 and place.y0 >= axes.bbox.y0 - 8 for place in places)
        for i, place in enumerate(places):
            assert all(not place.overlaps(other) for other in places[:i])
