"""The page as HTML: what is in it, escaped, and readable."""

import itertools
import re

import pytest
from report_files import (
    NASTY,
    Page,
    sections_of,
    stylesheet,
)

from grain_jax.evaluation.report_page.render import html_page, page_title
from grain_jax.visualize.canvas import contrast


@pytest.fixture
def page(two, photos):
    evaluations, sections = sections_of(*two, {"val": photos})
    return Page(html_page(page_title(evaluations), sections))


def test_the_page_loads_nothing_and_runs_nothing(page):
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    for tag, attributes in page.attributes:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href"):
                assert value.startswith(("data:image/jpeg;base64,", "#section")), value
            assert "url(" not in (value or "")
    policy = next(a["content"] for _, a in page.attributes if "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_texts_of_the_files_are_shown_as_they_are(page):
    assert NASTY in page.texts  # a class
    assert any(f"phrase 0 of {NASTY}" in text for text in page.texts)
    for expected in ("A: demo, step 7", "settings: alphas", "[1.0, 0.5]", "≠ versions: jax"):
        assert expected in page.texts


def test_every_section_is_there_and_can_be_reached(page):
    titles = [a["id"] for tag, a in page.attributes if tag == "h2"]
    links = [a["href"] for tag, a in page.attributes if tag == "a"]
    assert links == [f"#{title}" for title in titles]
    for title in ("Zero-shot classification", "Probabilities", "Retrieval", "Grounding"):
        assert page.texts.count(title) >= 2


def test_wide_tables_scroll_in_a_region_of_their_own(page):
    inside = 0
    for tag, attributes in page.attributes:
        if tag == "table":
            assert inside
        inside = tag == "div" and attributes.get("class", "").split()[:1] == ["table"]
        if inside:
            assert attributes["tabindex"] == "0"
    style = stylesheet()
    assert re.search(r"@media \(max-width: 40rem\) \{\s*\.stacked", style)
    assert "content: attr(data-head)" in style
    assert re.search(r"\.table \{[^}]*overflow: auto", style)


def test_every_colour_can_be_read_on_what_is_behind_it():
    style = stylesheet()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style))
    assert set(re.findall(r"#[0-9a-fA-F]{3,8}\b", style)) == set(colours.values())
    texts = set(re.findall(r"(?<![-\w])(?:color|fill): var\(--(\w+)\)", style)) - {"rim"}
    behind = set(re.findall(r"background: var\(--(\w+)\)", style))
    assert {"ink", "faint", "note", "mark"} <= texts
    assert behind == {"paper", "panel"}
    for front, back in itertools.product(texts, behind):
        assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    assert contrast(colours["rim"], colours["mark"]) >= 4.5  # a number on its plate
    for line in ("mark", "ink"):  # boxes on their rim
        assert contrast(colours[line], colours["rim"]) >= 4.5


def test_columns_give_way_to_a_narrow_window():
    minima = re.findall(r"minmax\((.+?), 1fr\)", stylesheet())
    assert len(minima) == 4
    assert all(minimum.startswith("min(100%, ") for minimum in minima)


def test_cells_of_a_narrow_window_carry_the_title_of_their_column(page):
    cells = [a for tag, a in page.attributes if tag == "td" and a.get("role") == "cell"]
    heads = {cell["data-head"] for cell in cells}
    assert {"birds, A", "birds, B"} <= heads
    assert "" not in heads
