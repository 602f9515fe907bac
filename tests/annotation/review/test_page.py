"""The page says what the annotations say, as text, and loads nothing."""

import base64
import hashlib
import html.parser
import io
import json
import re
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_annotations import BOX, described, grounded, write_rows

pytest.importorskip("pyarrow")

from grain_jax.annotation.review.images import ReviewedImage, embedded, linked, reviewed, sampled
from grain_jax.annotation.review.page import review_page, script_json
from grain_jax.data.annotation_files import read_annotations
from grain_jax.data.annotation_merge import AnnotatedRegion, Annotation

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "\"'&amp;<b>]]>\u2028\u2029\0",
    "{{script}} {{data}}",
    "\\u003c/script>",
)


class Parsed(html.parser.HTMLParser):
    """Elements and texts of a page, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # (element, text)
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def of(self, tag: str) -> str:
        """The text of all elements of a name."""
        return "".join(text for element, text in self.texts if element == tag)

    @property
    def scripts(self) -> list[str]:
        return [text for element, text in self.texts if element == "script"]


def shown(name="a.png", text="a red crest", **more) -> ReviewedImage:
    annotation = Annotation(
        name, captions=(text,), primary_subject=text, regions=(AnnotatedRegion(BOX, text, 0.5),)
    )
    return ReviewedImage(annotation, "0" * 32, ((text, 0.01), (text, None)), "", (), **more)


def data_of(page: str) -> dict:
    data, _ = Parsed(page).scripts
    return json.loads(data)


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_cannot_leave_the_data(text):
    page = review_page(text, [shown(text, text)], urllib.parse.quote)
    parsed, plain = Parsed(page), Parsed(review_page("t", [shown()], urllib.parse.quote))
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in plain.elements]
    (image,) = data_of(page)["images"]
    assert image["captions"] == [text]
    assert image["regions"] == [[text, 0.5, list(BOX)]]
    assert image["unboxed"] == [[text, 0.01], [text, None]]
    assert (image["name"], image["subject"]) == (text, text)
    assert " ".join(text.split()) in parsed.of("title")


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_json_in_a_script_is_the_same_json(text):
    encoded = script_json({"text": text})
    assert json.loads(encoded) == {"text": text}
    assert not set("<>&") & set(encoded)


def test_the_page_runs_its_own_script_only_and_loads_nothing():
    page = review_page("t", [shown()], lambda image: "x.png")
    parsed = Parsed(page)
    _, script = parsed.scripts
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in parsed.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    for tag, attributes in parsed.elements:
        assert not {"href", "srcset"} & attributes.keys(), tag
        assert "src" not in attributes, tag
        assert not any(name.startswith("on") for name in attributes), tag
    for forbidden in ("http://", "https://", "innerHTML", "eval(", "fetch(", "@import", "url("):
        assert forbidden not in page


def test_controls_have_names_and_the_page_a_language():
    parsed = Parsed(review_page("t", [shown()], lambda image: "x.png"))
    assert ("html", {"lang": "en"}) in parsed.elements
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    script = parsed.scripts[1]
    assert set(re.findall(r'by\("(\w+)"\)', script)) <= set(ids)
    assert len(re.findall(r"<label>", review_page("t", [], str))) == 2


def luminance(color: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("front", "back", "least"),
    [
        *((front, back, 4.5) for front in ("ink", "faint") for back in ("paper", "panel")),
        ("ink", "selected", 4.5),
        ("on-action", "action", 4.5),
        ("on-tag", "tag", 4.5),
        ("accept", "paper", 4.5),
        ("reject", "paper", 4.5),
        ("action", "paper", 3.0),  # outline of what has the focus
        ("line", "paper", 3.0),  # borders of buttons
    ],
)
def test_colours_have_contrast(front, back, least):
    style = Parsed(review_page("t", [], str)).of("style")
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", style))
    pair = sorted((luminance(colors[front]), luminance(colors[back])))
    assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least


@pytest.mark.parametrize(
    "name", ["a b/c#1?x%20.png", "javascript:alert(1).png", "caf\u00e9.jpg", '"<b>.png']
)
@pytest.mark.parametrize("place", ["page.html", "pages/deep/page.html"])
def test_links_lead_to_the_files(tmp_path, name, place):
    page = tmp_path / place
    link = linked(tmp_path / "images", page)(name)
    address = urllib.parse.urljoin(page.as_uri(), link)
    parts = urllib.parse.urlsplit(address)
    assert parts.scheme == "file"
    assert (parts.query, parts.fragment) == ("", "")
    assert Path(urllib.parse.unquote(parts.path)) == tmp_path / "images" / name


def test_images_inside_the_page_are_small_jpegs(tmp_path):
    Image.new("RGB", (300, 100), (200, 30, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    source = embedded(tmp_path, 60)
    head, _, data = source("a.png").partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (60, 20)
    assert source("b.png") == "data:,"


def test_what_is_shown_of_an_image(tmp_path):
    row = described("a.png", descriptions=["a red crest", "a hat", "a wing"])
    scores = {"a red crest": 0.5, "a hat": 0.02}
    write_rows(tmp_path, "describe", row, described("b.png", [], []))
    write_rows(tmp_path, "ground", grounded("a.png", scores, [("a red crest", BOX, 0.5)]))
    annotations = read_annotations(tmp_path)
    found = reviewed(annotations, 0)
    assert found is not None
    assert [each.description for each in found.annotation.regions] == ["a red crest"]
    assert found.unboxed == (("a hat", 0.02), ("a wing", None))
    assert (found.verdict, found.rejected) == ("", ())
    assert reviewed(annotations, 1) is None  # nothing to look at


def test_a_sample_is_the_same_each_time_and_grows_into_a_larger_one():
    images = [f"{number}.png" for number in range(100)]
    small, large = (list(sampled(images, count)) for count in (10, 50))
    assert len(small) == 10
    assert set(small) < set(large)
    assert small == sorted(small) == list(sampled(images, 10))
    assert list(sampled(images, None)) == list(sampled(images, 200)) == list(range(100))
