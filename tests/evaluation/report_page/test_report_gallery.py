"""Grounded images of a report."""

import json

import pytest
from report_files import (
    Page,
    sections_of,
)

from grain_jax.evaluation.comparison import Measure
from grain_jax.evaluation.report_page.content import Gallery
from grain_jax.evaluation.report_page.evaluations import read_evaluations
from grain_jax.evaluation.report_page.gallery import best_median_worst, read_images
from grain_jax.evaluation.report_page.render import html_page, page_title


def test_the_gallery_has_the_best_the_median_and_the_worst(two, photos):
    evaluations, sections = sections_of(*two, {"val": photos})
    galleries = [b for section in sections for b in section.blocks if isinstance(b, Gallery)]
    assert [one.title for one in galleries] == ["val, A", "val, B"]
    shown = [(image.heading, image.name) for image in galleries[0].images]
    assert shown == [
        *(("Best", f"photo{i}") for i in (8, 7, 6)),
        *(("Median", f"photo{i}") for i in (5, 4, 3)),
        *(("Worst", f"photo{i}") for i in (2, 1, 0)),
    ]
    image = galleries[0].images[0]
    assert (image.width, image.height) == (60, 40)
    assert image.phrases[0].predicted_xyxy == (0.1, 0.2, 0.5, 0.6)
    assert image.phrases[0].true_xyxy == ((0.1, 0.2, 0.6, 0.7),)
    page = Page(html_page(page_title(evaluations), sections))
    rectangles = [a for tag, a in page.attributes if tag == "rect" and a["class"] == "predicted"]
    assert len(rectangles) == 2 * 9 * 2
    place = [rectangles[0][name] for name in ("x", "y", "width", "height")]
    assert place == ["10.0%", "20.0%", "40.0%", "40.0%"]
    assert page.text.count("right") >= 8


def test_few_images_are_shown_once(two):
    evaluations = read_evaluations(*two)
    answers = evaluations[0].answers[Measure("grounding", "val", "phrase")]
    answers.iou[:] = [None] * 14 + answers.iou[14:]
    chosen = best_median_worst(answers)
    assert [(heading, one.image) for heading, one in chosen] == [
        ("Best", "photo8"),
        ("Best", "photo7"),
    ]


def test_a_centre_crop_is_shown_as_the_model_saw_it(two, photos):
    report = json.loads(two[0][0].read_text())
    report["preprocessing"]["resize"] = "crop"
    two[0][0].write_text(json.dumps(report))
    _, sections = sections_of(*two, {"val": photos})
    first, second = (b for s in sections for b in s.blocks if isinstance(b, Gallery))
    assert (first.images[0].width, first.images[0].height) == (40, 40)
    assert (second.images[0].width, second.images[0].height) == (60, 40)


def test_images_are_read_from_their_folder_alone(tmp_path, photos):
    (tmp_path / "secret.png").write_bytes(b"x")
    names = ["photo1", "photo2.png", "../secret.png", "../secret", "/etc/hostname", "a\0b", "no"]
    assert sorted(read_images(photos, "val", names)) == ["photo1", "photo2.png"]


def test_missing_and_broken_images_are_named(two, photos):
    (photos / "photo8.png").unlink()
    (photos / "photo7.png").write_bytes(b"not an image")
    _, sections = sections_of(*two, {"val": photos})
    notes = " ".join(note for section in sections for note in section.notes)
    assert "'photo8' of val, A is not in" in notes
    assert "'photo7' of val, A is left out" in notes


@pytest.mark.parametrize("name", ["birds", "other"])
def test_a_set_without_grounding_has_no_gallery(two, photos, name):
    with pytest.raises(ValueError, match=f"'{name}', and the predictions have boxes .* on val"):
        sections_of(*two, {name: photos})


def test_another_folder_of_images_is_refused(two, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"None of the images of 'val' is in .*'photo8'"):
        sections_of(*two, {"val": tmp_path / "empty"})
    with pytest.raises(ValueError, match="There is no folder"):
        sections_of(*two, {"val": tmp_path / "nowhere"})
