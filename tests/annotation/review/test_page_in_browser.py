"""The page in Chromium: keys, clicks, the download, and what it looks like in narrow windows."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny_annotations import by_image, described, grounded, write_rows

pytest.importorskip("pyarrow")
pytest.importorskip("playwright")

from playwright.sync_api import sync_playwright

from grain_jax import annotate

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
HOSTILE = "</script><script>document.title = 'run'</script><img src=x onerror=document.title='run'>"
NAME = 'odd "name" <b>#1%20.png'


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """ann and page.html of 300 images, of which the last has a hostile name and caption."""
    tmp_path = tmp_path_factory.mktemp("reviewed")
    (tmp_path / "images").mkdir()
    described_rows, grounded_rows = [], []
    for number in range(300):
        name = NAME if number == 299 else f"{number:03d}.png"
        caption = HOSTILE if number == 299 else f"Image {number}."
        Image.new("RGB", (64, 48), (number % 256, 99, 9)).save(tmp_path / "images" / name)
        scores = {f"part {part}": 0.5 for part in range(11)}
        regions = [(text, (0.1, 0.1, 0.4, 0.5), 0.5) for text in scores]
        described_rows.append(described(name, [caption], [*scores, "a hat"]))
        grounded_rows.append(grounded(name, {**scores, "a hat": 0.02}, regions))
    write_rows(tmp_path / "ann", "describe", *described_rows)
    write_rows(tmp_path / "ann", "ground", *grounded_rows)
    made = [f"--images={tmp_path / 'images'}", f"--output={tmp_path / 'page.html'}"]
    assert annotate.main(["review", f"--annotations={tmp_path / 'ann'}", *made]) == 0
    return tmp_path


@pytest.fixture
def page(browser, folder):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    opened.errors, opened.addresses = [], []
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.on("console", lambda message: opened.errors.append(message.text))
    opened.on("request", lambda request: opened.addresses.append(request.url))
    opened.goto((folder / "page.html").as_uri())
    yield opened
    assert opened.errors == []
    assert all(address.startswith(("file://", "blob:")) for address in opened.addresses)
    context.close()


def download(page, folder: Path) -> Path:
    with page.expect_download() as started:
        page.click("#download")
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def test_keys_and_clicks_decide_and_the_download_is_applied(page, folder):
    page.keyboard.press("2")
    page.keyboard.press("a")
    assert "2 of 300: 001.png" in page.inner_text("#name")
    page.keyboard.press("r")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.click("#regions li:nth-child(11) button")  # behind the ninth
    assert "1 of 11 boxes rejected" in page.inner_text("#verdict")
    page.keyboard.press("j")
    page.keyboard.press("a")
    page.keyboard.press("k")
    page.keyboard.press("u")  # not decided any more
    assert "2 of 300 images decided: 1 accepted, 1 rejected" in page.inner_text("#progress")
    path = download(page, folder)
    decisions = json.loads(path.read_text())["decisions"]
    assert [each["image"] for each in decisions] == ["000.png", "001.png", "002.png"]
    assert annotate.main(["review", f"--annotations={folder / 'ann'}", f"--apply={path}"]) == 0
    found = by_image(folder / "ann")
    assert [each.description for each in found["000.png"].regions] == [
        f"part {part}" for part in range(11) if part != 1
    ]
    assert found["001.png"].dropped == "review"
    assert [each.description for each in found["002.png"].regions][-1] == "part 9"
    assert len(found["003.png"].regions) == 11


def test_decisions_outlive_the_visit_and_the_filter_finds_them(page):
    page.keyboard.press("r")
    page.keyboard.press("3")
    page.reload()
    assert "1 rejected" in page.inner_text("#progress")
    page.select_option("#filter", "reject")
    assert "000.png" in page.inner_text("#name")
    assert page.locator("#rows .row").count() == 1
    page.select_option("#filter", "accept")
    assert "No image is left here" in page.inner_text("#list")
    page.select_option("#filter", "regions")
    assert "001.png" in page.inner_text("#name")


def test_shortcuts_can_be_switched_off_and_leave_the_browser_its_own(page):
    page.keyboard.press("Control+a")
    page.uncheck("#shortcuts")
    page.keyboard.press("r")
    assert "0 of 300 images decided" in page.inner_text("#progress")


def test_hostile_texts_are_only_shown(page):
    page.focus("#list")
    page.keyboard.press("End")
    assert NAME in page.inner_text("#name")
    assert page.inner_text("#captions") == HOSTILE
    assert page.title() == "Review: ann"
    page.wait_for_function("document.getElementById('image').naturalWidth === 64")


def test_only_what_is_seen_is_built(page):
    assert page.locator("#rows .row").count() < 60
    assert len(page.addresses) < 6  # the page, its image, and the next one
    page.evaluate("document.getElementById('list').scrollTop = 150 * 44")
    page.wait_for_function("[...document.querySelectorAll('.row')].some(r => r.id === 'row-152')")
    page.click("#row-152")
    assert "153 of 300" in page.inner_text("#name")
    assert page.evaluate("document.querySelectorAll('*').length") < 400


def test_numbers_of_boxes_at_one_place_stand_apart(page):
    page.wait_for_function("document.getElementById('image').naturalWidth === 64")
    tags = page.evaluate(
        "[...document.querySelectorAll('.tag')].map(t => t.style.left + ' ' + t.style.top)"
    )
    assert len(tags) == 11
    assert len(set(tags)) >= 4  # of what fits into 64 x 48 pixels


@pytest.mark.parametrize("width", [320, 700, 1000, 1920])
def test_no_window_is_scrolled_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("accept", "reject", "download", "regions", "list"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_a_missing_file_is_said(page, folder, tmp_path):
    """As where the page was moved away from its images."""
    shutil.copy(folder / "page.html", tmp_path / "page.html")
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("#missing:not([hidden])")
    assert "cannot be shown" in page.inner_text("#missing")
    page.errors.clear()  # the browser's own line about the file
